"""The truth scores fully and blindness does not, for every task; counts and results are those of the official tools."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from psalm.constants import TASKS
from psalm.data.coco_panoptic import PanopticData
from psalm.data.cross_image import CrossImageData
from psalm.data.dataset import JoinedData
from psalm.data.masks import segmentation_to_mask
from psalm.data.questions import Asked, Evaluation
from psalm.data.refer_coco import ReferringData
from psalm.evaluation import PanopticQuality
from psalm.model.mask_decoder.prediction import Prediction
from psalm.train.predictions import PredictionWriter
from psalm.train.scorers import SCORERS, RegionScorer, Scorer, truths_of_regions
from psalm.train.tasks import METRICS

Make = Callable[..., Evaluation]
Model = Callable[..., nn.Module]
Score = Callable[..., Scorer[Any]]

ALL_TASKS = pytest.mark.parametrize("task", TASKS)


def figures(scorer: Scorer[Any]) -> dict[str, float]:
    found = scorer.metric.compute()
    assert found.keys() <= set(METRICS[scorer.data.task]), "every metric is among those that a run can have"
    return found


def decoded(result: dict[str, Any]) -> np.ndarray:
    return segmentation_to_mask(result["segmentation"], *result["segmentation"]["size"])


@ALL_TASKS
def test_the_truth_scores_fully(evaluation_of: Make, oracle: Model, scored: Score, task: str) -> None:
    evaluation = evaluation_of(task)
    found = figures(scored(oracle(evaluation), evaluation))
    for name, value in found.items():
        assert value == pytest.approx(0.0 if name == "location_error" else 100.0, abs=1e-6), name
    assert METRICS[task][0] in found


@ALL_TASKS
def test_only_resizing_is_lost(evaluation_of: Make, oracle: Model, scored: Score, task: str) -> None:
    evaluation = evaluation_of(task, size=96)
    main = figures(scored(oracle(evaluation), evaluation))[METRICS[task][0]]
    assert 65.0 < main < 100.0


@ALL_TASKS
def test_blindness_scores_nearly_nothing(evaluation_of: Make, oracle: Model, scored: Score, task: str) -> None:
    evaluation = evaluation_of(task)
    found = figures(scored(oracle(evaluation, blind=range(len(evaluation))), evaluation))
    assert found[METRICS[task][0]] < 25.0  # semantic: all pixels are of one class


def test_an_image_without_a_prediction_is_missed_as_a_whole(evaluation_of: Make, oracle: Model, scored: Score) -> None:
    evaluation = evaluation_of("panoptic")
    state = scored(oracle(evaluation, blind=[1]), evaluation).metric.state()
    assert state[:, 3].sum() == len(evaluation[1].example.labels)
    assert state[:, 1].sum() == sum(len(evaluation[item].example.labels) for item in (0, 2, 3, 4))


@ALL_TASKS
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_count_together_what_one_counts(
    evaluation_of: Make, oracle: Model, scored: Score, task: str, world_size: int
) -> None:
    evaluation = evaluation_of(task, size=96)
    model = oracle(evaluation, blind=[2], shift=2)
    one = figures(scored(model, evaluation))
    ranks = [scored(model, evaluation, rank, world_size) for rank in range(world_size)]
    states = [rank.metric.state() for rank in ranks]
    for own, scorer in enumerate(ranks):
        for other, state in enumerate(states):
            if other != own:
                scorer.metric.add_state(state)
        assert figures(scorer) == one, f"the same bits on rank {own}"


@pytest.fixture(scope="module")
def grefcoco(grefs_file: Path, small_data: Path) -> ReferringData:
    return ReferringData(grefs_file, "val", [small_data / "val2017"])


def test_expressions_may_mean_several_objects_or_none(
    evaluation_of: Make, oracle: Model, scored: Score, grefcoco: ReferringData
) -> None:
    evaluation = evaluation_of("referring", data=grefcoco)
    assert len(evaluation) == 5 * 3 * 2
    found = figures(scored(oracle(evaluation), evaluation))
    assert found.keys() == set(METRICS["referring"])
    assert set(found.values()) == {100.0}


def test_saying_that_nothing_is_meant_is_right_only_where_it_is_so(
    evaluation_of: Make, oracle: Model, scored: Score, grefcoco: ReferringData
) -> None:
    evaluation = evaluation_of("referring", data=grefcoco)
    found = figures(scored(oracle(evaluation, blind=range(len(evaluation))), evaluation))
    assert (found["n_acc"], found["t_acc"], found["ciou"]) == (100.0, 0.0, 0.0)
    assert found["giou"] == pytest.approx(100 / 3)


class Pointer(nn.Module):
    """Answers every question by the same square."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, pixel_values: torch.Tensor, **batch: Any) -> dict[str, Prediction]:
        masks = torch.full((len(pixel_values), 1, *pixel_values.shape[-2:]), -20.0)
        masks[..., 10:40, 10:40] = 20.0
        regions = [torch.full((len(of_image), 1), self.logit) for of_image in batch.get("region_masks", ())]
        return {
            "predictions": Prediction(
                masks, seg_logits=torch.full((len(masks), 1, 1), self.logit), region_logits=regions
            )
        }


