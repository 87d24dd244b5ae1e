"""Every task shows what was asked, the truth, and the prediction beside it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from psalm.constants import CLASS_TASKS, TASKS
from psalm.data.questions import Asked, Evaluation
from psalm.data.samples import ClassInfo, PanopticRecord, Segment
from psalm.model.postprocess import SegmentPrediction
from psalm.train.pictures import VOID_COLOR, class_color, draw_predictions
from psalm.train.scorers import PanopticAnswer
from psalm.train.task_pictures import picture_of

Make = Callable[..., Evaluation]
Model = Callable[..., nn.Module]


def test_predictions_show_classes_in_their_colours(tmp_path: Path) -> None:
    classes = (ClassInfo("cat", True, 7), ClassInfo("grass", False, 90))
    truth = np.ones((40, 60), dtype=np.int32)
    truth[:, 30:] = 5
    record = PanopticRecord(
        1, "a.jpg", np.zeros((40, 60, 3), np.uint8), truth,
        (Segment(1, 0, True, False, 1200), Segment(5, 1, False, False, 1200)),
    )  # fmt: skip
    answer = PanopticAnswer(np.zeros((40, 60), np.int32), [SegmentPrediction(1, 1, False, 0.9)])
    data: Any = SimpleNamespace(task="panoptic", classes=classes)
    asked: Any = Asked(0, record, None, None)  # type: ignore[arg-type]
    draw_predictions([picture_of(asked, answer, data)] * 4, tmp_path / "p.png")
    pixels = np.asarray(Image.open(tmp_path / "p.png")).reshape(-1, 3).tolist()
    colors = {tuple(pixel) for pixel in pixels}
    assert {class_color(0), class_color(1), VOID_COLOR} <= colors
    assert pixels.count(list(class_color(0))) == 13 * 13, "once, in the legend"


@pytest.mark.parametrize("task", TASKS)
def test_the_truth_looks_like_the_truth(
    evaluation_of: Make, oracle: Model, answers: Callable[..., Any], tmp_path: Path, task: str
) -> None:
    evaluation = evaluation_of(task)
    shown = [(asked, answer) for _, asked, answer in answers(oracle(evaluation), evaluation)][:4]
    pictures = [picture_of(asked, answer, evaluation.data) for asked, answer in shown]
    for (asked, _), picture in zip(shown, pictures, strict=True):
        first = "prompts" if task in ("region", "cross_image") else "image"
        assert list(picture.panels) == [first, "truth", "prediction"]
        assert np.array_equal(picture.panels["truth"], picture.panels["prediction"])
        assert picture.panels["truth"].shape == asked.record.image.shape
    draw_predictions(pictures, tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").height > 4 * 100, "four images in rows"


@pytest.mark.parametrize("task", TASKS)
def test_blindness_looks_otherwise(evaluation_of: Make, oracle: Model, answers: Callable[..., Any], task: str) -> None:
    evaluation = evaluation_of(task)
    for _, asked, answer in answers(oracle(evaluation, blind=range(len(evaluation))), evaluation):
        panels = picture_of(asked, answer, evaluation.data).panels
        assert not np.array_equal(panels["truth"], panels["prediction"])


@pytest.mark.parametrize("task", CLASS_TASKS)
def test_legend_names_the_classes_that_are_there(
    evaluation_of: Make, oracle: Model, answers: Callable[..., Any], task: str
) -> None:
    evaluation = evaluation_of(task)
    names = [info.name for info in evaluation.data.classes]
    for _, asked, answer in answers(oracle(evaluation), evaluation):
        there = {asked.example.class_order[label].item() for label in asked.example.labels}
        legend = picture_of(asked, answer, evaluation.data).legend
        assert legend == {"void": VOID_COLOR} | {names[index]: class_color(index) for index in there}


def test_words_and_types_of_prompts_stand_above(
    evaluation_of: Make, oracle: Model, answers: Callable[..., Any]
) -> None:
    def captions(task: str, **changes: Any) -> list[str]:
        evaluation = evaluation_of(task, **changes)
        found = answers(oracle(evaluation), evaluation)
        return [picture_of(asked, answer, evaluation.data).caption for _, asked, answer in found]

    referring = evaluation_of("referring").data
    each = [record.expressions for record in map(referring.record, range(len(referring)))]
    assert captions("referring") == [expression for expressions in each for expression in expressions]
    assert captions("referring", refer_expressions="joined") == [". ".join(expressions) for expressions in each]
    assert captions("region")[:4] == [f"prompts: {kind}" for kind in ("point", "box", "scribble", "mask")]
    for caption, item in zip(captions("cross_image"), range(5), strict=True):
        regions = len(evaluation_of("cross_image")[item].example.region_masks)
        assert len(caption.removeprefix("prompts: ").split(", ")) == regions
