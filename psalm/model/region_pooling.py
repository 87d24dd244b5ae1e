"""Prompt mask -> one feature per region (PSALM, arXiv 2403.14598, section 3.2: visual prompts).

Letters: B batch, K regions of an image, R regions of the batch, P points, D feature width, H W size of the masks,
h w size of the feature map (h * w tokens).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from psalm.model.mask_decoder.points import keyed_generator


class RegionDraws(Protocol):
    """Chooses pixels of a region. Pooling knows nothing else about randomness, so recorded choices can be replayed."""

    def __call__(self, image: int, region: int, num_pixels: int, num_points: int) -> Tensor:
        """``num_points`` numbers in [0, num_pixels), int64, on the CPU: which of the region's pixels, row by row."""
        ...


@dataclass(frozen=True)
class KeyedRegionDraws:
    """All pixels and then some again where there are too few, a subset without repetition where there are too many.

    A function of each image's own key and the region's number: the same in every batch and on every device, and in
    evaluation as long as the key is fixed.
    """

    random_keys: Sequence[int]

    def __call__(self, image: int, region: int, num_pixels: int, num_points: int) -> Tensor:
        """See :class:`RegionDraws`."""
        generator = keyed_generator(self.random_keys[image], f"region/{region}")
        if num_pixels > num_points:
            return torch.randperm(num_pixels, generator=generator)[:num_points]
        again = torch.randint(num_pixels, (num_points - num_pixels,), generator=generator)
        return torch.cat([torch.arange(num_pixels), again])


def region_points(masks: Sequence[Tensor], num_points: int, draws: RegionDraws) -> Tensor:
    """Points (x, y) inside each region, in [0, 1): pixel index / size, as the released weights expect.

    ``masks`` [K, H, W] per image, bool or 0 / 1; returns float32 [R, P, 2] on their device, images one after another.
    One sync with the CPU, for the regions' sizes. ValueError for a region without a pixel.
    """
    stacked = torch.cat([mask != 0 for mask in masks])
    width, height = stacked.shape[-1], stacked.shape[-2]
    if not len(stacked):
        return torch.zeros(0, num_points, 2, device=stacked.device)
    filled = stacked.flatten(1).cumsum(1, dtype=torch.int32)
    sizes = filled[:, -1].tolist()
    regions = [(image, region) for image, mask in enumerate(masks) for region in range(len(mask))]
    for (image, region), size in zip(regions, sizes, strict=True):
        if size == 0:
            raise ValueError(f"region {region} of image {image} in the batch is empty: a prompt mask needs a pixel")
    choices = torch.stack([draws(*region, size, num_points) for region, size in zip(regions, sizes, strict=True)])
    # The n-th set pixel is the first position at which n + 1 pixels are filled.
    positions = torch.searchsorted(filled, (choices + 1).to(filled.device, torch.int32))
    return torch.stack([(positions % width) / width, (positions // width) / height], dim=-1)


def pool_regions(
    features: Tensor,
    masks: Sequence[Tensor],
    random_keys: Tensor | None = None,
    num_points: int = 256,
    draws: RegionDraws | None = None,
) -> list[Tensor]:
    """The mean of bilinear features at random points of each region: [K, D] per image, in the features' type.

    ``features`` [B, n, D] are the projected tokens of a square feature map, row by row; ``masks`` [K, H, W] per image,
    bool or 0 / 1 (K = 0 is allowed); ``random_keys`` int64 [B], one per image, or ``draws`` in their place. Points span
    the map from the centre of its first token to that of its last (align_corners). ValueError if n is no square, or a
    region has no pixel.
    """
    if draws is None:
        if random_keys is None:
            raise ValueError("region pooling draws points: give random_keys, or draws")
        draws = KeyedRegionDraws(random_keys.tolist())
    n = features.shape[1]
    side = math.isqrt(n)
    if side * side != n:
        raise ValueError(f"region pooling needs a square feature map, but got {n} tokens")
    points_RP2 = region_points(masks, num_points, draws) * (side - 1)
    # Bilinear interpolation is linear in the features, so a region's mean is one weight per token.
    with torch.autocast(features.device.type, enabled=False):
        tokens = torch.arange(side, device=features.device)
        share = (1 - (points_RP2[..., None] - tokens).abs()).clamp(min=0)  # [R, P, 2, side]
        weights_Rn = torch.einsum("rph,rpw->rhw", share[:, :, 1], share[:, :, 0]).flatten(1) / num_points
        per_image = weights_Rn.split([len(mask) for mask in masks])
        return [
            (weights_Kn @ tokens_nD.float()).to(features.dtype)
            for weights_Kn, tokens_nD in zip(per_image, features, strict=True)
        ]


def pad_regions(regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[K, D] per image -> one token per region [B, Kmax, 1, D], and bool [B, Kmax, 1] which are no padding."""
    tokens = [features[:, None] for features in regions]
    mask = [features.new_ones(len(features), 1, dtype=torch.bool) for features in regions]
    return pad_sequence(tokens, batch_first=True), pad_sequence(mask, batch_first=True)


def unpad_regions(padded: Tensor, regions: Sequence[Tensor]) -> list[Tensor]:
    """[B, Kmax, E] -> [K, E] per image, where ``regions`` have K rows each."""
    return [features[: len(region)] for features, region in zip(padded, regions, strict=True)]
