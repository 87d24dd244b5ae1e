"""Parameters and memory of the model at full size: ``python -m psalm.model.sizes [--json]``.

For Swin-B and Swin-L and each mm_hidden_dim: parameters by part; weights, gradients and optimizer state under DeepSpeed
(bf16, float32 master weights, AdamW) by ZeRO stage and number of GPUs; activations with and without gradient
checkpointing; what a training step needs of each GPU, and how many images fit on a card. Nothing of that size is
allocated: parameters are counted on torch's meta device, activations on fake tensors.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedConfig

from psalm.model.activations import StepSizes, step_activations
from psalm.model.configuration import PsalmConfig
from psalm.model.language_weights import read_language_config
from psalm.model.memory import MemoryNeed, Sharding, memory_need
from psalm.model.parameters import (
    DEFORMABLE,
    PARTS,
    PROJECTOR,
    VISION_TOWER,
    count_parts,
    meta_model,
    published_parameters,
)

SWIN_TYPES = ("base", "large")
WIDTHS = (128, 256, 512, 1024)
"""Values of ``mm_hidden_dim``."""
STAGES, GPUS = (0, 1, 2, 3), (1, 2, 4, 8)

WHOLE, PROJECTORS = "whole model", "projectors only"
"""What is trained: everything but the vision tower, or the two projectors (``--tune_mm_mlp_adapter True``)."""
Kind = tuple[str, bool]
"""Of a step: what is trained, and whether with ``--gradient_checkpointing True``."""
KINDS: tuple[Kind, ...] = ((WHOLE, False), (WHOLE, True), (PROJECTORS, False), (PROJECTORS, True))

CARDS = (24, 40, 80)
"""GiB of usual GPUs."""
RESERVE = 2 * 2**30
"""Bytes of a GPU that a step had better not count on: CUDA's and NCCL's own, work areas of cuDNN, fragmentation."""
WIDE = 130
"""Columns where there is no terminal."""


@dataclass(frozen=True)
class Sizes:
    """Those of the model with one tower and one width of the deformable projector.

    Attributes:
        swin_type: the tower's.
        mm_hidden_dim: the width.
        parameters: part -> how many.
        step: the micro-batch.
        activations: kind -> bytes of the micro-batch.
    """

    swin_type: str
    mm_hidden_dim: int
    parameters: dict[str, int]
    step: StepSizes
    activations: dict[Kind, int]

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())

    def trained(self, what: str) -> int:
        """How many parameters are trained."""
        if what == PROJECTORS:
            return self.parameters[PROJECTOR] + self.parameters[DEFORMABLE]
        return self.total - self.parameters[VISION_TOWER]

    def need(self, kind: Kind, stage: int, gpus: int) -> MemoryNeed:
        """What a step needs of each GPU."""
        trained = self.trained(kind[0])
        sharding = Sharding(stage, gpus)
        return memory_need(trained, self.total - trained, self.activations[kind], half=True, sharding=sharding)

    def images(self, kind: Kind, stage: int, gpus: int, card: int) -> int:
        """The largest micro-batch for GPUs of ``card`` GiB; activations grow with the number of images."""
        need = self.need(kind, stage, gpus)
        room = card * 2**30 - RESERVE - need.weights - need.optimizer
        if room < need.update:
            return 0
        return max(room - need.gradients, 0) * self.step.images // need.activations


def all_sizes(step: StepSizes, text_config: PreTrainedConfig | None = None) -> list[Sizes]:
    """For each tower and width; ``text_config`` is the LLM's where that is not Phi-1.5.

    What depends on the tower and on the width is alive at the end of the forward pass, where a step without
    checkpointing has its peak, and grows linearly with the width. So steps of each kind are run for one model only;
    what another tower and another width add to the first kind, they add at most to every kind.
    """

    def config(swin_type: str, width: int) -> PsalmConfig:
        return PsalmConfig(swin_type=swin_type, mm_hidden_dim=width, text_config=text_config)

    (tower, *towers), narrow, wide = SWIN_TYPES, WIDTHS[0], WIDTHS[-1]
    cases = [
        *((tower, narrow, kind) for kind in KINDS),
        *((other, narrow, KINDS[0]) for other in towers),
        (tower, wide, KINDS[0]),
    ]
    taken = {
        (swin_type, width, kind): step_activations(
            config(swin_type, width), step, projectors_only=kind[0] == PROJECTORS, gradient_checkpointing=kind[1]
        )
        for swin_type, width, kind in _shown(cases)
    }
    first = taken[tower, narrow, KINDS[0]]
    of_width = taken[tower, wide, KINDS[0]] - first

    def activations(swin_type: str, width: int, kind: Kind) -> int:
        of_tower = taken[swin_type, narrow, KINDS[0]] - first
        return taken[tower, narrow, kind] + of_tower + of_width * (width - narrow) // (wide - narrow)

    return [
        Sizes(
            swin_type,
            width,
            count_parts(meta_model(config(swin_type, width))),
            step,
            {kind: activations(swin_type, width, kind) for kind in KINDS},
        )
        for swin_type, width in product(SWIN_TYPES, WIDTHS)
    ]


def _shown(cases: Sequence[tuple[str, int, Kind]]) -> Iterable[tuple[str, int, Kind]]:
    """The cases, with a bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    return track(cases, "steps on fake tensors", console=console, transient=True, disable=not console.is_terminal)


