"""Before any compute: do the files that settings name exist, are they of the format expected, do they fit the sizes?"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from psalm.data.checks import check_data
from psalm.data.errors import DataError
from psalm.model.configuration import PsalmConfig
from psalm.train.argument_groups import DataArguments, ModelArguments
from psalm.train.fields import SettingError, nearest, unset_variables
from psalm.train.task_data import load_task
from psalm.train.tasks import tasks_of

if TYPE_CHECKING:
    from psalm.model.language_model.llava_phi import PsalmForSegmentation

DEEPSPEED_FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "deepspeed"
"""Where a DeepSpeed configuration given by name is looked for: ``zero2`` is ``zero2.json`` there."""

PATHS = (
    *(
        field.name
        for field in (*dataclasses.fields(ModelArguments), *dataclasses.fields(DataArguments))
        if field.metadata.get("path")
    ),
    "output_dir",
    "checkpoint_budget_dir",
)
"""The settings that hold a path."""


def deepspeed_file(name: str) -> str | dict[str, Any] | None:
    """The path of a DeepSpeed configuration, given by path, by name, as JSON text, or ``none``.

    Raises:
        SettingError: there is no such file, or the JSON does not parse.
    """
    if name.lower() in ("none", "null", ""):
        return None
    if name.lstrip().startswith("{"):
        return _json("deepspeed", name, name)
    known = sorted(path.stem for path in DEEPSPEED_FOLDER.glob("*.json"))
    if name in known:
        return str(DEEPSPEED_FOLDER / f"{name}.json")
    path = Path(os.path.expandvars(name)).expanduser()
    if not path.is_file():
        hint = nearest(name, known) or f"; known names are {', '.join(known) or '(none)'}"
        raise SettingError(f"deepspeed must be a JSON file or a name, but there is no file {name!r}{hint}")
    return str(path.resolve())


def config_overrides(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that are fields of ``PsalmConfig``, besides ``swin_type``; None means not given."""
    return {
        name: value for name, value in values.items() if name in PsalmConfig.__annotations__ and name != "swin_type"
    }


def check_variables(*runs: Mapping[str, Any]) -> None:
    """The environment variables in paths are set; ``runs`` are the settings of each run, whose faults are told at once.

    Raises:
        SettingError: one line with every variable that is not set, or is empty, and the settings that hold it.
    """
    holders: dict[str, dict[str, None]] = {}
    for name in PATHS:
        for value in (settings.get(name) for settings in runs):
            for variable in unset_variables(value) if isinstance(value, str) else ():
                holders.setdefault(variable, {})[name] = None
    held_by: dict[tuple[str, ...], list[str]] = {}
    for variable, names in holders.items():
        held_by.setdefault(tuple(names), []).append(variable)
    if holders:
        listed = ", ".join(f"{', '.join(variables)} ({', '.join(names)})" for names, variables in held_by.items())
        raise SettingError(f"not set in the environment: {listed}; export {'them' if len(holders) > 1 else 'it'}")


def check_files(values: Mapping[str, Any]) -> None:
    """Checks what the values of all settings name.

    Raises:
        SettingError: one line that says which setting, which file, and what is wrong with it.
    """
    check_variables(values)
    if isinstance(values["deepspeed"], str):
        _json("deepspeed", values["deepspeed"], Path(values["deepspeed"]).read_text())
    _check_device(values)
    shapes_of(values)
    _check_data(values)


def _check_device(values: Mapping[str, Any]) -> None:
    on_cpu = values["use_cpu"] or not torch.accelerator.is_available()
    if values["fp16"] and on_cpu:
        raise SettingError("fp16 must be false on a CPU, but got true; use bf16 or leave both out")
    if values["bf16"] and not on_cpu and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise SettingError("bf16 must be false on this GPU, which has no bfloat16, but got true; use fp16")


def shapes_of(values: Mapping[str, Any]) -> "PsalmForSegmentation":
    """The model that the values of all settings ask for, as shapes alone.

    Raises:
        SettingError: the files of its weights do not exist, or do not fit.
    """
    # Here, because it brings the whole model: a setting that is wrong by itself is refused in half the time.
    from psalm.model.checkpoints import check_model

    adapter = values["pretrain_mm_mlp_adapter"]
    if adapter is not None and not Path(adapter).is_file():
        raise SettingError(f"pretrain_mm_mlp_adapter must be a file, but there is none at {adapter}; give its path")
    try:
        return check_model(
            values["model_name_or_path"],
            values["vision_tower"],
            values["swin_type"],
            pretrain_mm_mlp_adapter=adapter,
            **config_overrides(values),
        )
    except ValueError as error:
        raise SettingError(" ".join(str(error).split())) from error


def _check_data(values: Mapping[str, Any]) -> None:
    for task in tasks_of(values):
        try:
            splits = load_task(values, task)
            for name, data in (("training", splits.train), ("validation", splits.val)):
                check_data(data, f"{name} data of the task {task}")
        except DataError as error:
            raise SettingError(f"{task} data: {error}") from error


def _json(name: str, source: str, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise SettingError(f"{name} must be JSON, but {source!r} does not parse: {error}; mend it") from error
    if not isinstance(content, dict):
        raise SettingError(f"{name} must be a JSON object, but {source!r} holds a {type(content).__name__}; mend it")
    return content
