"""Check 7: one micro-batch of each task, forward and backward, in the run's precision."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from psalm.data.collator import Batch
from psalm.data.schedule import TrainingSchedule
from psalm.doctor.findings import Finding, Findings, Status, advice, ok, problem, shortened
from psalm.doctor.measuring import PeakMemory
from psalm.doctor.memory import lacking
from psalm.doctor.parts import part_of, trained_parts
from psalm.doctor.surroundings import Device
from psalm.doctor.units import gib
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.memory import memory_need
from psalm.train.fingerprints import count_parameters
from psalm.train.trainer import PsalmTrainer


@dataclass(frozen=True)
class TaskStep:
    """What one micro-batch of a task came to.

    Attributes:
        task: its name.
        batch: what went in, on the device.
        losses: by name, weighted as they are summed.
        reached: the parts of the model that got a gradient other than zero.
        not_finite: the parameters whose gradient has a number that is not finite.
        activations: bytes of memory that it took for a while.
    """

    task: str
    batch: Batch
    losses: Mapping[str, float]
    reached: frozenset[str]
    not_finite: tuple[str, ...]
    activations: int


def check_steps(
    trainer: PsalmTrainer, values: Mapping[str, Any], device: Device, note: Callable[[str], None]
) -> tuple[list[TaskStep], Findings]:
    """The steps that could be made, and what was found; the model's gradients are those of the last one."""
    trained = count_parameters(trainer.model, trainable=True)
    whole = memory_need(trained, count_parameters(trainer.model) - trained, 0)
    if whole.weights + whole.gradients > device.free:
        sizes = f"weights {gib(whole.weights)} and gradients {gib(whole.gradients)}, but {gib(device.free)} are free"
        return [], [lacking(f"not tried: {sizes}", values, device)]
    prepare(trainer)
    steps: list[TaskStep] = []
    without: list[Finding] = []  # a step, each for its reason
    for task in trainer.train_dataset.datasets:
        first = first_step(trainer.train_dataset, task)
        if first is None:
            total = trainer.train_dataset.total_steps
            without.append(advice(f"{task}: none of the run's {total} steps is of this task"))
            continue
        note(f"one batch of the task {task}, forward and backward")
        try:
            steps.append(make_step(trainer, task, first))
        except torch.OutOfMemoryError:
            without.append(lacking(f"{task}: out of memory in forward or backward", values, device))
        except ValueError as error:
            without.append(problem(f"{task}: {error}"))
    found = [*(_losses(step, trainer.model) for step in steps), *without]
    if all(finding.status in (Status.OK, Status.ADVICE) for finding in found):
        found += check_gradients(steps, trained_parts(values, [step.task for step in steps]))
    return steps, found


def prepare(trainer: PsalmTrainer) -> None:
    """Puts the model into the state of a running training: its modes, and gradients of zero that are there already."""
    args, model = trainer.args, trainer.model
    model.train()
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def first_step(schedule: TrainingSchedule, task: str) -> int | None:
    """The first step of a task in a run, None if it has none."""
    return next((step for step in range(schedule.total_steps) if schedule.task(step)[0] == task), None)


def make_step(trainer: PsalmTrainer, task: str, step: int) -> TaskStep:
    """Forward and backward of the first micro-batch of the run's step number ``step``.

    Raises:
        ValueError: a sample cannot be read, or the model refuses the batch.
        torch.OutOfMemoryError: the device has too little memory.
    """
    model, schedule = trainer.model, trainer.train_dataset
    first = step * schedule.samples_per_step
    samples = range(first, first + trainer.args.per_device_train_batch_size)
    batch = send_to_device(trainer.data_collator([schedule[index] for index in samples]), trainer.args.device)
    with PeakMemory(trainer.args.device) as peak:
        losses = forward_backward(trainer, batch)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return TaskStep(
        task,
        batch,
        {name: loss.item() for name, loss in losses.items()},
        frozenset(part_of(name) for name, gradient in gradients.items() if gradient.any()),
        tuple(name for name, gradient in gradients.items() if not gradient.isfinite().all()),
        peak.growth,
    )


def forward_backward(trainer: PsalmTrainer, batch: Batch) -> dict[str, Tensor]:
    """The losses of a batch, normalised as those of a step are; their gradients take the place of earlier ones."""
    model: PsalmForSegmentation = trainer.model
    model.zero_grad(set_to_none=False)
    with trainer.accelerator.autocast():
        output = model(**batch, num_masks=_count(batch, "mask_labels"), num_regions=_count(batch, "region_labels"))
    assert output.loss is not None, "a batch of training has labels"
    assert output.losses is not None
    if output.loss.requires_grad:
        output.loss.backward()
    return output.losses


def _count(batch: Batch, labels: str) -> float:
    """All images' masks or regions; none where the task has no such labels."""
    return float(sum(map(len, batch.get(labels, ()))))


def _finite(step: TaskStep) -> bool:
    return all(map(math.isfinite, step.losses.values()))


def _losses(step: TaskStep, model: PsalmForSegmentation) -> Finding:
    shown = ", ".join(f"{name} {value:.3g}" for name, value in step.losses.items())
    if _finite(step):
        return ok(f"{step.task}: loss {sum(step.losses.values()):.4g} ({shown})")
    bad = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    cause = f"weights are not finite: {shortened(bad)}" if bad else "weights are finite; try a wider precision"
    return problem(f"{step.task}: loss is not finite ({shown}); {cause}")


def check_gradients(steps: Sequence[TaskStep], trained: Collection[str]) -> Findings:
    """Gradients are finite, and reach every part that should train in a step of some task."""
    found = [
        problem(f"{step.task}: gradients are not finite: {shortened(step.not_finite)}")
        for step in steps
        if step.not_finite
    ]
    reached = {part for step in steps for part in step.reached}
    if idle := [part for part in trained if part not in reached]:
        found.append(problem(f"no gradient reaches what should be trained: {', '.join(idle)}"))
    return found or [ok(f"gradients are finite and reach: {', '.join(trained)}")]