def test_something_is_never_the_answer_where_nothing_is_meant(
    evaluation_of: Make, scored: Score, grefcoco: ReferringData
) -> None:
    evaluation = evaluation_of("referring", data=grefcoco)
    found = figures(scored(Pointer(20.0), evaluation))
    assert (found["n_acc"], found["t_acc"]) == (0.0, 100.0)


def test_where_each_expression_means_one_object_there_is_always_an_answer(
    evaluation_of: Make, scored: Score, grefcoco: ReferringData
) -> None:
    """The best query counts, however unsure; where any number may be meant, it must be likely."""
    plain, generalised = evaluation_of("referring"), evaluation_of("referring", data=grefcoco)
    joined = evaluation_of("referring", data=JoinedData([plain.data, grefcoco]))
    unsure = Pointer(-1.0)
    assert figures(scored(unsure, plain))["ciou"] > 0.0
    assert figures(scored(unsure, generalised))["ciou"] == 0.0
    assert figures(scored(unsure, joined))["ciou"] == 0.0, "one sample that may mean nothing changes the rule for all"


def test_absent_categories_are_answered_by_nothing(
    evaluation_of: Make, oracle: Model, answers: Callable[..., Any]
) -> None:
    evaluation = evaluation_of("cross_image")
    assert isinstance(evaluation.data, CrossImageData)
    assert evaluation.data.has_absent
    absent = 0
    for _, asked, answer in answers(oracle(evaluation), evaluation):
        for truth, mask, number in zip(truths_of_regions(asked), answer, asked.record.answers, strict=True):
            assert np.array_equal(mask, truth)
            absent += number < 0
            assert mask.any() == (number >= 0)
    assert absent > 0


def test_a_region_is_answered_however_unsurely_unless_something_may_be_absent(
    evaluation_of: Make, answers: Callable[..., Any], small_data: Path, tmp_path: Path
) -> None:
    pairs = json.loads((small_data / "coco_cross_val.json").read_text())
    present = [
        pair
        for pair in pairs
        if {each["category_id"] for each in pair["annotations"]}
        <= {each["category_id"] for each in pair["annotations1"]}
    ]
    assert 0 < len(present) < len(pairs)
    (tmp_path / "pairs.json").write_text(json.dumps(present))
    complete = CrossImageData(tmp_path / "pairs.json", [small_data / "val2017"])
    for data, answered in ((None, False), (complete, True)):
        found = answers(Pointer(-1.0), evaluation_of("cross_image", data=data))
        assert {bool(mask.any()) for _, _, answer in found for mask in answer} == {answered}


