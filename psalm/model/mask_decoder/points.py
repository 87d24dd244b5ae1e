"""Random points on masks: where they fall, and what the masks say there.

Mask losses look at random points instead of every pixel (PointRend, arXiv 1912.08193; Mask2Former, arXiv 2112.01527,
section 3.3). A point is (x, y) in [0, 1] of the padded image, whatever the resolution of the mask that is read.

Letters: B batch, M masks, K channels, P points, H W heights and widths.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Purpose = Literal["matching", "candidates", "uniform"]
"""matching: shared by all masks of an image; candidates: of which the uncertain are kept; uniform: kept as they are."""


class PointSource(Protocol):
    """Draws points. The losses know nothing else about randomness, so recorded points can be replayed."""

    def __call__(self, purpose: Purpose, layer: int, counts: Sequence[int], num_points: int) -> Tensor:
        """Points [sum(counts), P, 2] on the CPU, ``counts[i]`` rows for image i, in the images' order."""
        ...


def keyed_generator(key: int, stream: str) -> torch.Generator:
    """A CPU generator that depends on nothing but ``key`` and the name of the stream."""
    digest = hashlib.blake2b(f"{key}/{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class KeyedPoints:
    """Points as a function of each image's own key: the same whatever else is in the batch, and on every device."""

    random_keys: Sequence[int]

    def __call__(self, purpose: Purpose, layer: int, counts: Sequence[int], num_points: int) -> Tensor:
        """See :class:`PointSource`. Each image, layer and purpose has a stream of its own."""
        draws = [
            torch.rand(count, num_points, 2, generator=keyed_generator(key, f"points/{purpose}/{layer}"))
            for key, count in zip(self.random_keys, counts, strict=True)
        ]
        return torch.cat(draws)


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of float maps [M, K, H, W] at points [M, P, 2]: [M, K, P]; zero beyond the border."""
    grid = 2 * points[:, None] - 1
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(2)


def sample_masks(masks: Tensor, index: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of the bool masks [N, H, W] numbered ``index`` [M] at points [M, P, 2]: float32 [M, P].

    The same numbers as :func:`sample_maps` on ``masks[index].float()``, without that copy: at full size it is four
    megabytes a mask, and only a few thousand pixels of it are read.
    """
    height, width = masks.shape[-2:]
    x = points[..., 0] * width - 0.5
    y = points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    right_share, bottom_share = x - left, y - top
    values = torch.zeros_like(x)
    for row, row_share in ((top, 1 - bottom_share), (top + 1, bottom_share)):
        for column, column_share in ((left, 1 - right_share), (left + 1, right_share)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            pixel = masks[
                index[:, None], row.clamp(0, height - 1).to(torch.int64), column.clamp(0, width - 1).to(torch.int64)
            ]
            values += row_share * column_share * (pixel & inside)
    return values


@torch.no_grad()
def uncertain_points(maps: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The ``count`` candidates [M, P', 2] at which the logits [M, H, W] are nearest to zero: [M, count, 2]."""
    uncertainty = -sample_maps(maps[:, None], candidates).squeeze(1).abs()
    nearest = uncertainty.topk(count, dim=1).indices
    return candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
