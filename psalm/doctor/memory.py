"""Check 8: what a training step needs of each device's memory, and whether it is there."""

from collections.abc import Mapping
from typing import Any

from psalm.doctor.findings import Finding, Findings, advice, not_checked, ok, problem
from psalm.doctor.surroundings import Device
from psalm.doctor.units import gib
from psalm.model.memory import MemoryNeed


def check_memory(need: MemoryNeed, device: Device, values: Mapping[str, Any]) -> Findings:
    """Whether the need of one device fits into what was free of its memory before there was a model."""
    images = f"{_in_words(need)} with --per_device_train_batch_size {values['per_device_train_batch_size']}"
    if need.total <= device.free:
        return [ok(f"{images}; {gib(device.free)} are free")]
    ways = _fewer_trained(values) if need.update_is_peak else _less_memory(values)
    return [problem(f"{images}, but {gib(device.free)} are free: {ways}")]


def _in_words(need: MemoryNeed) -> str:
    """The need and what it consists of, at the larger of a step's two peaks."""
    if need.update_is_peak:
        peak = f"update of the weights {gib(need.update)}"
    else:
        peak = f"gradients {gib(need.gradients)}, activations {gib(need.activations)}"
    kept = f"weights {gib(need.weights)}, optimizer {gib(need.optimizer)}"
    return f"{gib(need.total)} per device ({kept}, {peak})"


def check_offload(zero: Mapping[str, Any]) -> Findings:
    """Nothing is estimated where DeepSpeed moves state out of the device's memory (``zero_optimization``'s offload)."""
    places = {name: (zero.get(name) or {}).get("device", "none") for name in ("offload_optimizer", "offload_param")}
    moved = [f"{name} to {place}" for name, place in places.items() if place != "none"]
    return [advice(f"not estimated, because DeepSpeed moves state away: {', '.join(moved)}")] if moved else []


def lacking(text: str, values: Mapping[str, Any], device: Device) -> Finding:
    """The doctor's one process has too little memory: so has a training, unless it divides its state over devices."""
    if values["deepspeed"] is not None and device.count > 1:
        return not_checked(f"{text}; DeepSpeed, which divides over {device.count} devices, may still train")
    return problem(f"{text}: {_less_memory(values)}")


def _less_memory(values: Mapping[str, Any]) -> str:
    """What makes a run need less memory, and is not done yet."""
    ways = [] if values["gradient_checkpointing"] else ["--gradient_checkpointing True"]
    if values["per_device_train_batch_size"] > 1:
        ways.append("a smaller --per_device_train_batch_size with more --gradient_accumulation_steps")
    ways += ["a smaller --mm_hidden_dim", "a smaller --image_size"]
    return "; ".join([*ways, *_divided(values)])


def _fewer_trained(values: Mapping[str, Any]) -> str:
    """What makes the update of the weights need less memory, and is not done yet."""
    ways = [] if values["tune_mm_mlp_adapter"] else ["--tune_mm_mlp_adapter True"]
    return "; ".join([*ways, *_divided(values)]) or "more devices"


def _divided(values: Mapping[str, Any]) -> list[str]:
    return ["--deepspeed zero2 or zero3 on several devices"] if values["deepspeed"] is None else []