def test_every_type_of_prompt_is_asked_about_every_region(evaluation_of: Make, oracle: Model, scored: Score) -> None:
    evaluation = evaluation_of("region")
    state = scored(oracle(evaluation), evaluation).metric.state()
    regions = sum(len(evaluation.data.record(index).masks) for index in range(len(evaluation.data)))
    assert {kind: len(counts) for kind, counts in state.items()} == dict.fromkeys(
        ("point", "box", "scribble", "mask"), regions
    )


def test_only_regions_with_a_prompt_of_the_type_are_asked(
    evaluation_of: Make, oracle: Model, scored: Score, small_data: Path, tmp_path: Path
) -> None:
    records = json.loads((small_data / "coco_interactive_val_psalm.json").read_text())
    for record in records:
        del record["anns"][0]["box_visual_prompt_mask"]
    path = tmp_path / "coco_interactive_val_psalm.json"
    path.write_text(json.dumps(records))
    evaluation = evaluation_of(
        "region", region_json_path=str(path), eval_region_json_path=str(path), region_image_folder=str(small_data)
    )
    scorer = scored(oracle(evaluation), evaluation)
    assert isinstance(scorer, RegionScorer)
    counts = {kind: len(rows) for kind, rows in scorer.metric.state().items()}
    regions = sum(len(record["anns"]) for record in records)
    assert counts == dict.fromkeys(("point", "scribble", "mask"), regions) | {"box": regions - len(records)}
    assert figures(scorer)["box_ciou"] == pytest.approx(100.0)


def test_joined_expressions_are_one_question(evaluation_of: Make, oracle: Model, scored: Score) -> None:
    evaluation = evaluation_of("referring", refer_expressions="joined")
    assert len(evaluation) == len(evaluation.data) < len(evaluation_of("referring"))
    assert figures(scored(oracle(evaluation), evaluation))["ciou"] == pytest.approx(100.0)


def written(evaluation: Evaluation, model: nn.Module, answers: Callable[..., Any], folder: Path) -> tuple[Any, dict]:
    """The content of the results file that a run writes, and the run's figures."""
    writer = None
    for scorer, asked, answer in answers(model, evaluation):
        writer = writer or PredictionWriter(folder, scorer)
        writer.add(asked, answer)
    assert writer is not None
    writer.finish(rank=0)
    content = json.loads((folder / "predictions" / f"{evaluation.task}_predictions.json").read_text())
    return content, figures(scorer)


def test_panoptic_results_read_back_have_the_same_quality(
    evaluation_of: Make, oracle: Model, answers: Callable[..., Any], small_data: Path, tmp_path: Path
) -> None:
    evaluation = evaluation_of("panoptic")
    content, expected = written(evaluation, oracle(evaluation, blind=[3], shift=2), answers, tmp_path / "run")
    assert 10.0 < expected["pq"] < 90.0

    root = tmp_path / "root"
    (root / "annotations").mkdir(parents=True)
    images = json.loads((small_data / "annotations" / "panoptic_val2017.json").read_text())["images"]
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps({"images": images, **content}))
    (root / "panoptic_val2017").symlink_to(tmp_path / "run" / "predictions" / "panoptic_predictions")
    read = PanopticData(root, "val", small_data)
    assert read.classes == evaluation.data.classes

    quality = PanopticQuality([info.isthing for info in read.classes])
    truth = PanopticData(small_data, "val")
    row_of = {image_id: row for row, image_id in enumerate(read.image_ids)}
    for row, image_id in enumerate(truth.image_ids):
        pred_map, pred_segments = read.truth(row_of[image_id])
        true_map, true_segments = truth.truth(row)
        quality.update(
            pred_map,
            {segment.id: segment.category for segment in pred_segments},
            true_map,
            {segment.id: (segment.category, segment.iscrowd) for segment in true_segments},
        )
    assert quality.compute() == expected


