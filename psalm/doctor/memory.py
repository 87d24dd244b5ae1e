"""Check 8: what a training step needs of each device's memory, and whether it is there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psalm.doctor.findings import Finding, Findings, advice, not_checked, ok, problem
from psalm.doctor.surroundings import Device
from psalm.doctor.units import gib

FLOAT32, HALF = 4, 2
MOMENTS = 2 * FLOAT32
"""AdamW's two float32 moments of a number."""


@dataclass(frozen=True)
class Sharding:
    """How DeepSpeed divides the state of a training."""

    stage: int
    devices: int


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on each device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of them at once, as in the last backward pass of a step."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        return (
            f"{gib(self.total)} per device (weights {gib(self.weights)}, gradients {gib(self.gradients)}, "
            f"optimizer {gib(self.optimizer)}, activations {gib(self.activations)})"
        )


def memory_need(
    trained: int, frozen: int, activations: int, *, half: bool = False, sharding: Sharding | None = None
) -> MemoryNeed:
    """What a step with AdamW needs of each device (ZeRO, arXiv 1910.02054, section 3 and figure 1).

    With P trained and F frozen numbers, b bytes of each (2 where DeepSpeed trains in half precision, else 4: autocast
    keeps float32) and N devices::

        weights     b (P + F)             / N from stage 3 on
        gradients   b P                   / N from stage 2 on
        optimizer   8 P, 12 P with DeepSpeed where it keeps a float32 copy of the weights: in half precision, and
                    from stage 1 on in any    / N from stage 1 on

    Not counted: what communication needs, what the allocator wastes, the libraries' own.

    Args:
        trained: P.
        frozen: F.
        activations: bytes of one micro-batch on one device.
        half: whether the run is in bf16 or fp16.
        sharding: DeepSpeed's, or None without it.
    """
    stage, devices = (0, 1) if sharding is None else (sharding.stage, sharding.devices)
    number = HALF if half and sharding is not None else FLOAT32
    copy = FLOAT32 if sharding is not None and (half or stage >= 1) else 0

    def part(size: int, sharded_from: int) -> int:
        return -(-size // devices) if stage >= sharded_from else size

    return MemoryNeed(
        weights=part(number * (trained + frozen), 3),
        gradients=part(number * trained, 2),
        optimizer=part((MOMENTS + copy) * trained, 1),
        activations=activations,
    )


def check_memory(need: MemoryNeed, device: Device, values: Mapping[str, Any]) -> Findings:
    """Whether the need of one device fits into what was free of its memory before there was a model."""
    images = f"{need} with --per_device_train_batch_size {values['per_device_train_batch_size']}"
    if need.total <= device.free:
        return [ok(f"{images}; {gib(device.free)} are free")]
    return [problem(f"{images}, but {gib(device.free)} are free: {_less_memory(values)}")]


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
    if values["deepspeed"] is None:
        ways.append("--deepspeed zero2 or zero3 on several devices")
    return "; ".join(ways)
