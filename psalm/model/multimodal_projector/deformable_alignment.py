"""The deformable projector: tokens that each query samples from the image at locations it chooses itself.

Legend: B batch, K queries, D width of the language model, E hidden_dim, C_l channels and H_l W_l size of level l.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from psalm.model.deformable_attention import MultiScaleDeformableAttention
from psalm.model.multimodal_projector.reference_points import centre_points, proposal_points, valid_extent

LEVELS = ("res2", "res3", "res4", "res5")
"""Feature maps that are sampled, from the finest to the coarsest."""
RES2_STRIDE = 4
"""Pixels of the image per pixel of res2: Swin's patch size."""

ReferencePoints = Literal["auto", "center", "proposal", "learned"]
REFERENCE_POINTS: tuple[ReferencePoints, ...] = get_args(ReferencePoints)
"""Where the queries start to look, always inside the valid (not padded) area of the image.

``center``: the centre of that area. ``proposal``: the pixel of res5 that is most similar to the query. ``learned``: a
linear layer and a sigmoid of the query, over that area (Deformable DETR). ``auto``: ``center`` for queries that come
with the image itself, ``proposal`` for those from another image, which may be about anything anywhere in this one.
"""


class MultiScaleDeformableCrossAttentionAlignment(nn.Module):
    """One token per query, gathered from res2..res5 by multi-scale deformable attention (arXiv 2010.04159).

    Args:
        feature_channels: channels of res2, res3, res4, res5.
        llm_dim: D.
        hidden_dim: E; must be divisible by ``n_heads``.
        n_heads: attention heads.
        n_points: sampling points per head and level.
        reference_points: where the queries start to look; see ``REFERENCE_POINTS``.

    Raises:
        ValueError: a count is below 1, ``hidden_dim`` is not divisible by ``n_heads``, ``reference_points`` is none of
            ``REFERENCE_POINTS``, or there are not four levels.
    """

    n_levels = len(LEVELS)

    def __init__(
        self,
        feature_channels: Sequence[int],
        llm_dim: int,
        hidden_dim: int,
        n_heads: int,
        n_points: int,
        reference_points: ReferencePoints,
    ) -> None:
        super().__init__()
        if len(feature_channels) != self.n_levels:
            raise ValueError(f"feature_channels must name the channels of {LEVELS}, but got {list(feature_channels)}")
        if reference_points not in REFERENCE_POINTS:
            raise ValueError(f"reference_points must be one of {REFERENCE_POINTS}, but got {reference_points!r}")
        self.n_heads = n_heads
        self.n_points = n_points
        self.reference_points = reference_points
        self.attention = MultiScaleDeformableAttention(hidden_dim, self.n_levels, n_heads, n_points)
        self.query_proj = nn.Linear(llm_dim, hidden_dim)
        self.level_proj = nn.ModuleList(nn.Linear(channels, hidden_dim) for channels in feature_channels)
        self.level_embed = nn.Parameter(torch.empty(self.n_levels, hidden_dim))
        if reference_points == "learned":
            self.reference_proj = nn.Linear(hidden_dim, 2)
        self.output_proj = nn.Linear(hidden_dim, llm_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as Deformable DETR; learned reference points start around the centre."""
        self.attention.reset_parameters()
        nn.init.normal_(self.level_embed)
        linears = [self.query_proj, *self.level_proj.children(), self.output_proj]
        if self.reference_points == "learned":
            linears.append(self.reference_proj)
        for linear in linears:
            assert isinstance(linear, nn.Linear)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        queries: Tensor,
        query_mask: Tensor,
        features: Mapping[str, Tensor],
        image_sizes: Tensor | None,
        *,
        from_other_image: bool = False,
    ) -> Tensor:
        """Gather one token per query.

        Args:
            queries: z_q [B, K, D].
            query_mask: bool [B, K], false where a query is padding.
            features: ``res2`` .. ``res5``, each [B, C_l, H_l, W_l].
            image_sizes: (height, width) [B, 2] of the valid area in pixels, or None where nothing is padded.
            from_other_image: the queries are features of another image than the one that is sampled.

        Returns:
            [B, K, D]; zero where ``query_mask`` is false.
        """
        dtype = self.query_proj.weight.dtype
        levels = [features[name] for name in LEVELS]
        spatial_shapes = [(level.shape[2], level.shape[3]) for level in levels]
        projected = [
            project(level.flatten(2).transpose(1, 2).to(dtype))
            for project, level in zip(self.level_proj, levels, strict=True)
        ]
        values = torch.cat([level + embedding for level, embedding in zip(projected, self.level_embed, strict=True)], 1)
        padding = ~query_mask[..., None]
        hidden = self.query_proj(queries.masked_fill(padding, 0).to(dtype))
        extent = valid_extent(image_sizes, levels[0], RES2_STRIDE)
        points = self._points(hidden, projected[-1], spatial_shapes[-1], extent, from_other_image)
        tokens = self.output_proj(self.attention(hidden, points, values, spatial_shapes))
        return tokens.masked_fill(padding, 0)

    def _points(
        self, hidden: Tensor, res5: Tensor, shape: tuple[int, int], extent: Tensor, from_other_image: bool
    ) -> Tensor:
        if self.reference_points == "learned":
            return self.reference_proj(hidden).to(extent.dtype).sigmoid() * extent
        if self.reference_points == "proposal" or (self.reference_points == "auto" and from_other_image):
            return proposal_points(hidden, res5, shape, extent)
        return centre_points(hidden, extent)
