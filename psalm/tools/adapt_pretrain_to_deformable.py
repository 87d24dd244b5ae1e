"""Turns baseline weights into a start for deformable training, which goes on from what the baseline has learnt.

    python -m psalm.tools.adapt_pretrain_to_deformable IN OUT [--mm_hidden_dim 256] [--mm_n_heads 8] ...

===========================================  =========================================================================
IN                                           OUT
===========================================  =========================================================================
a file: a baseline projector, as PSALM's     a safetensors file for ``--pretrain_mm_mlp_adapter``
mm_projector.bin
a folder: a whole baseline checkpoint, the   a folder with weights, configuration and tokenizer for
released one or one of ours                  ``--model_name_or_path``
===========================================  =========================================================================

What IN holds is kept bit for bit, under our names. A deformable projector is added, drawn as for any training, but such
that its tokens are all zero: ``psalm.model.deformable_start`` says why. The channels of the Swin and the width of the
language model are those of IN.
"""

import argparse
import functools
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from psalm.model.checkpoints import build_model
from psalm.model.configuration import SWIN_SIZES, SWIN_STAGES, PsalmConfig
from psalm.model.deformable_start import start_with_zero_tokens
from psalm.model.filling import fill
from psalm.model.key_report import KeyReport
from psalm.model.multimodal_projector.builder import build_projector
from psalm.model.projector_weights import DEFORMABLE, projector_name
from psalm.model.psalm_weights import is_whole_checkpoint
from psalm.model.weight_files import BUILTIN, CONFIG_FILE, Weights, open_weights, read_json
from psalm.train.arguments import argument_fields, check_setting
from psalm.train.quiet import quiet_libraries

SETTINGS = ("mm_hidden_dim", "mm_n_heads", "mm_n_points", "mm_reference_points")
"""What decides a deformable projector; defaults and checks are those of the training arguments of these names."""
BASELINE = "model.mm_projector."
CONV1, FC = f"{BASELINE}layer1.0.conv1.weight", f"{BASELINE}fc.weight"
DEEPEST = 2 ** (len(SWIN_STAGES) - 1)
"""Channels of res5 per channel of res2."""
FILE_FORMAT = ".safetensors"
PRESET = "experiments/train/from_baseline.yaml"


@dataclass(frozen=True)
class Start:
    """What was written.

    Attributes:
        report: what became of each name in the baseline's weights.
        arguments: of a training that goes on from it.
    """

    report: KeyReport
    arguments: dict[str, Any]


