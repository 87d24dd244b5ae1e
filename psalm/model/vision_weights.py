"""The vision tower's weights, and those of the mask decoder that was trained with it.

A tower is given as one of

- a file under Detectron2's names (``backbone.*``, ``sem_seg_head.pixel_decoder.*``, ``sem_seg_head.predictor.*``), such
  as Mask2Former's published ``model_final_*.pkl``: the sizes are those of its weights;
- a folder of transformers' Mask2Former: likewise;
- a folder of ours: ``config.json`` with any of ``TOWER_FIELDS``, and ``model.safetensors`` under Detectron2's names.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from psalm.model.filling import Rename, fill
from psalm.model.key_report import KeyReport
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.mask2former_weights import MODEL_TYPE, open_mask2former
from psalm.model.mask_decoder.pixel_decoder import detectron2_to_pixel_decoder
from psalm.model.mask_decoder.predictor import detectron2_to_predictor
from psalm.model.multimodal_encoder.swin import detectron2_to_swin
from psalm.model.tower_sizes import tower_sizes
from psalm.model.weight_files import BUILTIN, BUILTIN_FOLDER, CONFIG_FILE, WEIGHTS_FILE, open_weights, read_json

TOWER_FIELDS = (
    "swin_type", "vision_config", "mm_conv_planes", "num_queries", "conv_dim", "mask_dim", "hidden_dim", "num_heads",
    "encoder_layers", "encoder_feedforward_dim", "decoder_layers", "decoder_feedforward_dim", "num_points",
)  # fmt: skip
"""What a tower's ``config.json`` may say: its own sizes, and those of the mask decoder that was trained with it."""

BUILTIN_TOWERS = ("base", "large")
"""The sizes of which there is a toy tower."""

PARTS = ("model.vision_tower.", "pixel_decoder.", "predictor.")
"""What comes before the names of the vision tower, the pixel decoder and the predictor in the model."""
DETECTRON2_PARTS = ("backbone.", "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.")
"""The same in Detectron2's files."""


def resolve_vision_tower(vision_tower: str, swin_type: str) -> Path:
    """The tower's file or folder; ``builtin`` is the toy tower of ``swin_type``.

    Raises:
        ValueError: there is no such file or folder, or no toy tower of this size.
    """
    if vision_tower == BUILTIN:
        if swin_type not in BUILTIN_TOWERS:
            sizes = " and ".join(BUILTIN_TOWERS)
            raise ValueError(
                f"vision_tower {BUILTIN!r} exists for swin_type {sizes} only, but swin_type is {swin_type}"
            )
        return BUILTIN_FOLDER / f"swin_{swin_type}"
    path = Path(vision_tower)
    if not path.exists():
        raise ValueError(
            f"vision_tower must be {BUILTIN!r} or a folder or file of weights, but there is none at {vision_tower}"
        )
    return path


def read_tower_config(path: Path, swin_type: str) -> dict[str, Any]:
    """The fields of ``PsalmConfig`` that a tower's file or folder decides.

    Raises:
        ValueError: a file is missing or no tower's, names another field, or is of another ``swin_type``.
    """
    if not _is_ours(path):
        return tower_sizes(_open(path), path, swin_type)
    fields = read_json(path / CONFIG_FILE)
    unknown = sorted(set(fields) - set(TOWER_FIELDS))
    if unknown:
        raise ValueError(f"{path / CONFIG_FILE} may hold {', '.join(TOWER_FIELDS)}, but holds {', '.join(unknown)}")
    if fields.setdefault("swin_type", swin_type) != swin_type:
        raise ValueError(
            f"swin_type is {swin_type}, but {path / CONFIG_FILE} is a tower of swin_type {fields['swin_type']}"
        )
    return fields


def load_vision_tower(model: PsalmForSegmentation, path: Path) -> KeyReport:
    """Fills the vision tower, the pixel decoder and the predictor from a tower's file or folder.

    Raises:
        ValueError: there are no weights, or one has another shape than the model's; both shapes are named.
    """
    source = path / WEIGHTS_FILE if _is_ours(path) else path
    return load_detectron2_weights(model, _open(source), source)


def load_detectron2_weights(model: PsalmForSegmentation, weights: Mapping[str, Tensor], source: Path) -> KeyReport:
    """Fills the vision tower, the pixel decoder and the predictor from tensors under Detectron2's names.

    Tables of more queries than the model has are cut to its number.

    Raises:
        ValueError: one has another shape than the model's; both shapes are named. Nothing is changed then.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(PARTS)}

    def explain(name: str, *_: Tensor) -> str:
        return f"; its swin_type is {model.config.swin_type}" if name.startswith(PARTS[0]) else ""

    rename = vision_names(DETECTRON2_PARTS, model.config.num_queries, source)
    return fill(own, weights, rename, source, optional=lambda _: True, explain=explain)


def vision_names(parts: tuple[str, str, str], num_queries: int, source: Path) -> Rename:
    """How weights of a vision tower, a pixel decoder and a predictor, named as Detectron2's, are called in the model.

    Args:
        parts: what comes before the names of each of the three in the file.
        num_queries: rows to keep of a table of queries.
        source: the file, which errors name.
    """
    below: tuple[Callable[[Mapping[str, Tensor]], dict[str, Tensor]], ...] = (
        detectron2_to_swin,
        detectron2_to_pixel_decoder,
        partial(detectron2_to_predictor, num_queries=num_queries),
    )
    rules = tuple(zip(parts, PARTS, below, strict=True))

    def rename(name: str, tensor: Tensor) -> dict[str, Tensor]:
        for theirs, ours, rename_below in rules:
            if name.startswith(theirs):
                try:
                    renamed = rename_below({name.removeprefix(theirs): tensor})
                except ValueError as error:
                    raise ValueError(f"{source} does not fit: {error}") from error
                return {ours + own: part for own, part in renamed.items()}
        return {}

    return rename


def _is_ours(path: Path) -> bool:
    """Is it a folder of ours, neither a file nor a folder of transformers'?"""
    return path.is_dir() and read_json(path / CONFIG_FILE).get("model_type") != MODEL_TYPE


def _open(source: Path) -> Mapping[str, Tensor]:
    """A tower's weights under Detectron2's names, from a file or a folder of transformers'."""
    return open_mask2former(source) if source.is_dir() else open_weights(source)
