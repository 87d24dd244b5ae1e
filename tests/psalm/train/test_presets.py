"""The presets that are shipped can be used as they are, and there is one for every task."""

from pathlib import Path
from typing import Any

import pytest

from psalm.constants import TASKS
from psalm.train.arguments import argument_fields, check_settings
from psalm.train.command_line import read_config
from psalm.train.tasks import ratios_of, tasks_of

FOLDER = Path(__file__).resolve().parents[3] / "experiments" / "train"
PRESETS = sorted(FOLDER.glob("*.yaml"))


def settings_of(preset: Path) -> dict[str, Any]:
    return {name: field.default for name, field in argument_fields().items()} | check_settings(read_config(str(preset)))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_preset_is_accepted_and_trains_the_deformable_module(preset: Path) -> None:
    settings = settings_of(preset)
    assert settings["mm_projector_type"] == "deformable"
    assert (settings["mm_hidden_dim"], settings["mm_n_heads"], settings["mm_n_points"]) == (256, 8, 4)
    assert settings["offset_lr_multiplier"] == 0.1, "as Deformable DETR"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_preset(task: str) -> None:
    assert tasks_of(settings_of(FOLDER / f"{task}.yaml")) == (task,)


def test_the_mixture_has_all_tasks() -> None:
    settings = settings_of(FOLDER / "mixed.yaml")
    assert tasks_of(settings) == TASKS
    assert ratios_of(settings).keys() == set(TASKS)
