"""Losses by name are averaged over the steps that had them, go on after a checkpoint, and end a run that diverges."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from psalm.train.loss_window import LossWindow, TrainingDiverged


class Ranks:
    """Gathers what one rank has, and of what another one is said to have that which is as long."""

    def __init__(self, *others: Tensor) -> None:
        self.others = others

    def gather(self, own: Tensor) -> Tensor:
        same = [other.reshape(own.shape).to(own.dtype) for other in self.others if other.numel() == own.numel()]
        return torch.cat([own, *same])


ALONE: Any = Ranks()


def add(window: LossWindow, step: int, *micro_batches: Mapping[str, float]) -> None:
    """One optimizer step."""
    for losses in micro_batches:
        window.add({name: torch.tensor(value) for name, value in losses.items()}, step)
    window.end_step()


def test_a_loss_is_averaged_over_the_steps_that_had_it() -> None:
    window = LossWindow()
    add(window, 1, {"loss": 1.0, "panoptic/loss": 1.0})
    add(window, 2, {"loss": 3.0, "region/loss": 3.0})
    add(window, 3, {"loss": 5.0, "region/loss": 5.0})
    assert window.take(ALONE, 3) == {"loss": 3.0, "panoptic/loss": 1.0, "region/loss": 4.0}


def test_micro_batches_of_a_step_add_up() -> None:
    window = LossWindow()
    add(window, 1, {"loss": 0.25}, {"loss": 0.5})
    add(window, 2, {"loss": 1.0}, {"loss": 1.25})
    assert window.take(ALONE, 2) == {"loss": 1.5}


def test_every_log_begins_a_new_window() -> None:
    window = LossWindow()
    add(window, 1, {"loss": 1.0, "panoptic/loss": 1.0})
    window.take(ALONE, 1)
    add(window, 2, {"loss": 2.0, "region/loss": 2.0})
    assert window.take(ALONE, 2) == {"loss": 2.0, "region/loss": 2.0}
    assert window.take(ALONE, 2) == {}


def test_ranks_are_averaged() -> None:
    window = LossWindow()
    other: Any = Ranks(torch.tensor([6.0, 10.0]))
    for step in (1, 2):
        add(window, step, {"loss": 1.0, "loss_mask": 2.0})
    assert window.take(other, 2) == {"loss": 2.0, "loss_mask": 3.5}


def test_a_window_goes_on_after_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    steps = [{"loss": 0.1, "region/loss": 0.1}, {"loss": 1 / 3, "panoptic/loss": 1 / 3}, {"loss": 0.7}]
    whole, cut, resumed = LossWindow(), LossWindow(), LossWindow()
    for step, losses in enumerate(steps, start=1):
        add(whole, step, losses)
    for step, losses in enumerate(steps[:2], start=1):
        add(cut, step, losses)
    cut.save(tmp_path, rank=1)
    resumed.load(tmp_path, 1, torch.device("cpu"))
    add(resumed, 3, steps[2])
    assert resumed.take(ALONE, 3) == whole.take(ALONE, 3)


def test_a_rank_without_a_window_begins_one(tmp_path: Path) -> None:
    saved, other = LossWindow(), LossWindow()
    add(saved, 1, {"loss": 1.0})
    saved.save(tmp_path, rank=0)
    other.load(tmp_path, 1, torch.device("cpu"))
    assert other.take(ALONE, 1) == {}


def test_last_finite_values_are_known_after_a_checkpoint(tmp_path: Path) -> None:
    saved, resumed = LossWindow(), LossWindow()
    add(saved, 1, {"loss": 1.5})
    saved.take(ALONE, 1)
    saved.save(tmp_path, rank=0)
    resumed.load(tmp_path, 0, torch.device("cpu"))
    add(resumed, 2, {"loss": math.nan})
    with pytest.raises(TrainingDiverged, match=r"last finite values, step 1: loss 1\.5;"):
        resumed.take(ALONE, 2)


def test_divergence_names_the_first_step_and_the_losses() -> None:
    window = LossWindow()
    add(window, 1, {"loss": 2.0, "loss_mask": 2.0})
    window.take(ALONE, 1)
    add(window, 2, {"loss": 2.0, "loss_mask": 2.0})
    add(window, 3, {"loss": math.inf, "loss_mask": 2.0})
    add(window, 4, {"loss": 2.0, "loss_mask": 2.0})
    with pytest.raises(TrainingDiverged) as error:
        window.check(ALONE)
    assert error.value.step == 3
    assert str(error.value) == (
        "loss is not finite at step 3 (loss = inf); "
        "last finite values, step 1: loss 2, loss_mask 2; a lower learning_rate may help"
    )


def test_divergence_at_the_first_step() -> None:
    window = LossWindow()
    add(window, 1, {"region/loss": math.nan})
    with pytest.raises(TrainingDiverged, match=r"step 1 \(region/loss = nan\); there were no finite values before"):
        window.take(ALONE, 1)


def test_divergence_within_a_step_is_seen_before_its_end() -> None:
    window = LossWindow()
    window.add({"loss": torch.tensor(math.nan)}, 1)
    with pytest.raises(TrainingDiverged):
        window.check(ALONE)


def test_divergence_on_another_rank_ends_this_one_too() -> None:
    window = LossWindow()
    add(window, 4, {"loss": 1.0})
    other: Any = Ranks(torch.tensor([3.0]))
    with pytest.raises(TrainingDiverged, match="at step 3"):
        window.check(other)


def test_losses_stay_in_double_precision() -> None:
    window = LossWindow()
    for step in range(1, 1001):
        add(window, step, {"loss": 0.1})
    assert window.take(ALONE, 1000)["loss"] == pytest.approx(torch.tensor(0.1).item(), rel=1e-12)
