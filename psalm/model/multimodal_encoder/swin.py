"""Swin vision tower: transformers' ``SwinBackbone`` behind Detectron2's feature names ``res2`` .. ``res5``.

Legend: B batch, H W image height and width in pixels, h_l w_l height and width of level l (stride 4, 8, 16, 32).
"""

import copy
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import SwinBackbone, SwinConfig

FEATURE_NAMES = ("res2", "res3", "res4", "res5")
"""Names of the feature maps, from the finest (stride 4) to the coarsest (stride 32)."""


class SwinVisionTower(nn.Module):
    """Swin Transformer (arXiv 2103.14030) that returns one normalised feature map per stage.

    Args:
        config: the architecture; must have four stages and no absolute position embeddings.

    Attributes:
        channels: channels of res2, res3, res4, res5.

    Raises:
        ValueError: the configuration has another number of stages, or absolute position embeddings.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        if len(config.depths) != len(FEATURE_NAMES):
            raise ValueError(f"depths must have {len(FEATURE_NAMES)} stages, one per feature map; got {config.depths}")
        if config.use_absolute_embeddings:
            raise ValueError("use_absolute_embeddings must be false: the tower accepts images of any size")
        config = copy.deepcopy(config)
        config.set_output_features_output_indices(out_features=config.stage_names[1:], out_indices=None)
        self.backbone = SwinBackbone(config)
        # The backbone has one norm per stage; the classifier's final norm would only be computed and thrown away.
        self.backbone.swin.layernorm = nn.Identity()
        self.channels: tuple[int, ...] = tuple(self.backbone.channels)

    def freeze(self) -> None:
        """Take the tower out of training: no gradients, no stochastic depth; an image's features never change."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "SwinVisionTower":
        """As ``nn.Module.train``, but a frozen tower stays in evaluation mode (no stochastic depth)."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Compute the feature maps.

        Args:
            pixel_values: normalised images [B, 3, H, W], of any size and floating dtype.

        Returns:
            ``res2`` .. ``res5``: [B, channels[l], h_l, w_l] in the dtype of the weights.
        """
        patch_weight = self.backbone.swin.embeddings.patch_embeddings.projection.weight
        feature_maps = self.backbone(pixel_values.to(patch_weight.dtype)).feature_maps
        return dict(zip(FEATURE_NAMES, feature_maps, strict=True))


_DETECTRON2_TO_SWIN: tuple[tuple[str, str], ...] = (
    (r"patch_embed\.proj\.(.+)", r"swin.embeddings.patch_embeddings.projection.\1"),
    (r"patch_embed\.norm\.(.+)", r"swin.embeddings.norm.\1"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.(.+)", r"swin.encoder.layers.\1.blocks.\2.layernorm_before.\3"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.norm2\.(.+)", r"swin.encoder.layers.\1.blocks.\2.layernorm_after.\3"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.attn\.proj\.(.+)", r"swin.encoder.layers.\1.blocks.\2.attention.o_proj.\3"),
    (
        r"layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table",
        r"swin.encoder.layers.\1.blocks.\2.attention.relative_position_bias.relative_position_bias_table",
    ),
    (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.(fc[12])\.(.+)", r"swin.encoder.layers.\1.blocks.\2.mlp.\3.\4"),
    (r"layers\.(\d+)\.downsample\.(norm|reduction)\.(.+)", r"swin.encoder.layers.\1.downsample.\2.\3"),
)
_SWIN_TO_DETECTRON2: tuple[tuple[str, str], ...] = (
    (r"swin\.embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (r"swin\.embeddings\.norm\.(.+)", r"patch_embed.norm.\1"),
    (r"swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.layernorm_before\.(.+)", r"layers.\1.blocks.\2.norm1.\3"),
    (r"swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.layernorm_after\.(.+)", r"layers.\1.blocks.\2.norm2.\3"),
    (r"swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.o_proj\.(.+)", r"layers.\1.blocks.\2.attn.proj.\3"),
    (
        r"swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.relative_position_bias\.relative_position_bias_table",
        r"layers.\1.blocks.\2.attn.relative_position_bias_table",
    ),
    (r"swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.mlp\.(fc[12])\.(.+)", r"layers.\1.blocks.\2.mlp.\3.\4"),
    (r"swin\.encoder\.layers\.(\d+)\.downsample\.(norm|reduction)\.(.+)", r"layers.\1.downsample.\2.\3"),
)
_DETECTRON2_QKV = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
_SWIN_QUERY = re.compile(r"swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.q_proj\.(weight|bias)")


def detectron2_to_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a Detectron2 (and PSALM) Swin state to the names of :class:`SwinVisionTower`.

    The fused ``qkv`` is split into views of its three projections; ``relative_position_index``, which follows from the
    window size, is left out. So the result fits ``load_state_dict(strict=True)``.

    Args:
        state: tensors by name, without a prefix such as ``backbone.`` or ``model.vision_tower.``.

    Raises:
        ValueError: a name is not one of Detectron2's Swin.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("attn.relative_position_index"):
            continue
        qkv = _DETECTRON2_QKV.fullmatch(name)
        output_norm = re.fullmatch(r"norm([0-3])\.(.+)", name)
        if qkv:
            layer, block, kind = qkv.groups()
            attention = f"backbone.swin.encoder.layers.{layer}.blocks.{block}.attention"
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{attention}.{letter}_proj.{kind}"] = part
        elif output_norm:
            stage, kind = int(output_norm[1]) + 1, output_norm[2]
            renamed[f"backbone.hidden_states_norms.stage{stage}.{kind}"] = tensor
        else:
            renamed[f"backbone.{_rename(name, _DETECTRON2_TO_SWIN, 'a Detectron2 Swin')}"] = tensor
    return renamed


def swin_to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state of a :class:`SwinVisionTower` to Detectron2's names: the inverse of :func:`detectron2_to_swin`.

    Raises:
        ValueError: a name is not one of :class:`SwinVisionTower`.
    """
    renamed: dict[str, Tensor] = {}
    for full_name, tensor in state.items():
        name = full_name.removeprefix("backbone.")
        query = _SWIN_QUERY.fullmatch(name)
        output_norm = re.fullmatch(r"hidden_states_norms\.stage([1-4])\.(.+)", name)
        if query:
            layer, block, kind = query.groups()
            parts = [state[full_name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            renamed[f"layers.{layer}.blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
        elif re.search(r"\.attention\.[kv]_proj\.", name):
            continue
        elif output_norm:
            renamed[f"norm{int(output_norm[1]) - 1}.{output_norm[2]}"] = tensor
        else:
            renamed[_rename(name, _SWIN_TO_DETECTRON2, "a SwinVisionTower")] = tensor
    return renamed


def _rename(name: str, rules: tuple[tuple[str, str], ...], source: str) -> str:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    raise ValueError(f"{name!r} is not the name of a weight of {source}")