def adapt_projector(source: Path, target: Path, settings: Mapping[str, Any], swin_type: str | None = None) -> Start:
    """Writes the baseline projector of a file beside a deformable one, drawn from torch's global generator.

    Args:
        source: its names may have any prefix; running statistics may be missing, as they are in PSALM's files.
        target: a safetensors file that is not there yet.
        settings: the values of ``SETTINGS``.
        swin_type: the Swin that ``source`` must fit, where it is known.

    Raises:
        ValueError: ``source`` holds no baseline projector, or a deformable one too, or does not fit ``swin_type``; a
            setting is impossible; ``target`` is there already, or is no safetensors file. Nothing is written then.
    """
    _refuse_existing(target)
    PsalmConfig(**settings)
    baseline = _read_baseline(source, swin_type)
    if target.suffix != FILE_FORMAT:
        raise ValueError(f"OUT must end in {FILE_FORMAT} where IN is a file, but got {target}")
    branch = build_projector(
        "deformable",
        feature_channels=[baseline.channels * 2**stage // DEEPEST for stage in range(len(SWIN_STAGES))],
        llm_dim=baseline.width,
        hidden_dim=settings["mm_hidden_dim"],
        n_heads=settings["mm_n_heads"],
        n_points=settings["mm_n_points"],
        reference_points=settings["mm_reference_points"],
    )
    start_with_zero_tokens(branch)
    added = {DEFORMABLE + name: tensor for name, tensor in branch.state_dict().items()}
    with _draft_of(target) as draft:
        save_file(baseline.tensors | added, draft, metadata={"format": "pt"})
    arguments: dict[str, Any] = {"pretrain_mm_mlp_adapter": str(target)}
    fitting = _swin_types(baseline.channels)
    if swin_type is not None or len(fitting) == 1:
        arguments["swin_type"] = swin_type or fitting[0]
    if baseline.planes != PsalmConfig.mm_conv_planes:
        arguments["mm_conv_planes"] = baseline.planes
    return Start(baseline.report, arguments | _deformable(settings))


def adapt_checkpoint(source: Path, target: Path, settings: Mapping[str, Any], swin_type: str | None = None) -> Start:
    """Writes a whole baseline checkpoint with a deformable projector, drawn from torch's global generator.

    The weights are stored in the narrowest type that holds all of them as they were; in memory they are float32.

    Args:
        source: the folder of a released checkpoint, or one of ours.
        target: a folder that is not there yet.
        settings: the values of ``SETTINGS``.
        swin_type: that of ``source``; what the folder says if it is not given.

    Raises:
        ValueError: ``source`` is no whole checkpoint, or has a deformable projector already, or is of another
            ``swin_type``; a setting is impossible; ``target`` is there already. Nothing is written then.
    """
    _refuse_existing(target)
    PsalmConfig(**settings)
    if not is_whole_checkpoint(source):
        kind = read_json(source / CONFIG_FILE).get("model_type")
        raise ValueError(f"IN must be a file or a whole PSALM checkpoint, but {source} is of model_type {kind}")
    weights = open_weights(source)
    _refuse_deformable(source, weights)
    swin_type = swin_type or _swin_type_of(source, weights)
    model, tokenizer = build_model(str(source), BUILTIN, swin_type, **_deformable(settings))
    start_with_zero_tokens(model.model.mm_projector_deformable)
    types = {weights[name].dtype for name in weights}
    model.to(functools.reduce(torch.promote_types, (each for each in types if each.is_floating_point)))
    with _draft_of(target) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    (report,) = model.key_reports
    return Start(report, {"model_name_or_path": str(target), "swin_type": swin_type} | _deformable(settings))


@dataclass(frozen=True)
class _Baseline:
    """A baseline projector's weights under our names, and their sizes."""

    tensors: dict[str, Tensor]
    report: KeyReport
    channels: int  # of res5
    width: int  # of the language model
    planes: int


def _read_baseline(source: Path, swin_type: str | None) -> _Baseline:
    weights = open_weights(source)
    _refuse_deformable(source, weights)
    names = {name: projector_name(name) or name for name in weights}
    shapes = {ours: weights.shapes()[name] for name, ours in names.items()}
    if len(shapes.get(CONV1, ())) != 4 or len(shapes.get(FC, ())) != 2:
        raise ValueError(f"{source} has no weights of a baseline projector: {CONV1} and {FC} are needed")
    channels, (width, planes) = shapes[CONV1][1], shapes[FC]
    if channels % DEEPEST:
        raise ValueError(f"{source} fits no Swin: {CONV1} takes {channels} channels, which is no multiple of {DEEPEST}")
    fitting = _swin_types(channels)
    if swin_type is not None and fitting and swin_type not in fitting:
        raise ValueError(
            f"swin_type is {swin_type}, whose res5 has {SWIN_SIZES[swin_type]['embed_dim'] * DEEPEST} channels, but "
            f"{source} is for {channels}: use --swin_type {fitting[0]}, or leave it out"
        )
    with torch.device("meta"):
        projector = build_projector("swin_conv", input_dim=channels, out_dim=width, planes=planes)
    statistics = {BASELINE + name for name, _ in projector.named_buffers()}
    report = fill(  # nothing is copied to shapes alone: all names and shapes are checked
        {BASELINE + name: tensor for name, tensor in projector.state_dict().items()},
        weights,
        lambda name, tensor: {names[name]: tensor},
        source,
        optional=statistics.__contains__,
    )
    tensors = {ours: weights[name] for name, ours in names.items() if ours in report.loaded}
    return _Baseline(tensors, report, channels, width, planes)


def _refuse_deformable(source: Path, weights: Weights) -> None:
    if any("mm_projector_deformable." in name for name in weights):
        flag = "--model_name_or_path" if source.is_dir() else "--pretrain_mm_mlp_adapter"
        raise ValueError(f"{source} has a deformable projector already; go on from it with {flag} {source}")


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise ValueError(f"{target} is there already; remove it, or choose another name")


def _swin_types(channels: int) -> list[str]:
    """The published Swins whose res5 has so many channels."""
    return [name for name, sizes in SWIN_SIZES.items() if sizes["embed_dim"] * DEEPEST == channels]


def _swin_type_of(source: Path, weights: Weights) -> str:
    """What a checkpoint says itself, or else its size; a Swin of no published size has but the default name."""
    said = read_json(source / CONFIG_FILE).get("swin_type")
    channels = weights.shapes().get(CONV1, (0, 0))[1]
    return said or next(iter(_swin_types(channels)), PsalmConfig.swin_type)


def _deformable(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"mm_projector_type": "deformable", **settings}


@contextmanager
def _draft_of(target: Path) -> Iterator[Path]:
    """A place to write to, which becomes ``target`` once all is written, and is removed otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        draft = Path(folder) / target.name
        yield draft
        draft.rename(target)


def next_steps(start: Start) -> str:
    """The commands to go on with: check, then train."""
    flags = [word for name, value in start.arguments.items() for word in (f"--{name}", str(value))]
    missing = "" if "model_name_or_path" in start.arguments else " --model_name_or_path LLM --vision_tower TOWER"
    command = f"--config {PRESET} {shlex.join(flags)}{missing}"
    return f"  python -m psalm.doctor {command}\n  python psalm/train/train.py {command}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="adapt_pretrain_to_deformable",
        description="Turn a baseline projector, or a whole baseline checkpoint, into a start for deformable training.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", type=Path, help="Projector file, or folder of a whole checkpoint.")
    parser.add_argument("target", metavar="OUT", type=Path, help="Safetensors file, or folder; must not be there yet.")
    for name in SETTINGS:
        field = argument_fields()[name]
        parser.add_argument(f"--{name}", default=field.default, help=f"{field.help} ({field.default})")
    seed = argument_fields()["seed"].default
    parser.add_argument("--seed", default=seed, help=f"Of the deformable projector's weights. ({seed})")
    parser.add_argument("--swin_type", help="The Swin that IN must fit. (what IN says)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; a mistake is one line on stderr and exit code 2."""
    quiet_libraries()
    given = _parser().parse_args(argv)
    try:
        settings = {name: check_setting(name, getattr(given, name)) for name in SETTINGS}
        torch.manual_seed(check_setting("seed", given.seed))
        adapt = adapt_checkpoint if given.source.is_dir() else adapt_projector
        swin_type = None if given.swin_type is None else check_setting("swin_type", given.swin_type)
        start = adapt(given.source, given.target, settings, swin_type)
    except (ValueError, OSError, SafetensorError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 2
    sys.stdout.write(
        f"{start.report}\n"
        f"{given.target}: as {given.source}, with a deformable projector whose tokens are zero at first\n"
        f"Check it, and go on from it:\n{next_steps(start)}\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
