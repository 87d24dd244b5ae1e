"""Peak learning rates that change midway: each step has the rate that it should, and a run may take over another's."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from psalm.train.arguments import (
    Arguments,
    SettingError,
    check_settings,
    parse_command_line,
    parse_settings,
    resolved_settings,
)
from psalm.train.checkpoint_files import last_good_checkpoint
from psalm.train.records import metric_history, read_records
from psalm.train.train import train

Make = Callable[..., Arguments]
REPO = Path(__file__).resolve().parents[3]
RATE = 1e-3
SAVED = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 1, "save_final_model": True}


class Rates(TrainerCallback):
    """Keeps the rates of all groups that the optimizer steps with."""

    def __init__(self) -> None:
        self.of_steps: list[list[float]] = []

    def on_pre_optimizer_step(self, *_: Any, optimizer: torch.optim.Optimizer, **__: Any) -> None:
        self.of_steps.append([group["lr"] for group in optimizer.param_groups])


class Cut(TrainerCallback):
    """Ends a run right after a checkpoint."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = True


def logged(folder: Path) -> dict[str, dict[int, float]]:
    history = metric_history(read_records(folder))
    return {name: steps for name, steps in history.items() if not name.startswith("system/")}


def test_every_step_has_the_schedule_s_share_of_its_peak(arguments: Make) -> None:
    """The steps are counted as in checkpoints: after two steps comes the third, which is the first of the new peak."""
    rates = Rates()
    changes = {2: 3e-4, 4: 2e-3}
    settings = {"max_steps": 6, "warmup_ratio": 0.5, "offset_lr_multiplier": 0.1, "learning_rate_changes": changes}
    train(arguments(**settings), [rates])
    peaks = [RATE, RATE, 3e-4, 3e-4, 2e-3, 2e-3]
    schedule = [0, 1 / 3, 2 / 3, *((1 + math.cos(math.pi * part)) / 2 for part in (0, 1 / 3, 2 / 3))]
    for step, (peak, share) in enumerate(zip(peaks, schedule, strict=True)):
        expected = {peak * share, 0.1 * peak * share}
        assert sorted(set(rates.of_steps[step])) == pytest.approx(sorted(expected)), step


def same_when_taken_over(arguments: Make, tmp_path: Path, **settings: Any) -> None:
    """A run that goes on at a change from another's checkpoint equals one with the change from the beginning."""
    ours = {"learning_rate_changes": {"2": 5e-4, "3": 2e-3}}
    theirs = {"learning_rate_changes": {"2": 5e-4, "4": 1e-2}}
    train(arguments(output_dir=str(tmp_path / "whole"), **settings, **ours))
    train(arguments(output_dir=str(tmp_path / "parent"), **settings, **theirs), [Cut()])
    shutil.copytree(tmp_path / "parent", tmp_path / "fork")
    newest, _ = last_good_checkpoint(tmp_path / "fork", deepspeed="deepspeed" in settings)
    assert newest is not None
    assert newest.name == "checkpoint-3"
    train(arguments(output_dir=str(tmp_path / "fork"), **settings, **ours), resume_from_checkpoint=True)

    whole, fork = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "fork"))
    assert all(torch.equal(weight, fork[name]) for name, weight in whole.items())
    assert logged(tmp_path / "whole") == logged(tmp_path / "fork")


def test_a_run_goes_on_from_the_checkpoint_of_one_without_its_change(arguments: Make, tmp_path: Path) -> None:
    same_when_taken_over(arguments, tmp_path, **SAVED, offset_lr_multiplier=0.1, logging_steps=1)


def test_so_it_does_with_zero2(arguments: Make, tmp_path: Path) -> None:
    same_when_taken_over(arguments, tmp_path, **SAVED, offset_lr_multiplier=0.1, deepspeed="zero2", bf16=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": -1}, "learning_rate_changes needs max_steps, but got -1; give the run's length in steps"),
        ({"max_steps": 50}, "learning_rate_changes must name steps from 1 to 49, which is before the run's end, but"),
        ({"lr_scheduler_type": "greedy"}, "learning_rate_changes needs a schedule that depends on the step alone, but"),
        (
            {"deepspeed": {"zero_optimization": {"stage": 2}, "scheduler": {"type": "WarmupLR"}}},
            "learning_rate_changes must be none where DeepSpeed's configuration has a scheduler, which would ignore it",
        ),
    ],
)
def test_changes_fit_the_run(changes: dict[str, Any], message: str) -> None:
    settings = {"max_steps": 60, "learning_rate_changes": {50: 1e-3}}
    check_settings(settings)
    with pytest.raises(SettingError) as error:
        check_settings(settings | changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_changes_are_recorded_and_read_again(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    flags = [f"--{name}={value}" for name, value in settings(max_steps=60).items()]
    changes = {"50": 3e-4 * 0.8 * 1.25, "55": 6e-4}
    args = parse_command_line([*flags, "--learning_rate_changes", json.dumps(changes)])
    assert args.training.learning_rate_changes == changes
    recorded = resolved_settings(args)
    assert recorded["learning_rate_changes"] == changes
    for text in (json.dumps(recorded), yaml.safe_dump(recorded)):
        again = parse_settings(yaml.safe_load(text))
        assert resolved_settings(again) == recorded
