"""A model and a data set small enough to train in a second, and models that know the truth."""

import json
import resource
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from psalm.constants import CLASS_TASKS, REFERRING
from psalm.data.builtin import ensure_builtin
from psalm.data.collator import Collator
from psalm.data.dataset import TaskData
from psalm.data.examples import create_examples
from psalm.data.prompts import PromptBuilder
from psalm.data.questions import Asked, Evaluation
from psalm.model.language_weights import load_tokenizer
from psalm.model.mask_decoder.prediction import Prediction
from psalm.model.weight_files import BUILTIN_FOLDER
from psalm.train.arguments import Arguments, argument_fields, parse_settings
from psalm.train.scorers import SCORERS, Scorer
from psalm.train.scoring import LABELS, answer_batches, make_loader, shard
from psalm.train.task_data import load_task


@pytest.fixture(scope="session")
def small_tower(tmp_path_factory: pytest.TempPathFactory, tiny_tower: dict[str, Any]) -> Path:
    """A vision tower's folder whose file fills nothing: all weights keep their initial values."""
    folder = tmp_path_factory.mktemp("tower")
    (folder / "config.json").write_text(json.dumps(tiny_tower))
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_builtin(tmp_path_factory.mktemp("data"), train_images=12, val_images=5)


@pytest.fixture(scope="session")
def grefs_file(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gRefCOCO about the built-in images: of each, two expressions for all objects, two for none, two for the first."""
    folder = tmp_path_factory.mktemp("grefcoco")
    grefs: list[dict[str, Any]] = []
    merged: dict[str, list[Any]] = {"images": [], "annotations": []}
    for split in ("train", "val"):
        content = json.loads((small_data / "annotations" / f"instances_{split}2017.json").read_text())
        for image in content["images"]:
            ids = [each["id"] for each in content["annotations"] if each["image_id"] == image["id"]]
            for words, meant in (("all things", ids), ("the whale", [-1]), ("the first one", ids[:1])):
                grefs.append(
                    {
                        "ref_id": len(grefs),
                        "ann_id": meant,
                        "image_id": image["id"],
                        "split": split,
                        "no_target": meant == [-1],
                        "sentences": [{"sent": words}, {"sent": f"{words} here"}],
                    }
                )
        for name, records in merged.items():
            records += content[name]
    (folder / "instances.json").write_text(json.dumps(merged))
    file = folder / "grefs(unc).json"
    file.write_text(json.dumps(grefs))
    return file


@pytest.fixture(scope="session")
def settings_in(small_tower: Path, small_data: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a short run in a folder; keywords replace them."""

    def make(folder: Path, **changes: Any) -> dict[str, Any]:
        return {
            "output_dir": str(folder),
            "vision_tower": str(small_tower),
            "panoptic_json_path": str(small_data),
            "mm_hidden_dim": 16,
            "mm_n_heads": 2,
            "mm_n_points": 2,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "save_final_model": False,
            "disable_tqdm": True,
            "seed": 3,
        } | changes

    return make


@pytest.fixture
def settings(tmp_path: Path, settings_in: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Settings of a short run; keywords replace them."""
    return lambda **changes: settings_in(tmp_path / "run", **changes)


@pytest.fixture
def arguments(settings: Callable[..., dict[str, Any]]) -> Callable[..., Arguments]:
    """Arguments of a short run; keywords replace settings."""
    return lambda **changes: parse_settings(settings(**changes))


SURE = 20.0
"""A logit whose probability is 1 up to the ninth digit."""


class Oracle(nn.Module):
    """Says the truth at input size, one mask per query.

    Args:
        evaluation: the questions it knows.
        blind: items of the evaluation of which it sees nothing.
        shift: pixels by which its masks lie too far down.
    """

    def __init__(self, evaluation: Evaluation, blind: Collection[int] = (), shift: int = 0) -> None:
        super().__init__()
        asked = [evaluation[item] for item in range(len(evaluation))]
        self.example_of = {each.example.random_key: each.example for each in asked}
        assert len(self.example_of) == len(asked)
        self.blind = {each.example.random_key for each in asked if each.item in blind}
        self.shift = shift

    def forward(self, task: str, pixel_values: Tensor, random_keys: Tensor, **others: Any) -> dict[str, Prediction]:
        assert not self.training
        assert not others.keys() & set(LABELS)
        side, queries = pixel_values.shape[-1], 12
        masks = torch.full((len(pixel_values), queries, side, side), -SURE)
        scores = []
        for row, key in enumerate(random_keys.tolist()):
            example = self.example_of[key]
            truth = example.masks[:0] if key in self.blind else example.masks
            masks[row, : len(truth)][truth.roll(self.shift, dims=1)] = SURE
            if task in CLASS_TASKS:
                score = torch.full((queries, len(example.prompt_ids)), -SURE)
                score[:, -1] = 0.0
                score[torch.arange(len(truth)), example.labels[: len(truth)]] = SURE
            elif task == REFERRING:
                score = torch.where(torch.arange(queries) < len(truth), SURE, -SURE)[:, None]
            else:
                answers = example.region_labels
                score = torch.where(torch.arange(queries) == answers[:, None], SURE, -SURE)
                score[:, len(truth) :] = -SURE
            scores.append(score)
        if task in CLASS_TASKS:
            return {"predictions": Prediction(masks, class_logits=torch.stack(scores))}
        if task == REFERRING:
            return {"predictions": Prediction(masks, seg_logits=torch.stack(scores))}
        return {"predictions": Prediction(masks, region_logits=scores)}


@pytest.fixture(scope="session")
def oracle() -> type[Oracle]:
    return Oracle


@pytest.fixture(scope="session")
def prompts() -> PromptBuilder:
    return PromptBuilder(load_tokenizer(BUILTIN_FOLDER / "phi"))


@pytest.fixture(scope="session")
def evaluation_of(small_data: Path, prompts: PromptBuilder) -> Callable[..., Evaluation]:
    """The questions of a task on the validation data that settings name, or on given data.

    At 128 pixels the built-in images keep their size.
    """

    def make(task: str, size: int = 128, data: TaskData | None = None, **changes: Any) -> Evaluation:
        given = {name: field.default for name, field in argument_fields().items()}
        given |= {"panoptic_json_path": str(small_data)} | changes
        data = load_task(given, task).val if data is None else data
        return Evaluation(create_examples(data, prompts, size, given["refer_expressions"]))

    return make


def answers_of(
    model: nn.Module, evaluation: Evaluation, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Scorer[Any], Asked, Any]]:
    """What a rank counts, with the scorer that has counted it."""
    scorer = SCORERS[evaluation.task](evaluation.data)
    share = shard(len(evaluation), 2, rank, world_size)
    loader = make_loader(evaluation, share.batches, Collator(0))
    for counts, answers in zip(share.counts, answer_batches(model, loader, lambda batch: batch, scorer), strict=True):
        for asked, answer in answers if counts else ():
            scorer.count(asked, answer)
            yield scorer, asked, answer


@pytest.fixture(scope="session")
def answers() -> Callable[..., Iterator[tuple[Scorer[Any], Asked, Any]]]:
    return answers_of


@pytest.fixture(scope="session")
def scored() -> Callable[..., Scorer[Any]]:
    """The scorer of a rank that has counted its questions."""

    def score(model: nn.Module, evaluation: Evaluation, rank: int = 0, world_size: int = 1) -> Scorer[Any]:
        *_, (scorer, _, _) = answers_of(model, evaluation, rank, world_size)
        return scorer

    return score


@pytest.fixture(scope="session")
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Within it, no file of this process grows above so many bytes: as on a disk that is full, but for one process."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
