"""The vision tower's weights, and those of the mask decoder that was trained with it.

A tower's folder holds ``config.json`` - any of ``TOWER_FIELDS`` of ``PsalmConfig`` - and ``model.safetensors`` under
Detectron2's names: ``backbone.*``, ``sem_seg_head.pixel_decoder.*``, ``sem_seg_head.predictor.*``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from psalm.model.key_report import KeyReport
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.mask_decoder.pixel_decoder import detectron2_to_pixel_decoder
from psalm.model.mask_decoder.predictor import detectron2_to_predictor
from psalm.model.multimodal_encoder.swin import detectron2_to_swin
from psalm.model.weight_files import (
    BUILTIN,
    BUILTIN_FOLDER,
    CONFIG_FILE,
    WEIGHTS_FILE,
    existing_folder,
    read_json,
)

TOWER_FIELDS = (
    "swin_type", "vision_config", "mm_conv_planes", "num_queries", "conv_dim", "mask_dim", "hidden_dim", "num_heads",
    "encoder_layers", "encoder_feedforward_dim", "decoder_layers", "decoder_feedforward_dim", "num_points",
)  # fmt: skip
"""What a tower's ``config.json`` may say: its own sizes, and those of the mask decoder that was trained with it."""


def resolve_vision_tower(vision_tower: str, swin_type: str) -> Path:
    """The tower's folder; ``builtin`` is the toy tower of ``swin_type``."""
    if vision_tower == BUILTIN:
        return BUILTIN_FOLDER / f"swin_{swin_type}"
    return existing_folder("vision_tower", vision_tower)


def read_tower_config(folder: Path, swin_type: str) -> dict[str, Any]:
    """The fields of ``PsalmConfig`` that a tower's folder decides.

    Raises:
        ValueError: the file is missing, names another field, or is of another ``swin_type``.
    """
    path = folder / CONFIG_FILE
    fields = read_json(path)
    unknown = sorted(set(fields) - set(TOWER_FIELDS))
    if unknown:
        raise ValueError(f"{path} may hold {', '.join(TOWER_FIELDS)}, but holds {', '.join(unknown)}")
    if fields.setdefault("swin_type", swin_type) != swin_type:
        raise ValueError(f"swin_type is {swin_type}, but {path} is a tower of swin_type {fields['swin_type']}")
    return fields


def load_vision_tower(model: PsalmForSegmentation, folder: Path) -> KeyReport:
    """Fills the vision tower, the pixel decoder and the predictor from a tower's folder.

    Raises:
        ValueError: there are no weights, or one has another shape than the model's; both shapes are named.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"{path} is missing: a vision tower is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    return load_detectron2_weights(model, load_file(path), path)


def load_detectron2_weights(model: PsalmForSegmentation, weights: Mapping[str, Tensor], source: Path) -> KeyReport:
    """Fills the vision tower, the pixel decoder and the predictor from tensors under Detectron2's names.

    Raises:
        ValueError: one has another shape than the model's; both shapes are named. Nothing is changed then.
    """
    own = model.state_dict()
    parts = _parts(model)
    filled: dict[str, Tensor] = {}
    unused, computed = [], []
    for name, tensor in weights.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if name.endswith(".relative_position_index"):
            computed.append(name)
            continue
        renamed = {} if prefix is None else _rename(parts[prefix], {name.removeprefix(prefix): tensor}, source)
        if not any(ours in own for ours in renamed):
            unused.append(name)
        filled.update((ours, value) for ours, value in renamed.items() if ours in own)
    for name, value in filled.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"{source} does not fit swin_type {model.config.swin_type}: {name} is {list(value.shape)} there, "
                f"but {list(own[name].shape)} in the model"
            )
    model.load_state_dict(filled, strict=False)
    initial = sorted(n for n in own if n.startswith(tuple(part.prefix for part in parts.values())) and n not in filled)
    return KeyReport(source, tuple(filled), tuple(unused), tuple(initial), tuple(computed))


@dataclass(frozen=True)
class _Part:
    prefix: str  # of our names
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def _parts(model: PsalmForSegmentation) -> dict[str, _Part]:
    """Detectron2's prefix -> ours, and how the names below it differ."""
    num_queries = model.config.num_queries
    return {
        "backbone.": _Part("model.vision_tower.", detectron2_to_swin),
        "sem_seg_head.pixel_decoder.": _Part("pixel_decoder.", detectron2_to_pixel_decoder),
        "sem_seg_head.predictor.": _Part("predictor.", lambda state: detectron2_to_predictor(state, num_queries)),
    }


def _rename(part: _Part, state: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    try:
        return {part.prefix + name: tensor for name, tensor in part.rename(state).items()}
    except ValueError as error:
        raise ValueError(f"{source} does not fit: {error}") from error
