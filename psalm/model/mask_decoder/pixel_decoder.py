"""Mask2Former's pixel decoder (arXiv 2112.01527): deformable attention over res5..res3, then one FPN step to res2.

Written here rather than taken from transformers because PSALM rectifies the lateral features before it adds them, and
because transformers' has no biases where PSALM has them, a fixed number of points, and waits for the device after every
layer while training. Parameter names are PSALM's.

Legend: B batch, E conv_dim, h_l w_l size of level l, S = sum of h_l * w_l over the attended levels.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psalm.model.deformable_attention import MultiScaleDeformableAttention
from psalm.model.mask_decoder.position import sine_position_encoding

ATTENDED_LEVELS = ("res5", "res4", "res3")
"""Levels that the encoder attends over, in the order of the multi-scale output."""
NORM_GROUPS = 32


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each followed by its norm."""

    def __init__(self, conv_dim: int, feedforward_dim: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.self_attn = MultiScaleDeformableAttention(conv_dim, len(ATTENDED_LEVELS), num_heads, num_points)
        self.norm1 = nn.LayerNorm(conv_dim)
        self.linear1 = nn.Linear(conv_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, conv_dim)
        self.norm2 = nn.LayerNorm(conv_dim)

    def forward(
        self, tokens: Tensor, positions: Tensor, reference_points: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Update the tokens [B, S, E]; ``positions`` [1, S, E] is added to the queries only."""
        attended = self.self_attn(tokens + positions, reference_points, tokens, spatial_shapes)
        tokens = self.norm1(tokens + attended)
        return self.norm2(tokens + self.linear2(F.relu(self.linear1(tokens))))


class Encoder(nn.Module):
    """A stack of :class:`EncoderLayer` over the flattened levels."""

    def __init__(self, conv_dim: int, feedforward_dim: int, num_heads: int, num_points: int, num_layers: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(len(ATTENDED_LEVELS), conv_dim))
        layers = [EncoderLayer(conv_dim, feedforward_dim, num_heads, num_points) for _ in range(num_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as Mask2Former does."""
        nn.init.normal_(self.level_embed)
        for weight in self.encoder.parameters():
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)
        for module in self.encoder.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Attend over levels [B, E, h_l, w_l]; returns the same shapes."""
        spatial_shapes = [(level.shape[2], level.shape[3]) for level in levels]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        positions = torch.cat(
            [
                sine_position_encoding(level).flatten(2).transpose(1, 2) + embedding
                for level, embedding in zip(levels, self.level_embed, strict=True)
            ],
            dim=1,
        )
        reference_points = torch.cat([pixel_centres(shape, tokens) for shape in spatial_shapes])[None]
        for layer in self.encoder["layers"].children():
            tokens = layer(tokens, positions, reference_points, spatial_shapes)
        parts = tokens.split([height * width for height, width in spatial_shapes], dim=1)
        return tuple(
            part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, spatial_shapes, strict=True)
        )


class PixelDecoder(nn.Module):
    """Backbone features to per-pixel embeddings and multi-scale features for the predictor.

    Args:
        in_channels: channels of res2, res3, res4, res5.
        conv_dim: width; a multiple of 32 (group norm) and of ``num_heads``.
        mask_dim: width of the per-pixel embeddings.
        num_heads: heads of the deformable attention.
        feedforward_dim: width of the feed-forward networks.
        num_layers: encoder layers.
        num_points: points per head and level; 4 in all published weights.

    Raises:
        ValueError: ``conv_dim`` is not a multiple of 32 or of ``num_heads``, or there are not four feature maps.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        conv_dim: int,
        mask_dim: int,
        num_heads: int,
        feedforward_dim: int,
        num_layers: int,
        num_points: int = 4,
    ) -> None:
        super().__init__()
        if len(in_channels) != 4:
            raise ValueError(f"in_channels must name the channels of res2, res3, res4, res5; got {list(in_channels)}")
        if conv_dim % NORM_GROUPS != 0:
            raise ValueError(f"conv_dim must be a multiple of {NORM_GROUPS} (group norm), but got {conv_dim}")
        res2, res3, res4, res5 = in_channels
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, conv_dim, kernel_size=1), nn.GroupNorm(NORM_GROUPS, conv_dim))
            for channels in (res5, res4, res3)
        )
        self.transformer = Encoder(conv_dim, feedforward_dim, num_heads, num_points, num_layers)
        self.adapter_1 = nn.Sequential(
            nn.Conv2d(res2, conv_dim, kernel_size=1), nn.GroupNorm(NORM_GROUPS, conv_dim), nn.ReLU()
        )
        self.layer_1 = nn.Sequential(
            nn.Conv2d(conv_dim, conv_dim, kernel_size=3, padding=1), nn.GroupNorm(NORM_GROUPS, conv_dim), nn.ReLU()
        )
        self.mask_features = nn.Conv2d(conv_dim, mask_dim, kernel_size=1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as Mask2Former does."""
        self.transformer.reset_parameters()
        for projection in self.input_proj.children():
            _reset_convolution(projection.get_submodule("0"), nn.init.xavier_uniform_)
        for convolution in (self.adapter_1[0], self.layer_1[0], self.mask_features):
            _reset_convolution(convolution, partial(nn.init.kaiming_uniform_, a=1))

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Decode.

        Args:
            features: ``res2`` .. ``res5``, each [B, in_channels[l], h_l, w_l].

        Returns:
            Per-pixel embeddings [B, mask_dim, h_2, w_2], and the encoded res5, res4, res3, [B, conv_dim, h_l, w_l].
        """
        levels = [project(features[name]) for project, name in zip(self.input_proj, ATTENDED_LEVELS, strict=True)]
        multi_scale = self.transformer(levels)
        lateral = self.adapter_1(features["res2"])
        upsampled = F.interpolate(multi_scale[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return self.mask_features(self.layer_1(lateral + upsampled)), multi_scale


def pixel_centres(spatial_shape: tuple[int, int], like: Tensor) -> Tensor:
    """Centres of a map's pixels, row by row: [h * w, 2] as (x, y) in [0, 1].

    Float32 at least, else the dtype of ``like``, on its device.
    """
    height, width = spatial_shape
    dtype = torch.promote_types(like.dtype, torch.float32)
    y = (torch.arange(height, dtype=dtype, device=like.device) + 0.5) / height
    x = (torch.arange(width, dtype=dtype, device=like.device) + 0.5) / width
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).flatten(0, 1)


def _reset_convolution(module: nn.Module, initialise: Callable[[Tensor], Tensor]) -> None:
    assert isinstance(module, nn.Conv2d)
    assert module.bias is not None
    initialise(module.weight)
    nn.init.zeros_(module.bias)


# Detectron2 wraps a convolution and its norm in one module, PSALM lists them.
_CONVOLUTION_NAMES = {
    f"{block}.{theirs}": f"{block}.{ours}"
    for block in ("adapter_1", "layer_1")
    for theirs, ours in (
        ("weight", "0.weight"),
        ("bias", "0.bias"),
        ("norm.weight", "1.weight"),
        ("norm.bias", "1.bias"),
    )
}


def detectron2_to_pixel_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a Detectron2 pixel decoder's state to the names of :class:`PixelDecoder`; PSALM's names pass unchanged.

    Detectron2's two FPN convolutions have no bias while PSALM's do, initially zero: load with ``strict=False``.

    Args:
        state: tensors by name, without a prefix such as ``sem_seg_head.pixel_decoder.`` or ``pixel_decoder.``.
    """
    return {_CONVOLUTION_NAMES.get(name, name): tensor for name, tensor in state.items()}


def pixel_decoder_to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a :class:`PixelDecoder`'s state to Detectron2's names.

    The biases of the FPN convolutions, which Detectron2's own models lack, are kept as ``adapter_1.bias`` and
    ``layer_1.bias``, so that nothing learnt is lost.
    """
    theirs = {ours: name for name, ours in _CONVOLUTION_NAMES.items()}
    return {theirs.get(name, name): tensor for name, tensor in state.items()}
