"""The memory ladder: how a trial that ran out of memory is run again with less, and the same result.

Rung 0 is the trial as configured. The first rung switches gradient checkpointing on, unless it is on. Each one after it
takes the largest smaller micro-batch that divides the one before, and accumulates over more of them, so that an
optimizer step sees the same samples (and so has the same loss); evaluation batches shrink with it. The last rung has
micro-batch 1.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from psalm.model.configuration import SWIN_SIZES
from psalm.train.arguments import argument_fields
from tune.space.dependents import Dependents
from tune.space.parameters import Value

CHECKPOINTING = "gradient_checkpointing"
MICRO_BATCH = "per_device_train_batch_size"
EVAL_BATCH = "per_device_eval_batch_size"
ACCUMULATION = "gradient_accumulation_steps"

LESS_IF_TRUE = (CHECKPOINTING, "freeze_backbone", "tune_mm_mlp_adapter", "freeze_mm_mlp_adapter")
"""Arguments that need less memory where they are true."""

ALIKE = ("seg_task", "cross_image_seg_task", "refer_expressions", "fp16", "bf16", "optim", "deepspeed")
"""Arguments outside the model's that change memory one way or the other."""

WITHOUT_EFFECT = ("class_weight", "mask_weight", "dice_weight", "no_object_weight", "importance_sample_ratio")
"""Arguments of the model that do not change memory."""


def climb(settings: Mapping[str, Any], rungs: int) -> dict[str, Any]:
    """The arguments that are changed after so many rungs, with their new values.

    Args:
        settings: all arguments of the trial as configured, with the defaults of those not given.
        rungs: from 0 to ``height(settings)``.
    """
    return list(_rungs(settings))[rungs]


def height(settings: Mapping[str, Any]) -> int:
    """How many rungs there are to climb."""
    return len(list(_rungs(settings))) - 1


def _rungs(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What is changed at each rung, from rung 0 on."""
    changes: dict[str, Any] = {}
    yield changes
    if not settings[CHECKPOINTING]:
        changes = {CHECKPOINTING: True}
        yield changes
    batch, eval_batch = settings[MICRO_BATCH], settings[EVAL_BATCH]
    samples = batch * settings[ACCUMULATION]
    while batch > 1 or eval_batch > 1:
        batch = _largest_divisor_below(batch)
        eval_batch = min(eval_batch, batch)
        wanted = {MICRO_BATCH: batch, ACCUMULATION: samples // batch, EVAL_BATCH: eval_batch}
        changes = changes | {name: value for name, value in wanted.items() if value != settings[name]}
        yield changes


def _largest_divisor_below(size: int) -> int:
    return next((part for part in range(size // 2, 0, -1) if size % part == 0), 1)


def at_least_as_large(params: Mapping[str, Value], other: Mapping[str, Value], dependents: Dependents) -> bool:
    """Whether a setting of the searched arguments needs at least the memory of another one, as far as can be told.

    Every argument that can change memory must be as large or larger: numbers and true of the model's arguments, the
    image's side and the batches; Swin towers by their size. Words, precision, tasks and optimizer must be equal.
    What follows a searched argument counts too; a word (such as a tower's file) only where its leader does not count.
    One that only one of the settings has cannot be compared.
    """
    mine, others = (dict(setting) | dependents.of(setting) for setting in (params, other))
    leaders = dependents.leaders
    for name in mine | others:
        is_word = argument_fields()[name].kinds == (str,)
        if not _counts(name) or (is_word and name in leaders and _counts(leaders[name])):
            continue
        if name not in mine or name not in others or not _at_least(name, mine[name], others[name]):
            return False
    return True


def _counts(name: str) -> bool:
    """Whether an argument can change the memory that training needs."""
    if argument_fields()[name].group == "model":
        return name not in WITHOUT_EFFECT
    return name in ("image_size", MICRO_BATCH, EVAL_BATCH, CHECKPOINTING, *ALIKE)


def _at_least(name: str, value: Any, other: Any) -> bool:
    if value == other:
        return True
    if name == "swin_type":
        sizes = list(SWIN_SIZES)
        return sizes.index(value) > sizes.index(other)
    if name in ALIKE or isinstance(value, str) or isinstance(other, str) or value is None or other is None:
        return False
    return bool(value < other if name in LESS_IF_TRUE else value > other)
