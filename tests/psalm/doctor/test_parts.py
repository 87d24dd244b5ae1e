"""Every parameter belongs to a part, and what should train is what a run trains."""

from collections.abc import Callable
from typing import Any

import pytest

from psalm.constants import TASKS
from psalm.doctor.parts import PARTS, part_of, trained_parts
from psalm.train.trainer import PsalmTrainer

Build = Callable[..., tuple[PsalmTrainer, dict[str, Any]]]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"train_backbone": True},
        {"freeze_backbone": True},
        {"tune_mm_mlp_adapter": True},
        {"freeze_mm_mlp_adapter": True, "freeze_backbone": True, "train_backbone": True},
        {"mm_projector_type": "swin_conv"},
    ],
    ids=str,
)
def test_parts_that_should_train_are_those_that_a_run_trains(build: Build, flags: dict[str, Any]) -> None:
    trainer, settings = build(**flags)
    trained = {part_of(name) for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert set(trained_parts(settings, TASKS)) == trained


def test_no_part_is_empty(build: Build) -> None:
    trainer, _ = build()
    assert {part_of(name) for name, _ in trainer.model.named_parameters()} == set(PARTS)


def test_heads_of_other_tasks_need_not_train(build: Build) -> None:
    _, settings = build()
    heads = {"class head", "SEG head", "region head"}
    assert heads & set(trained_parts(settings, ["semantic"])) == {"class head"}
    assert heads & set(trained_parts(settings, ["referring", "cross_image"])) == {"SEG head", "region head"}
