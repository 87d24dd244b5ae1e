"""The sizes of a Swin and its mask decoder, read from the shapes of their weights under Detectron2's names."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from psalm.model.configuration import SWIN_DEFAULTS, SWIN_SIZES, SWIN_STAGES, PsalmConfig
from psalm.model.mask_decoder.pixel_decoder import ATTENDED_LEVELS

ENCODER_POINTS = 4
"""Points per head and level of the pixel decoder in all published weights."""

_PIXELS, _PREDICTOR = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
_PATCHES = "backbone.patch_embed.proj.weight"


def tower_sizes(weights: Mapping[str, Tensor], source: Path, swin_type: str) -> dict[str, Any]:
    """The fields of ``PsalmConfig`` that a Mask2Former's weights decide.

    More queries than ``PsalmConfig`` has by default are not used. What shapes do not show is as published: the image
    size, the points per head and level, and a predictor with as many heads as the pixel decoder.

    Raises:
        ValueError: it has no Swin or no mask decoder, or is of another published size than ``swin_type``.
    """

    def shape(name: str, dimensions: int) -> list[int]:
        if name not in weights:
            raise ValueError(f"{source} is no Mask2Former with a Swin Transformer: it has no {name}")
        found = list(weights[name].shape)
        if len(found) != dimensions:
            raise ValueError(f"{source} is no Mask2Former: {name} is {found}, but must have {dimensions} dimensions")
        return found

    stages = range(len(SWIN_STAGES))
    patches = shape(_PATCHES, 4)
    embed_dim = patches[0]
    depths = [_count(weights, rf"backbone\.layers\.{stage}\.blocks\.\d+\.norm1\.weight") for stage in stages]
    _check_published_size(patches, depths, source, swin_type)
    biases = [shape(f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table", 2) for stage in stages]
    mlp_dim, _ = shape("backbone.layers.0.blocks.0.mlp.fc1.weight", 2)
    mask_dim, conv_dim, *_ = shape(f"{_PIXELS}.mask_features.weight", 4)
    samples, _ = shape(f"{_PIXELS}.transformer.encoder.layers.0.self_attn.attention_weights.weight", 2)
    encoder_dim, _ = shape(f"{_PIXELS}.transformer.encoder.layers.0.linear1.weight", 2)
    decoder_dim, _ = shape(f"{_PREDICTOR}.transformer_ffn_layers.0.linear1.weight", 2)
    queries, hidden_dim = shape(f"{_PREDICTOR}.query_embed.weight", 2)
    return {
        "swin_type": swin_type,
        "vision_config": {
            **SWIN_DEFAULTS,
            "embed_dim": embed_dim,
            "depths": depths,
            "num_heads": [heads for _, heads in biases],
            "window_size": (math.isqrt(biases[0][0]) + 1) // 2,  # a row for each of the (2 w - 1)^2 offsets in a window
            "mlp_ratio": mlp_dim / embed_dim,
        },
        "num_queries": min(queries, PsalmConfig.num_queries),
        "conv_dim": conv_dim,
        "mask_dim": mask_dim,
        "hidden_dim": hidden_dim,
        "num_heads": samples // (len(ATTENDED_LEVELS) * ENCODER_POINTS),
        "encoder_layers": _count(weights, rf"{_PIXELS}\.transformer\.encoder\.layers\.\d+\.norm1\.weight"),
        "encoder_feedforward_dim": encoder_dim,
        "decoder_layers": _count(weights, rf"{_PREDICTOR}\.transformer_ffn_layers\.\d+\.norm\.weight"),
        "decoder_feedforward_dim": decoder_dim,
    }


def _check_published_size(patches: list[int], depths: list[int], source: Path, swin_type: str) -> None:
    """Refuses a tower that is a published one, but not ``swin_type``; of any other size ``swin_type`` is but a name."""
    own = SWIN_SIZES[swin_type]
    alike = [name for name, sizes in SWIN_SIZES.items() if sizes["embed_dim"] == patches[0]]
    same = [name for name in alike if SWIN_SIZES[name]["depths"] == depths]
    others = same or alike
    if not others or swin_type in others:
        return
    if patches[0] == own["embed_dim"]:
        difference = f"backbone has blocks {depths} there, but {own['depths']} in the model"
    else:
        difference = f"{_PATCHES} is {patches} there, but {[own['embed_dim'], *patches[1:]]} in the model"
    other = others[0]
    raise ValueError(
        f"{source} does not fit swin_type {swin_type}: {difference}; "
        f"it is a Swin-{other[0].upper()}: use --swin_type {other}"
    )


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in weights)
