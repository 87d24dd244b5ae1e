"""Results files are whole, in the order of the questions, and replaced by the next evaluation's."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from psalm.data.questions import Evaluation
from psalm.data.samples import PanopticRecord
from psalm.train import predictions
from psalm.train.predictions import PredictionWriter
from psalm.train.scorers import SCORERS, PanopticAnswer

Make = Callable[..., Evaluation]
Model = Callable[..., nn.Module]
Answers = Callable[..., Any]


def writer_of(
    folder: Path, evaluation: Evaluation, model: nn.Module, answers: Answers, rank: int = 0, world_size: int = 1
) -> PredictionWriter:
    writer = PredictionWriter(folder, SCORERS[evaluation.task](evaluation.data))
    for _, asked, answer in answers(model, evaluation, rank, world_size):
        writer.add(asked, answer)
    return writer


def test_next_evaluation_replaces_the_files(
    evaluation_of: Make, oracle: Model, answers: Answers, tmp_path: Path
) -> None:
    evaluation = evaluation_of("panoptic")
    contents = []
    for blind in ([0], []):
        writer = writer_of(tmp_path, evaluation, oracle(evaluation, blind=blind), answers)
        writer.finish(rank=0)
        folder = writer.path.with_suffix("")
        assert {path.name for path in writer.path.parent.iterdir()} == {writer.path.name, folder.name}, "no draft stays"
        content = json.loads(writer.path.read_text())
        for annotation in content["annotations"]:
            pixels = np.asarray(Image.open(folder / annotation["file_name"])).astype(int)
            ids = set(np.unique(pixels @ [1, 256, 65536]).tolist()) - {0}
            assert ids == {segment["id"] for segment in annotation["segments_info"]}
        contents.append(content)
    first, second = (content["annotations"] for content in contents)
    assert first[0]["segments_info"] == []
    assert second[0]["segments_info"] != []
    assert [each["image_id"] for each in second] == list(evaluation.data.image_ids)


def test_a_file_is_replaced_only_by_a_whole_one(
    evaluation_of: Make, oracle: Model, answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = evaluation_of("instance")
    writer = writer_of(tmp_path, evaluation, oracle(evaluation), answers)
    writer.finish(rank=0)
    before = writer.path.read_bytes()

    def full_disk(path: Path, text: str) -> int:
        path.write_bytes(text[:10].encode())
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        writer_of(tmp_path, evaluation, oracle(evaluation, blind=[0]), answers).finish(rank=0)
    assert writer.path.read_bytes() == before


def test_ranks_write_one_file_in_the_order_of_the_questions(
    evaluation_of: Make, oracle: Model, answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = evaluation_of("referring")
    model = oracle(evaluation)
    one = writer_of(tmp_path / "one", evaluation, model, answers)
    one.finish(rank=0)
    ranks = [writer_of(tmp_path / "two", evaluation, model, answers, rank, 2) for rank in range(2)]
    monkeypatch.setattr(predictions, "of_all_ranks", lambda value: [rank._results for rank in ranks])
    ranks[1].finish(rank=1)
    assert not ranks[1].path.exists(), "rank 0 writes"
    ranks[0].finish(rank=0)
    assert ranks[0].path.read_bytes() == one.path.read_bytes()


@pytest.mark.parametrize(("image", "png"), [("sub/a.jpg", "sub/a.png"), ("a.b.jpg", "a.b.png"), ("a", "a.png")])
def test_png_is_named_after_the_image(evaluation_of: Make, tmp_path: Path, image: str, png: str) -> None:
    evaluation = evaluation_of("panoptic")
    asked = evaluation[0]
    record: PanopticRecord = dataclasses.replace(asked.record, file_name=image)
    writer = PredictionWriter(tmp_path, SCORERS["panoptic"](evaluation.data))
    writer.add(dataclasses.replace(asked, record=record), PanopticAnswer(np.zeros((4, 5), np.int32), []))
    writer.finish(rank=0)
    assert json.loads(writer.path.read_text())["annotations"][0]["file_name"] == png
    assert Image.open(tmp_path / "predictions" / "panoptic_predictions" / png).size == (5, 4)