def as_json(sizes: Sequence[Sizes]) -> dict[str, Any]:
    """Everything; memory in bytes. ``parameters`` are those of the published models."""
    return {
        "parameters": published_parameters(),
        "step": asdict(sizes[0].step),
        "models": [
            {
                "swin_type": each.swin_type,
                "mm_hidden_dim": each.mm_hidden_dim,
                "parameters": {**each.parameters, "total": each.total},
                "steps": [
                    {"trained": kind[0], "gradient_checkpointing": kind[1], "zero_stage": stage, "gpus": gpus}
                    | asdict(each.need(kind, stage, gpus))
                    | {"total": each.need(kind, stage, gpus).total}
                    | {"images_per_gpu": {f"{card} GiB": each.images(kind, stage, gpus, card) for card in CARDS}}
                    for kind, stage, gpus in product(KINDS, STAGES, GPUS)
                ],
            }
            for each in sizes
        ],
    }


def tables(sizes: Sequence[Sizes]) -> dict[str, Table]:
    """What is printed, by title."""
    step = sizes[0].step
    images = f"{step.images} image{'s' if step.images > 1 else ''} of {step.image_size} x {step.image_size}"
    width = PsalmConfig.mm_hidden_dim
    return {
        "Parameters, millions": parameter_table(sizes),
        f"Activations of {images}, GiB; with: --gradient_checkpointing True": activation_table(sizes),
        **{
            f"A step with {images} on each GPU, GiB: {what}, mm_hidden_dim {width}": step_table(
                [each for each in sizes if each.mm_hidden_dim == width], what
            )
            for what in (WHOLE, PROJECTORS)
        },
    }


def parameter_table(sizes: Sequence[Sizes]) -> Table:
    """Millions of parameters by part."""
    table = _table(["Swin", "mm_hidden_dim"], [*PARTS, "total"])
    for each in sizes:
        counts = [*each.parameters.values(), each.total]
        table.add_row(each.swin_type, str(each.mm_hidden_dim), *(f"{count / 1e6:,.1f}" for count in counts))
    return table


def activation_table(sizes: Sequence[Sizes]) -> Table:
    """GiB of activations by kind of step."""
    columns = [f"{what}, {'with' if checkpointing else 'without'}" for what, checkpointing in KINDS]
    table = _table(["Swin", "mm_hidden_dim"], columns)
    for each in sizes:
        table.add_row(each.swin_type, str(each.mm_hidden_dim), *(_gib(each.activations[kind]) for kind in KINDS))
    return table


def step_table(sizes: Sequence[Sizes], what: str) -> Table:
    """GiB of a step by tower, ZeRO stage and number of GPUs; and the largest micro-batches, with checkpointing."""
    columns = ["weights", "gradients", "optimizer", "step", "with checkpointing"]
    table = _table(["Swin", "ZeRO", "GPUs"], [*columns, *(f"images on {card} GiB" for card in CARDS)])
    plain, checkpointed = (kind for kind in KINDS if kind[0] == what)
    for each in sizes:
        for stage, gpus in [(0, 1), *product(STAGES[1:], GPUS[1:])]:
            need = each.need(plain, stage, gpus)
            table.add_row(
                each.swin_type,
                str(stage) if stage else "any",
                str(gpus),
                *map(_gib, (need.weights, need.gradients, need.optimizer, need.total)),
                _gib(each.need(checkpointed, stage, gpus).total),
                *(str(each.images(checkpointed, stage, gpus, card) or "-") for card in CARDS),
            )
    return table


def _table(names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


def main(argv: Sequence[str]) -> int:
    """Prints; returns the exit code, 2 where an argument is wrong."""
    options = _parser().parse_args(argv)
    try:
        text_config = None if options.llm is None else read_language_config(options.llm)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sizes = all_sizes(StepSizes(images=options.batch, image_size=options.image_size), text_config)
    if options.json:
        sys.stdout.write(json.dumps(as_json(sizes), indent=2) + "\n")
        return 0
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    for title, table in tables(sizes).items():
        console.print(title, style="bold", highlight=False)
        console.print(table)
        console.print()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m psalm.model.sizes", description=__doc__)
    parser.add_argument("--json", action="store_true", help="everything, for machines")
    parser.add_argument("--llm", type=Path, metavar="DIR", help="the LLM's folder; Phi-1.5 if not given")
    parser.add_argument("--batch", type=_at_least(1), default=StepSizes.images, help="images per GPU and micro-batch")
    parser.add_argument(
        "--image_size", type=_at_least(32), default=StepSizes.image_size, help="side of the padded square in pixels"
    )
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, but got {text!r}")
        return int(text)

    return number


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
