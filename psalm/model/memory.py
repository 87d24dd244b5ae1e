"""What a training step needs of each device's memory, and how DeepSpeed divides it."""

from dataclasses import dataclass

FLOAT32, HALF = 4, 2
"""Bytes of a number."""
MOMENTS = 2 * FLOAT32
"""AdamW's two float32 moments of a number."""
UPDATE = 2 * FLOAT32
"""What AdamW's update takes of a number for a while: its float32 gradient, and a root of its second moment."""


@dataclass(frozen=True)
class Sharding:
    """How DeepSpeed divides the state of a training."""

    stage: int
    devices: int


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on each device.

    Attributes:
        weights: of the whole model, as they are kept on the device.
        gradients: of what is trained.
        optimizer: its moments, and the float32 weights that it updates where the model has others.
        activations: what forward and backward of one micro-batch take for a while.
        update: what the optimizer takes for a while to update the weights, gradients included.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    update: int

    @property
    def total(self) -> int:
        """The larger of a step's two peaks: in its last backward pass, or while its optimizer updates the weights."""
        return self.weights + self.optimizer + max(self.gradients + self.activations, self.update)

    @property
    def update_is_peak(self) -> bool:
        """Whether the second peak is the larger one."""
        return self.update > self.gradients + self.activations


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
        update      8 P                   / N from stage 1 on

    The update, which is not in the paper, takes the place of activations and gradients: DeepSpeed's float32 copy of the
    gradients (elsewhere themselves), and the roots of AdamW's second moments of all weights at once (torch's default
    on a GPU).

    Not counted: what communication needs, the weights that stage 3 gathers to compute with (at most
    ``stage3_max_live_parameters``), what the allocator wastes, the libraries' own.

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
        update=part(UPDATE * trained, 1),
    )
