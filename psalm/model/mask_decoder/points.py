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


def add_border(masks: Tensor) -> Tensor:
    """Bool masks [N, H, W] with a border of zeros, [N, H + 2, W + 2], as ``sample_masks`` reads them."""
    return F.pad(masks, (1, 1, 1, 1))


def sample_masks(bordered: Tensor, index: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of the bordered bool masks numbered ``index`` [M] at points [M, P, 2]: float32 [M, P].

    The same numbers as ``sample_maps`` on ``masks[index].float()``, without that copy: at full size it is four
    megabytes a mask for every layer, and only a few thousand pixels of it are read.
    """
    height, width = bordered.shape[-2:]
    x = points[..., 0] * (width - 2) + 0.5
    y = points[..., 1] * (height - 2) + 0.5
    left, top = x.floor(), y.floor()
    x_share, y_share = x - left, y - top
    corner = (index[:, None] * (height * width) + (top.long() * width + left.long())).flatten()
    values = bordered.flatten()

    def read(offset: int) -> Tensor:
        return values.index_select(0, corner + offset).view_as(x).float()

    upper = torch.lerp(read(0), read(1), x_share)
    lower = torch.lerp(read(width), read(width + 1), x_share)
    return torch.lerp(upper, lower, y_share)


@torch.no_grad()
def uncertain_points(maps: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The ``count`` candidates [M, P', 2] at which the logits [M, H, W] are nearest to zero: [M, count, 2]."""
    uncertainty = -sample_maps(maps[:, None], candidates).squeeze(1).abs()
    nearest = uncertainty.topk(count, dim=1, sorted=False).indices
    return candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
