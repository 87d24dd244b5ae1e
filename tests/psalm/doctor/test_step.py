"""One micro-batch of each task: what the training does first, and what can go wrong with it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from psalm.doctor import step as step_module
from psalm.doctor.findings import Status
from psalm.doctor.step import TaskStep, check_gradients, check_steps, first_step, make_step, prepare
from psalm.doctor.surroundings import Device
from psalm.train.trainer import PsalmTrainer

Build = Callable[..., tuple[PsalmTrainer, dict[str, Any]]]
CPU = Device("cpu", 2**40)
TASKS = ("panoptic", "semantic", "instance", "referring", "region", "cross_image")


def silent(text: str) -> None:
    """Nobody waits."""


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"gradient_checkpointing": True}], ids=str)
def test_losses_are_those_that_the_training_logs_first(build: Build, precision: dict[str, Any]) -> None:
    options = {"max_steps": 1, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no", **precision}
    trainer, settings = build(**options)
    (step,), _ = check_steps(trainer, settings, CPU, silent)
    trainer, _ = build(**options)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {name: logged[name] for name in step.losses} == pytest.approx(dict(step.losses), rel=1e-6)


def test_every_task_is_stepped_and_reaches_every_part(build: Build) -> None:
    trainer, settings = build(TASKS)
    noted: list[str] = []
    steps, found = check_steps(trainer, settings, CPU, noted.append)
    assert [step.task for step in steps] == list(TASKS)
    assert noted[3] == "one batch of the task referring, forward and backward"
    assert [finding.status for finding in found] == [Status.OK] * 7
    assert found[4].text.startswith("region: loss ")
    assert "loss_region_class" in found[4].text
    assert found[-1].text == (
        "gradients are finite and reach: projector, deformable projector, LLM, seg queries, pixel decoder, "
        "class head, SEG head, region head, predictor"
    )


def test_the_batch_is_that_of_the_tasks_first_step(build: Build) -> None:
    trainer, _ = build(("panoptic", "region"), gradient_accumulation_steps=3)
    schedule = trainer.train_dataset
    first = first_step(schedule, "region")
    assert first is not None
    assert [schedule.task(step)[0] for step in range(first)] == ["panoptic"] * first
    prepare(trainer)
    batch = make_step(trainer, "region", first).batch
    rows = [schedule[index] for index in range(first * 6, first * 6 + 2)]
    assert batch["sample_ids"].tolist() == [row.sample_id for row in rows]
    assert batch["random_keys"].tolist() == [row.random_key for row in rows]


def test_a_task_without_a_step_is_told(build: Build) -> None:
    trainer, settings = build(("panoptic", "region"), max_steps=1)
    missing = "region" if trainer.train_dataset.task(0)[0] == "panoptic" else "panoptic"
    _, found = check_steps(trainer, settings, CPU, silent)
    assert [finding.status for finding in found] == [Status.OK, Status.ADVICE, Status.OK]
    assert found[1].text == f"{missing}: none of the run's 1 steps is of this task"


def test_losses_that_are_not_finite_are_named_with_their_cause(build: Build) -> None:
    trainer, settings = build()
    trainer.model.seg_query.data[0, 0] = torch.nan
    (step,), (finding,) = check_steps(trainer, settings, CPU, silent)
    assert finding.status is Status.PROBLEM
    assert finding.text.startswith("panoptic: loss is not finite (loss_mask nan, loss_dice nan, ")
    assert finding.text.endswith("; weights are not finite: seg_query")
    assert step.task == "panoptic"


def test_a_model_that_is_frozen_gets_no_gradient(build: Build) -> None:
    trainer, settings = build()
    trainer.model.requires_grad_(False)
    _, found = check_steps(trainer, settings, CPU, silent)
    assert (found[-1].status, found[-1].text) == (
        Status.PROBLEM,
        "no gradient reaches what should be trained: projector, deformable projector, LLM, seg queries, pixel decoder, "
        "class head, predictor",
    )


def test_a_part_that_is_cut_off_is_named(build: Build) -> None:
    trainer, settings = build()
    trainer.model.zero_deformable_tokens = True
    _, found = check_steps(trainer, settings, CPU, silent)
    assert found[-1].text == "no gradient reaches what should be trained: deformable projector"


def test_gradients_that_are_not_finite_are_named() -> None:
    steps = [
        TaskStep("panoptic", {}, {}, frozenset({"LLM"}), (), 0),
        TaskStep("region", {}, {}, frozenset(), ("a", "b", "c", "d"), 0),
    ]
    (finding,) = check_gradients(steps, ["LLM"])
    assert (finding.status, finding.text) == (
        Status.PROBLEM,
        "region: gradients are not finite: a, b, c and 1 more",
    )


def test_running_out_of_memory_is_a_problem(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(step_module, "forward_backward", fail)
    trainer, settings = build()
    steps, (finding,) = check_steps(trainer, settings, CPU, silent)
    assert steps == []
    assert finding.status is Status.PROBLEM
    assert finding.text.startswith("panoptic: out of memory in forward or backward: --gradient_checkpointing True; ")


def test_what_cannot_fit_is_not_tried(build: Build) -> None:
    trainer, settings = build()
    steps, (finding,) = check_steps(trainer, settings, Device("cpu", 2**20), silent)
    assert steps == []
    assert finding.status is Status.PROBLEM
    assert finding.text.startswith("not tried: weights ")
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_batch_that_the_model_refuses_is_a_problem(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, settings = build()

    def refuse(**batch: Any) -> None:
        raise ValueError("no such task")

    monkeypatch.setattr(trainer.model, "forward", refuse)
    _, (finding,) = check_steps(trainer, settings, CPU, silent)
    assert (finding.status, finding.text) == (Status.PROBLEM, "panoptic: no such task")
