"""All checks in their order, and what each needs of those before it."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from psalm.doctor.files import check_files, deepspeed_config, zero_stage
from psalm.doctor.findings import Findings, not_checked
from psalm.doctor.memory import check_memory, check_offload
from psalm.doctor.settings import Request, check_given
from psalm.doctor.speed import check_speed
from psalm.doctor.step import TaskStep, check_steps
from psalm.doctor.surroundings import Device, check_compiler, check_dependencies, check_device
from psalm.doctor.weights import check_projector, check_weights
from psalm.model.memory import Sharding, memory_need
from psalm.train.fingerprints import count_parameters
from psalm.train.tasks import tasks_of
from psalm.train.trainer import PsalmTrainer

CHECKS = ("settings", "dependencies", "device", "files", "weights", "projector", "batch", "memory", "speed")

Found = dict[str, Findings]
"""Check -> what it found, in the order of ``CHECKS``."""


def examine(request: Request, world_size: int = 1, note: Callable[[str], None] = lambda text: None) -> Found:
    """Runs every check whose prerequisites are there; nothing is trained, and nothing written that stays.

    Args:
        request: the command line.
        world_size: the processes that the run would have, one per device.
        note: is told what is being done, for whoever waits.
    """
    found: Found = {}
    values, found["settings"] = check_given(request)
    found["dependencies"] = check_dependencies()
    if values is None:
        return _and_the_rest(found, "settings")
    found["dependencies"] = [*found["dependencies"], *check_compiler(values)]
    device, found["device"] = check_device(values, world_size)
    note("files and data")
    tasks, found["files"] = check_files(values, request.checkpoint, world_size)
    if device is None or not tasks:
        return _and_the_rest(found, "device" if device is None else "files")
    with tempfile.TemporaryDirectory(prefix="psalm-doctor-") as folder:
        note("building the model")
        trainer, found["weights"] = check_weights(values, tasks, device, folder)
        if trainer is None:
            return _and_the_rest(found, "weights")
        found["projector"] = check_projector(trainer.model)
        steps, of_steps = check_steps(trainer, values, device, note)
        left_out = [not_checked(f"{task}: see files") for task in tasks_of(values) if task not in tasks]
        found["batch"] = [*of_steps, *left_out]
        if not steps:
            return _and_the_rest(found, "batch")
        found["memory"] = _memory(trainer, steps, values, device)
        note("seconds of loading and of the model")
        found["speed"] = check_speed(trainer, steps)
    return found


def _memory(trainer: PsalmTrainer, steps: Sequence[TaskStep], values: Mapping[str, Any], device: Device) -> Findings:
    sharding = None
    if values["deepspeed"] is not None:
        config = deepspeed_config(values)
        if moved := check_offload(config.get("zero_optimization", {})):
            return moved
        sharding = Sharding(zero_stage(config), device.count)
    trained = count_parameters(trainer.model, trainable=True)
    need = memory_need(
        trained,
        count_parameters(trainer.model) - trained,
        max(step.activations for step in steps),
        half=values["bf16"] or values["fp16"],
        sharding=sharding,
    )
    return check_memory(need, device, values)


def _and_the_rest(found: Found, cause: str) -> Found:
    """What was found, and that nothing else was checked because of one of the checks."""
    return found | {check: [not_checked(f"see {cause}")] for check in CHECKS if check not in found}
