"""Check 4: what settings name on disk: DeepSpeed's configuration, the run's folder, the data of every task."""

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, unset_hf_deepspeed_config

from psalm.data.checks import DataCheck, check_data
from psalm.data.errors import DataError
from psalm.doctor.findings import Finding, Findings, advice, ok, problem, shortened
from psalm.train.checkpoint_files import last_good_checkpoint, resumed_step
from psalm.train.fields import TRUE
from psalm.train.task_data import load_task
from psalm.train.tasks import tasks_of


def check_files(
    values: Mapping[str, Any], checkpoint: str | None, world_size: int
) -> tuple[tuple[str, ...], list[Finding]]:
    """The tasks whose data are right, and what was found; one task's faults do not hide another's."""
    found = [
        *check_deepspeed(values, world_size),
        *check_output(values["output_dir"]),
        *check_checkpoint(checkpoint, values),
    ]
    right = []
    for task in tasks_of(values):
        try:
            found += check_task(values, task)
            right.append(task)
        except DataError as error:
            found.append(problem(f"{task}: {error}"))
    return tuple(right), found


def check_deepspeed(values: Mapping[str, Any], world_size: int) -> Findings:
    """DeepSpeed's configuration is a JSON object that contradicts no setting."""
    if values["deepspeed"] is None:
        return []
    if find_spec("deepspeed") is None:
        return [problem("deepspeed is given, but the package is not installed; install it or leave the setting out")]
    try:
        content = deepspeed_config(values)
    except ValueError as error:
        return [problem(error)]
    settings = SimpleNamespace(
        **values, world_size=world_size, save_on_each_node=False, fp16_full_eval=False, bf16_full_eval=False
    )
    config = HfTrainerDeepSpeedConfig(content)
    unset_hf_deepspeed_config()  # the constructor tells all of transformers that DeepSpeed is on
    config.trainer_config_process(settings)
    if config.mismatches:
        wrong = "; ".join(text.removeprefix("- ds ").replace(" vs hf ", " against ") for text in config.mismatches)
        return [problem(f"DeepSpeed's configuration contradicts settings: {wrong}; write auto there")]
    return [ok(f"DeepSpeed: ZeRO stage {zero_stage(content)}")]


def deepspeed_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The content of DeepSpeed's configuration.

    Raises:
        ValueError: it is not JSON, or no object.
    """
    given = values["deepspeed"]
    if isinstance(given, dict):
        return given
    try:
        content = json.loads(Path(given).read_text())
    except ValueError as error:
        raise ValueError(f"deepspeed must be JSON, but {given} does not parse: {error}; mend it") from error
    if not isinstance(content, dict):
        raise ValueError(f"deepspeed must be a JSON object, but {given} holds a {type(content).__name__}; mend it")
    return content


def zero_stage(config: Mapping[str, Any]) -> int:
    """What ZeRO shards: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def check_output(output_dir: str) -> Findings:
    """The run could write its folder; nothing is written."""
    existing = next(path for path in (Path(output_dir), *Path(output_dir).parents) if path.exists())
    if not existing.is_dir():
        return [problem(f"output_dir must be a folder, but {existing} is a file; choose another one")]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [problem(f"output_dir must be writable, but {existing} is not; choose another one")]
    return []


def check_checkpoint(checkpoint: str | None, values: Mapping[str, Any]) -> Findings:
    """What the run would be resumed from."""
    if checkpoint is None:
        return []
    output_dir, deepspeed = values["output_dir"], values["deepspeed"] is not None
    if checkpoint.lower() in TRUE:
        newest, rejected = last_good_checkpoint(output_dir, deepspeed=deepspeed)
        begins = "starts anew: there is no checkpoint" if newest is None else f"goes on from {newest}"
        return [*(advice(reason) for reason in rejected), ok(begins)]
    try:
        step = resumed_step(checkpoint, output_dir, deepspeed=deepspeed)
        return [ok(f"goes on after step {step} of {checkpoint}")]
    except ValueError as error:
        return [problem(error)]


def check_task(values: Mapping[str, Any], task: str) -> Findings:
    """A task's training and validation data.

    Raises:
        DataError: they are missing, damaged, or not of the format expected.
    """
    splits = load_task(values, task)
    train = check_data(splits.train, f"training data of the task {task}")
    val = check_data(splits.val, f"validation data of the task {task}")
    found = [
        ok(f"{task}: {train.samples} samples; validation: {val.samples} samples ({splits.chosen}){_opened(train, val)}")
    ]
    for what, check in (("training", train), ("validation", val)):
        if check.bad:
            found.append(advice(f"{task}: {len(check.bad)} bad images left out of {what}: {shortened(check.bad)}"))
    return found


def _opened(*checks: DataCheck) -> str:
    """That files were opened of a part of the samples only, if so."""
    opened, samples = sum(check.opened for check in checks), sum(check.samples for check in checks)
    return f"; opened the files of {opened} of them" if opened < samples else ""
