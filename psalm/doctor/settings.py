"""Check 1: names, types, ranges and combinations of what was asked for, and flags without effect."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psalm.constants import CROSS_IMAGE, REFERRING, REGION
from psalm.doctor.findings import Findings, advice, ok, problem
from psalm.train.arguments import RENAMED, RETIRED, SettingError, argument_fields, check_settings, with_defaults
from psalm.train.command_line import read_flags
from psalm.train.inputs import check_variables
from psalm.train.task_data import SOURCES
from psalm.train.tasks import tasks_of

OF_A_CALL = ("resume_from_checkpoint", "local_rank")
"""Flags of the training that are no settings."""
OF_DEFORMABLE = ("mm_hidden_dim", "mm_n_heads", "mm_n_points", "mm_reference_points")


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Attributes:
        given: settings by name, not checked yet.
        retired: flags of older scripts, which the training ignores.
        checkpoint: what the run would be resumed from.
    """

    given: dict[str, Any]
    retired: tuple[str, ...] = ()
    checkpoint: str | None = None


def read_command_line(argv: Sequence[str]) -> Request:
    """Reads what ``psalm/train/train.py`` reads, and checks no value.

    Raises:
        SettingError: it cannot be read: an unknown flag, a value without a flag, a file that is no YAML mapping.
        SystemExit: after ``--help``.
    """
    given = read_flags(argv, argument_fields(), extra=OF_A_CALL, switches=RETIRED, renamed=RENAMED)
    typed = {word.removeprefix("--").partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    retired = tuple(sorted(RETIRED & typed))
    call = {name: given.pop(name, None) for name in (*OF_A_CALL, *retired)}
    return Request(given, retired, call["resume_from_checkpoint"])


def check_given(request: Request) -> tuple[dict[str, Any] | None, Findings]:
    """Every setting's value with the defaults of those not given, None if one is wrong; and what was found."""
    try:
        checked = check_settings(request.given)
        values = with_defaults(checked)
        check_variables(values)
    except SettingError as error:
        return None, [problem(error)]
    found = [ok(f"{len(checked)} settings given, {len(values) - len(checked)} at their defaults")]
    if request.retired:
        found.append(advice(f"no effect any more: {_flags(request.retired)}"))
    for reason, names in _without_effect(values):
        if idle := [name for name in names if name in checked]:
            found.append(advice(f"no effect, because {reason}: {_flags(idle)}"))
    return values, found


def _without_effect(values: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str]]]:
    """Why settings have no effect beside the others, and which."""
    tasks = tasks_of(values)
    if values["mm_projector_type"] != "deformable":
        yield f"mm_projector_type is {values['mm_projector_type']}", OF_DEFORMABLE
    if values["max_steps"] > 0:
        yield "max_steps is given", ("num_train_epochs",)
    if values["warmup_steps"] > 0:
        yield "warmup_steps is given", ("warmup_ratio",)
    for strategy, steps in (("eval_strategy", "eval_steps"), ("save_strategy", "save_steps")):
        if values[strategy] == "no":
            yield f"{strategy} is no", (steps,)
    if len(tasks) == 1:
        yield f"{tasks[0]} is the only task", ("data_ratio",)
    if REFERRING not in tasks:
        yield "the run has no task referring", ("refer_expressions", "eval_refer_split")
    if not {REGION, CROSS_IMAGE} & set(tasks):
        yield "the run has no task region or cross_image", ("region_mask_type",)
    for task, sources in SOURCES.items():
        if task not in tasks:
            named = {name for source in sources for name in (source.flag, source.folder)} - {"image_folder"}
            yield f"the run has no task {task}", sorted(named | {f"eval_{name}" for name in named})


def _flags(names: Sequence[str]) -> str:
    return ", ".join(f"--{name}" for name in names)
