"""Checks 2 and 3: installed packages, tools that compile, and the device."""

import importlib.metadata
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement

from psalm.doctor.findings import Finding, Findings, advice, ok, problem
from psalm.doctor.units import gib

DISTRIBUTION = "psalm-deformable"
INSTALL = "pip install -c constraints.txt -e ."
COMPILERS = ("c++", "g++", "clang++")
FULL_SIZE = 2**30
"""Bytes of weights from which training on a CPU is more than a try."""


def check_dependencies() -> Findings:
    """Every requirement of the installed distribution, extras left out."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return [problem(f"{DISTRIBUTION} is not installed, so its requirements are not known; {INSTALL}")]
    return check_requirements(requirements)


def check_requirements(requirements: Iterable[str]) -> Findings:
    """Requirements as of PEP 508: each is installed in a version that fits; those of extras are left out."""
    needed = [
        requirement
        for requirement in map(Requirement, requirements)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]
    wrong = [finding for requirement in needed if (finding := _unmet(requirement)) is not None]
    return wrong or [ok(f"{len(needed)} packages, all in versions that fit")]


def _unmet(requirement: Requirement) -> Finding | None:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return problem(f"{requirement.name} is not installed, but {requirement} is needed; {INSTALL}")
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return problem(f"{requirement.name} {version} is installed, but {requirement} is needed; {INSTALL}")


def check_compiler(values: Mapping[str, Any]) -> Findings:
    """What DeepSpeed needs to compile its operations for GPUs, where they may be wanted."""
    if values["deepspeed"] is None or _on_cpu(values):
        return []
    lacking = [] if any(map(shutil.which, COMPILERS)) else ["a C++ compiler"]
    lacking += [] if shutil.which("ninja") else ["ninja"]
    if not lacking:
        return []
    return [advice(f"{' and '.join(lacking)} not found: DeepSpeed cannot compile operations of its own")]


@dataclass(frozen=True)
class Device:
    """What each process of the run would train on.

    Attributes:
        kind: torch's name of its type.
        free: bytes that are free before a model is there: of its own memory, or a process's share of the machine's.
        count: how many the run would have, one for each process.
    """

    kind: str
    free: int
    count: int = 1


def check_device(values: Mapping[str, Any], count: int = 1) -> tuple[Device | None, Findings]:
    """The device, None if it cannot compute in the precision asked for; and what was found."""
    device, found = _cpu(count) if _on_cpu(values) else _accelerator(count)
    if values["fp16"] and device.kind == "cpu":
        return None, [*found, problem("fp16 must be false on a CPU, but got true; use bf16 or leave both out")]
    if values["bf16"] and device.kind == "cuda" and not torch.cuda.is_bf16_supported():
        return None, [*found, problem("bf16 must be false on this GPU, which has no bfloat16, but got true; use fp16")]
    weights = sum(_weight_bytes(values[name]) for name in ("model_name_or_path", "vision_tower"))
    if device.kind == "cpu" and weights >= FULL_SIZE:
        found.append(advice(f"{gib(weights)} of weights on a CPU: a try may work, a training takes very long"))
    return device, found


def _on_cpu(values: Mapping[str, Any]) -> bool:
    return bool(values["use_cpu"]) or not torch.accelerator.is_available()


def _cpu(count: int) -> tuple[Device, list[Finding]]:
    free = psutil.virtual_memory().available
    return Device("cpu", free // count, count), [ok(f"CPU, torch threads: {torch.get_num_threads()}, {gib(free)} free")]


def _accelerator(count: int) -> tuple[Device, list[Finding]]:
    current = torch.accelerator.current_accelerator()
    assert current is not None, "the caller has asked"
    if current.type != "cuda":
        free = psutil.virtual_memory().available
        return Device(current.type, free // count, count), [ok(f"{current.type}, {gib(free)} of the machine free")]
    free, total = torch.cuda.mem_get_info()
    gpus = torch.cuda.device_count()
    found = [ok(f"{gpus} x {torch.cuda.get_device_name()}, {gib(total)} each, {gib(free)} free on the first")]
    if gpus > 1 and count == 1:
        found.append(advice("several GPUs: start the training with deepspeed, or choose one by CUDA_VISIBLE_DEVICES"))
    return Device("cuda", free, count), found


def _weight_bytes(folder: str) -> int:
    """Bytes of weights in a folder; none if it is no folder, as the built-in ones are not."""
    files = (file for pattern in ("*.safetensors", "*.bin") for file in Path(folder).glob(pattern))
    return sum(file.stat().st_size for file in files)
