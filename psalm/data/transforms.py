"""Pixels to model input, without any randomness: resize, pad, normalise.

The order and the padding are those of the published weights: the image is resized so that its long side is S, padded
right and bottom to S x S with grey 128, and then normalised, so that padding is close to, but not exactly, zero.

Letters: H W height and width as read, h w the same after resizing, S padded side.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
PAD_VALUE = 128
"""Grey level of the padding before it is normalised."""


def fitted_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(h, w) after scaling so that the long side is ``size``; halves are rounded up, no side below one pixel."""
    scale = size / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_and_pad(image: np.ndarray, size: int) -> tuple[Tensor, tuple[int, int]]:
    """Image uint8 [H, W, 3] -> (normalised float32 [3, S, S], valid (h, w)).

    Resizing is PIL's bilinear filter on 8-bit values, which averages over the source area when it shrinks (antialias).
    """
    height, width = fitted_size(image.shape[0], image.shape[1], size)
    if image.shape[:2] != (height, width):
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    canvas = np.full((size, size, 3), PAD_VALUE, dtype=np.uint8)
    canvas[:height, :width] = image
    pixels = torch.from_numpy(canvas).permute(2, 0, 1).float()
    mean, std = torch.tensor(PIXEL_MEAN)[:, None, None], torch.tensor(PIXEL_STD)[:, None, None]
    return ((pixels - mean) / std).contiguous(), (height, width)


def resize_and_pad_map(values: np.ndarray, size: int) -> np.ndarray:
    """The twin for segment maps and masks: [..., H, W] of any type -> [..., S, S], nearest neighbour, padded with 0.

    The nearest source pixel is the one that holds the centre of the target pixel, as in PIL.
    """
    height, width = values.shape[-2:]
    h, w = fitted_size(height, width, size)
    rows = ((np.arange(h) + 0.5) * (height / h)).astype(np.int64).clip(max=height - 1)
    columns = ((np.arange(w) + 0.5) * (width / w)).astype(np.int64).clip(max=width - 1)
    canvas = np.zeros((*values.shape[:-2], size, size), dtype=values.dtype)
    canvas[..., :h, :w] = values[..., rows[:, None], columns]
    return canvas
