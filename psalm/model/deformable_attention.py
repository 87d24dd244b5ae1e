"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, section 4.1) in plain PyTorch.

Legend: B batch, K queries, E width, M heads, D = E / M width of a head, L levels, P points per head and level,
H_l W_l height and width of level l, S = sum of H_l * W_l.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """Weighted sum of values that are sampled bilinearly at the given locations of every level.

    Sampling is done in float32 at least: a location in bfloat16 would be wrong by whole pixels on large maps.

    Args:
        value: [B, S, M, D], the levels one after another, each row by row.
        spatial_shapes: (H_l, W_l) per level, Python integers (no device synchronisation).
        locations: [B, K, M, L, P, 2] as (x, y); [0, 1] spans the whole map, pixel i has its centre at (i + 0.5) / W.
            Outside is zero.
        weights: [B, K, M, L, P]; sums to one over L and P where the caller took a softmax.

    Returns:
        [B, K, M * D], head after head, in the dtype of ``value``.
    """
    B, S, M, D = value.shape
    _, K, _, L, P, _ = locations.shape
    sizes = [height * width for height, width in spatial_shapes]
    if len(sizes) != L or sum(sizes) != S:
        raise ValueError(f"spatial_shapes {list(spatial_shapes)} must name {L} levels with {S} positions in total")
    dtype = torch.promote_types(value.dtype, torch.float32)
    # [B, S, M, D] -> [B * M, D, S]
    maps = value.to(dtype).permute(0, 2, 3, 1).reshape(B * M, D, S).split(sizes, dim=2)
    # grid_sample's coordinates run from -1 to 1; [B, K, M, L, P, 2] -> L times [B * M, P, K, 2]. Queries come last, so
    # that the sum over the few points is one over long rows.
    grids = (2 * locations.to(dtype) - 1).permute(3, 0, 2, 4, 1, 5).reshape(L, B * M, P, K, 2).unbind()
    # [B, K, M, L, P] -> L times [B * M, 1, P, K]
    shares = weights.to(dtype).permute(3, 0, 2, 4, 1).reshape(L, B * M, 1, P, K).unbind()
    output = value.new_zeros((B * M, D, K), dtype=dtype)
    for level_map, grid, share, (height, width) in zip(maps, grids, shares, spatial_shapes, strict=True):
        image = level_map.reshape(B * M, D, height, width)
        sampled = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        output = output + (sampled * share).sum(dim=2)
    return output.view(B, M * D, K).transpose(1, 2).to(value.dtype)


def compass_rose(n_heads: int, n_levels: int, n_points: int) -> Tensor:
    """Initial sampling offsets of Deformable DETR (its appendix A.4): each head looks in its own direction.

    Directions are spread evenly over the circle, scaled so that the larger coordinate is one; point p lies p + 1 pixels
    away from the reference point.

    Returns:
        [n_heads, n_levels, n_points, 2] as (x, y), in pixels of each level.
    """
    angles = torch.arange(n_heads, dtype=torch.float32) * (2 * math.pi / n_heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(dim=-1, keepdim=True)
    distances = torch.arange(1, n_points + 1, dtype=torch.float32)
    offsets = directions[:, None, None, :] * distances[None, None, :, None]
    return offsets.expand(n_heads, n_levels, n_points, 2).contiguous()


class MultiScaleDeformableAttention(nn.Module):
    """Deformable attention of queries to several feature maps; parameter names are those of Deformable DETR.

    Args:
        hidden_dim: width of queries and values.
        n_levels: number of feature maps.
        n_heads: number of heads; must divide ``hidden_dim``.
        n_points: sampling points per head and level.

    Raises:
        ValueError: a count is below 1, or ``hidden_dim`` is not divisible by ``n_heads``.
    """

    def __init__(self, hidden_dim: int, n_levels: int, n_heads: int, n_points: int) -> None:
        super().__init__()
        counts = {"hidden_dim": hidden_dim, "n_levels": n_levels, "n_heads": n_heads, "n_points": n_points}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, but got {count}")
        if hidden_dim % n_heads != 0:
            raise ValueError(_not_divisible(hidden_dim, n_heads))
        self.n_levels = n_levels
        self.n_heads = n_heads
        self.n_points = n_points
        self.sampling_offsets = nn.Linear(hidden_dim, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(hidden_dim, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as Deformable DETR: uniform attention at compass-rose offsets, whatever the query."""
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_(compass_rose(self.n_heads, self.n_levels, self.n_points).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Tensor,
        reference_points: Tensor,
        values: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attend.

        Args:
            queries: [B, K, E].
            reference_points: [B or 1, K, 2] as (x, y) in [0, 1], the same on every level.
            values: [B, S, E], the levels one after another.
            spatial_shapes: (H_l, W_l) per level.

        Returns:
            [B, K, E].
        """
        B, K, E = queries.shape
        M, L, P = self.n_heads, self.n_levels, self.n_points
        value = self.value_proj(values).view(B, -1, M, E // M)
        logits = self.attention_weights(queries).view(B, K, M, L * P)
        weights = logits.to(reference_points.dtype).softmax(dim=-1).view(B, K, M, L, P)
        # Offsets are in pixels of their level. The copy to the device must not wait for it.
        sizes = torch.tensor([(width, height) for height, width in spatial_shapes], dtype=reference_points.dtype)
        sizes = sizes.to(queries.device, non_blocking=True)
        offsets = self.sampling_offsets(queries).view(B, K, M, L, P, 2).to(reference_points.dtype)
        locations = reference_points[:, :, None, None, None, :] + offsets / sizes[:, None, :]
        return self.output_proj(multi_scale_deformable_attention(value, spatial_shapes, locations, weights))


def _not_divisible(hidden_dim: int, n_heads: int) -> str:
    below = hidden_dim // n_heads * n_heads
    allowed = [multiple for multiple in (below, below + n_heads) if multiple > 0]
    nearest = " and ".join(str(multiple) for multiple in allowed)
    return f"hidden_dim {hidden_dim} is not divisible by n_heads {n_heads}; the nearest allowed hidden_dim: {nearest}"