def test_instance_results_loaded_by_pycocotools_have_the_same_ap(
    evaluation_of: Make, oracle: Model, answers: Callable[..., Any], small_data: Path, tmp_path: Path
) -> None:
    evaluation = evaluation_of("instance")
    content, expected = written(evaluation, oracle(evaluation, blind=[3], shift=3), answers, tmp_path)
    assert 10.0 < expected["ap"] < 90.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(small_data / "annotations" / "instances_val2017.json")
        evaluator = COCOeval(truth, truth.loadRes(content), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    for name, value in zip(METRICS["instance"], evaluator.stats.tolist(), strict=False):
        assert expected.get(name, -100.0) == pytest.approx(100 * value, abs=1e-6), name


def test_larger_objects_have_figures_of_their_own(
    evaluation_of: Make, oracle: Model, scored: Score, small_data: Path, tmp_path: Path
) -> None:
    content = json.loads((small_data / "annotations" / "instances_val2017.json").read_text())
    for annotation, area in zip(content["annotations"], (40 * 40, 100 * 100), strict=False):
        annotation["area"] = area
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    given = {"instance_json_path": str(path), "eval_instance_json_path": str(path), "image_folder": str(small_data)}
    evaluation = evaluation_of("instance", **given)
    found = figures(scored(oracle(evaluation), evaluation))
    assert found == pytest.approx(dict.fromkeys(METRICS["instance"], 100.0))


def test_semantic_results_tile_the_image(
    evaluation_of: Make, oracle: Model, answers: Callable[..., Any], tmp_path: Path
) -> None:
    evaluation = evaluation_of("semantic")
    content, expected = written(evaluation, oracle(evaluation, shift=3), answers, tmp_path)
    scorer = SCORERS["semantic"](evaluation.data)
    number_of = {info.id: number for number, info in enumerate(evaluation.data.classes)}
    for item in range(len(evaluation)):
        asked = evaluation[item]
        labels = np.full(asked.record.label_map.shape, -1)
        for result in content:
            if result["image_id"] == asked.record.image_id:
                labels[decoded(result)] = number_of[result["category_id"]]
        assert (labels >= 0).all()
        scorer.count(asked, labels)
    assert figures(scorer) == expected


def asked_of(evaluation: Evaluation) -> dict[tuple[Any, ...], tuple[Asked, int]]:
    """What tells the results of a task apart -> the question, and the number of the mask in its answer."""
    found = {}
    for item in range(len(evaluation)):
        asked = evaluation[item]
        if evaluation.task == "referring":
            found[asked.record.sample_id, asked.question] = (asked, 0)
            continue
        of_pair = evaluation.task == "cross_image"
        prompt = asked.record.prompt if of_pair else asked.record
        for number, annotation_id in enumerate(prompt.annotation_ids):
            key = (asked.record.image_id, prompt.image_id if of_pair else asked.question, annotation_id)
            found[key] = (asked, number)
    return found


KEYS = {
    "referring": ("ref_id", "sentence"),
    "region": ("image_id", "prompt", "annotation_id"),
    "cross_image": ("image_id", "prompt_image_id", "annotation_id"),
}


@pytest.mark.parametrize("task", KEYS)
def test_results_say_what_was_asked(
    evaluation_of: Make, oracle: Model, answers: Callable[..., Any], tmp_path: Path, task: str
) -> None:
    evaluation = evaluation_of(task)
    content, expected = written(evaluation, oracle(evaluation, shift=3), answers, tmp_path)
    questions = asked_of(evaluation)
    assert [tuple(result[key] for key in KEYS[task]) for result in content] == list(questions), "in order, each once"
    found: dict[int, list[np.ndarray]] = {}
    for result, (asked, _) in zip(content, questions.values(), strict=True):
        assert result["image_id"] == asked.record.image_id
        found.setdefault(asked.item, []).append(decoded(result))
    scorer = SCORERS[task](evaluation.data)
    for item, masks in found.items():
        scorer.count(evaluation[item], masks[0] if task == "referring" else np.stack(masks))
    assert figures(scorer) == expected
