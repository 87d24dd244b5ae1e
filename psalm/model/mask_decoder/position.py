"""Sine position encoding of feature maps."""

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0
EPSILON = 1e-6


def sine_position_encoding(features: Tensor) -> Tensor:
    """Encode where each pixel of a map lies: sines and cosines of y, then of x (DETR, arXiv 2005.12872, appendix A.4).

    Coordinates count pixels from 1 and are scaled so that the last one is 2 pi.

    Args:
        features: [B, E, h, w]; only its sizes, dtype and device are used. E must be divisible by 4.

    Returns:
        [1, E, h, w], in the dtype of ``features``.
    """
    _, channels, height, width = features.shape
    if channels % 4 != 0:
        raise ValueError(f"the width must be divisible by 4 (sine and cosine of y and x), but got {channels}")
    half = channels // 2
    dtype = torch.promote_types(features.dtype, torch.float32)
    exponents = torch.arange(0, half, 2, dtype=dtype, device=features.device) / half
    periods = TEMPERATURE**exponents

    def encode(length: int) -> Tensor:
        steps = torch.arange(1, length + 1, dtype=dtype, device=features.device)
        angles = (steps * (2 * math.pi / (length + EPSILON)))[:, None] / periods
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # [length, half]

    y = encode(height)[:, None, :].expand(height, width, half)
    x = encode(width)[None, :, :].expand(height, width, half)
    return torch.cat((y, x), dim=-1).permute(2, 0, 1)[None].to(features.dtype)
