"""transformers' Mask2Former, read under Detectron2's names.

Its files have two spellings: the hub's, which ``save_pretrained`` writes too (``attention.self.query``,
``encoder.encoder.layers``), and that of transformers 5's own modules (``attention.q_proj``, ``swin.encoder.layers``).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psalm.model.weight_files import CONFIG_FILE, open_weights, read_json

MODEL_TYPE = "mask2former"
"""``model_type`` in its ``config.json``."""

_ASSUMED: dict[str, Any] = {"pre_norm": False, "activation_function": "relu"}
"""What its configuration may change without a trace in the weights, and this mask decoder cannot."""


class Mask2FormerWeights(Mapping[str, Tensor]):
    """The tensors of transformers' Mask2Former under Detectron2's names, each read when it is asked for.

    Query, key and value projections, which transformers stores one by one, are joined. Weights that only transformers
    or only a classifier has keep their names.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._names: dict[str, list[str]] = {}
        for name in weights:
            self._names.setdefault(_detectron2_name(name), []).append(name)
        for joined in self._names.values():
            joined.sort(key=_qkv_position)

    def __getitem__(self, name: str) -> Tensor:
        first, *others = (self._weights[theirs] for theirs in self._names[name])
        return torch.cat([first, *others]) if others else first

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_mask2former(folder: Path) -> Mask2FormerWeights:
    """The weights in a folder that transformers' Mask2Former was saved to.

    Raises:
        ValueError: there are none, or its configuration is one that the mask decoder does not have.
    """
    config = read_json(folder / CONFIG_FILE)
    for field, value in _ASSUMED.items():
        if config.get(field, value) != value:
            raise ValueError(f"{folder / CONFIG_FILE}: {field} must be {value}, but is {config[field]}")
    return Mask2FormerWeights(open_weights(folder))


_SWIN = r"pixel_level_module\.encoder\.(?:swin\.)?"
_BLOCK = _SWIN + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_PIXELS = r"pixel_level_module\.decoder\."
_PIXELS_LAYER = _PIXELS + r"encoder\.layers\.(\d+)\."
_LAYER = r"transformer_module\.decoder\.layers\.(\d+)\."
_QKV = r"(?:query|key|value|q_proj|k_proj|v_proj)\."

_RULES: tuple[tuple[str, str], ...] = (
    (_SWIN + r"embeddings\.patch_embeddings\.projection\.(.+)", r"backbone.patch_embed.proj.\1"),
    (_SWIN + r"embeddings\.norm\.(.+)", r"backbone.patch_embed.norm.\1"),
    (_BLOCK + r"layernorm_before\.(.+)", r"backbone.layers.\1.blocks.\2.norm1.\3"),
    (_BLOCK + r"layernorm_after\.(.+)", r"backbone.layers.\1.blocks.\2.norm2.\3"),
    (_BLOCK + r"attention\.(?:self\.)?" + _QKV + "(.+)", r"backbone.layers.\1.blocks.\2.attn.qkv.\3"),
    (_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(.+)", r"backbone.layers.\1.blocks.\2.attn.proj.\3"),
    (_BLOCK + r"attention\..+\.(relative_position_bias_table)", r"backbone.layers.\1.blocks.\2.attn.\3"),
    (_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)", r"backbone.layers.\1.blocks.\2.mlp.fc1.\3"),
    (_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(.+)", r"backbone.layers.\1.blocks.\2.mlp.fc2.\3"),
    (_SWIN + r"encoder\.layers\.(\d+)\.downsample\.(.+)", r"backbone.layers.\1.downsample.\2"),
    *((_SWIN + rf"hidden_states_norms\.stage{i + 1}\.(.+)", rf"backbone.norm{i}.\1") for i in range(4)),
    (_PIXELS + r"input_projections\.(.+)", r"sem_seg_head.pixel_decoder.input_proj.\1"),
    (_PIXELS + r"level_embed", r"sem_seg_head.pixel_decoder.transformer.level_embed"),
    (_PIXELS_LAYER + r"self_attn\.(.+)", r"sem_seg_head.pixel_decoder.transformer.encoder.layers.\1.self_attn.\2"),
    (
        _PIXELS_LAYER + r"self_attn_layer_norm\.(.+)",
        r"sem_seg_head.pixel_decoder.transformer.encoder.layers.\1.norm1.\2",
    ),
    (_PIXELS_LAYER + r"fc([12])\.(.+)", r"sem_seg_head.pixel_decoder.transformer.encoder.layers.\1.linear\2.\3"),
    (_PIXELS_LAYER + r"final_layer_norm\.(.+)", r"sem_seg_head.pixel_decoder.transformer.encoder.layers.\1.norm2.\2"),
    (_PIXELS + r"((?:adapter|layer)_1\..+)", r"sem_seg_head.pixel_decoder.\1"),
    (_PIXELS + r"mask_projection\.(.+)", r"sem_seg_head.pixel_decoder.mask_features.\1"),
    (
        _LAYER + r"self_attn\." + _QKV + "(.+)",
        r"sem_seg_head.predictor.transformer_self_attention_layers.\1.self_attn.in_proj_\2",
    ),
    (_LAYER + r"self_attn\.(.+)", r"sem_seg_head.predictor.transformer_self_attention_layers.\1.self_attn.\2"),
    (_LAYER + r"self_attn_layer_norm\.(.+)", r"sem_seg_head.predictor.transformer_self_attention_layers.\1.norm.\2"),
    (_LAYER + r"cross_attn\.(.+)", r"sem_seg_head.predictor.transformer_cross_attention_layers.\1.multihead_attn.\2"),
    (_LAYER + r"cross_attn_layer_norm\.(.+)", r"sem_seg_head.predictor.transformer_cross_attention_layers.\1.norm.\2"),
    (_LAYER + r"fc([12])\.(.+)", r"sem_seg_head.predictor.transformer_ffn_layers.\1.linear\2.\3"),
    (_LAYER + r"final_layer_norm\.(.+)", r"sem_seg_head.predictor.transformer_ffn_layers.\1.norm.\2"),
    (r"transformer_module\.decoder\.layernorm\.(.+)", r"sem_seg_head.predictor.decoder_norm.\1"),
    (
        r"transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(.+)",
        r"sem_seg_head.predictor.mask_embed.layers.\1.\2",
    ),
    (r"transformer_module\.queries_embedder\.(.+)", r"sem_seg_head.predictor.query_embed.\1"),
    (r"transformer_module\.level_embed\.(.+)", r"sem_seg_head.predictor.level_embed.\1"),
    (r"transformer_module\.input_projections\.(.+)", r"sem_seg_head.predictor.input_proj.\1"),
)


def _detectron2_name(name: str) -> str:
    for pattern, replacement in _RULES:
        match = re.fullmatch(rf"(?:model\.)?{pattern}", name)
        if match:
            return match.expand(replacement)
    return name


def _qkv_position(name: str) -> int:
    """0, 1, 2 for a query's, key's and value's projection, which Detectron2 stores in this order."""
    match = re.search(rf"\.{_QKV}", name)
    return "qkv".index(match[0][1]) if match else 0
