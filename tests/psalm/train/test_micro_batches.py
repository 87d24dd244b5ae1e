"""A run goes on with settings that need less memory: same samples, same losses."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import TrainerCallback

from psalm.model.multimodal_projector.conv import BatchNorm
from psalm.train.arguments import parse_settings
from psalm.train.records import metric_history, read_records
from psalm.train.train import train
from psalm.train.trainer import PsalmTrainer

Settings = Callable[..., dict[str, Any]]
Samples = list[tuple[int, list[int]]]
"""Optimizer step, and the samples' keys in their order."""

CHECKPOINTED = {"gradient_checkpointing": True}
HALVED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
SINGLE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "gradient_checkpointing": True}
THIRDS = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}


class Interrupt(TrainerCallback):
    """In the middle of a logging window."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            control.should_training_stop = control.should_save = True


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Samples]:
    """What is trained on."""
    samples: Samples = []
    draw = PsalmTrainer.get_batch_samples

    def draw_and_note(self: PsalmTrainer, *args: Any) -> Any:
        batches, counts = draw(self, *args)
        if batches:
            keys = [key for batch in batches for key in batch["random_keys"].tolist()]
            samples.append((self.state.global_step + 1, keys))
        return batches, counts

    monkeypatch.setattr(PsalmTrainer, "get_batch_samples", draw_and_note)
    return samples


def losses(folder: Path) -> dict[str, dict[int, float]]:
    return {name: steps for name, steps in metric_history(read_records(folder)).items() if name.startswith("loss")}


@pytest.mark.parametrize(
    ("deepspeed", "batch", "changes"),
    [
        (None, 4, [CHECKPOINTED, HALVED, SINGLE]),
        ("zero2", 4, [CHECKPOINTED, HALVED, SINGLE]),
        (None, 3, [THIRDS]),
        pytest.param("zero3", 4, [HALVED], marks=pytest.mark.full),
    ],
)
def test_a_run_goes_on_with_other_micro_batches(
    settings: Settings,
    tmp_path: Path,
    drawn: Samples,
    monkeypatch: pytest.MonkeyPatch,
    deepspeed: str | None,
    batch: int,
    changes: list[dict[str, Any]],
) -> None:
    # The baseline projector's statistics are of a micro-batch: the only thing that changes with its size.
    monkeypatch.setattr(BatchNorm, "forward", scale_alone)

    def run(folder: Path, *callbacks: TrainerCallback, **others: Any) -> Samples:
        drawn.clear()
        common = {"deepspeed": deepspeed, "per_device_train_batch_size": batch, "eval_strategy": "no"}
        common |= {"max_steps": 6, "logging_steps": 2, "output_dir": str(folder)}
        train(parse_settings(settings(**common | others)), callbacks, resume_from_checkpoint=True)
        return list(drawn)

    whole = run(tmp_path / "whole")
    cut = run(tmp_path / "cut", Interrupt())
    assert [len(keys) for _, keys in whole] == [batch] * 6
    for number, change in enumerate(changes):
        folder = tmp_path / f"changed-{number}"
        shutil.copytree(tmp_path / "cut", folder)
        assert cut + run(folder, **change) == whole, change
        expected, actual = losses(tmp_path / "whole"), losses(folder)
        assert list(actual["loss"]) == [2, 4, 6]
        assert actual.keys() == expected.keys()
        for name, steps in expected.items():
            assert actual[name] == pytest.approx(steps, rel=1e-5), (change, name)


def scale_alone(norm: BatchNorm, images: Tensor) -> Tensor:
    return images * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_checkpointed_activations_change_nothing(settings: Settings, tmp_path: Path) -> None:
    """Statistics of batch normalisation too are counted once, although activations are computed twice."""
    common = {"max_steps": 2, "save_final_model": True}
    folders = [tmp_path / "plain", tmp_path / "checkpointed"]
    for folder, change in zip(folders, ({}, CHECKPOINTED), strict=True):
        train(parse_settings(settings(output_dir=str(folder), **common, **change)))
    first, second = (folder / "model" / "model.safetensors" for folder in folders)
    assert first.read_bytes() == second.read_bytes()
