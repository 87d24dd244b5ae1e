"""Projector weights to start from: PSALM's ``mm_projector.bin``, or a safetensors file."""

import re
from pathlib import Path

from torch import Tensor

from psalm.model.filling import fill
from psalm.model.key_report import KeyReport
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.weight_files import open_weights

DEFORMABLE = "model.mm_projector_deformable."

_LLM, _PLANES, _SWIN = "the language model", "mm_conv_planes", "swin_type"
_WIDTH, _SAMPLES = "mm_hidden_dim", "mm_n_heads and mm_n_points"
_DECIDED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"_deformable\.attention\.(sampling_offsets|attention_weights)\.", (_SAMPLES, _WIDTH)),
    (r"_deformable\.attention\.|_deformable\.query_proj\.bias|_deformable\.level_proj\.\d\.bias", (_WIDTH, _WIDTH)),
    (r"_deformable\.query_proj\.", (_WIDTH, _LLM)),
    (r"_deformable\.level_proj\.", (_WIDTH, _SWIN)),
    (r"_deformable\.output_proj\.", (_LLM, _WIDTH)),
    (r"_deformable\.level_embed|_deformable\.reference_proj\.", ("the architecture", _WIDTH)),
    (r"mm_projector\.fc\.", (_LLM, _PLANES)),
    (r"mm_projector\.layer1\.0\.(conv1|downsample\.0)\.", (_PLANES, _SWIN)),
    (r"mm_projector\.layer1\.", (_PLANES, _PLANES)),
)
"""Names of a projector's weights -> what decides each of their sizes."""


def load_projectors(model: PsalmForSegmentation, path: Path) -> KeyReport:
    """Fills projectors from a file such as PSALM's ``mm_projector.bin`` (read as weights only) or a safetensors file.

    Names may have any prefix before ``mm_projector.`` or ``mm_projector_deformable.``; those of a baseline projector
    may also begin with their last parts, ``layer1.`` and ``fc.``. PSALM's files have no running statistics of batch
    norms; these keep their initial values.

    Raises:
        ValueError: the file is missing or holds anything but tensors, none of its names is a projector's, or one has
            another shape than the model's; both shapes are named.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("model.mm_projector")}
    report = fill(own, open_weights(path), _renamed, path, optional=lambda name: True, explain=deciding_settings)
    if not report.loaded:
        raise ValueError(f"{path} has no weights of a projector: names with mm_projector are expected")
    return report


def projector_name(name: str) -> str | None:
    """What the model calls a projector's weight of this name in a file; None if it is of no projector."""
    if name.startswith(("layer1.", "fc.")):
        return f"model.mm_projector.{name}"
    _, found, rest = name.rpartition("mm_projector")
    return f"model.mm_projector{rest}" if found else None


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    ours = projector_name(name)
    return {} if ours is None else {ours: tensor}


def deciding_settings(name: str, theirs: Tensor, ours: Tensor) -> str:
    """What to add to the error about a projector's weight whose shapes differ: which setting decides."""
    decided = next((sizes for pattern, sizes in _DECIDED if re.search(pattern, name)), None)
    if decided is None or theirs.ndim != ours.ndim:
        return ""
    place = next(place for place, size in enumerate(theirs.shape) if size != ours.shape[place])
    return f"; it follows {decided[place]}" if place < len(decided) else ""
