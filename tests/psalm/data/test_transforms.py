"""Resizing, padding and normalising, against PIL and plain arithmetic."""

import numpy as np
import pytest
import torch
from PIL import Image

from psalm.data.transforms import PIXEL_MEAN, PIXEL_STD, fitted_size, resize_and_pad, resize_and_pad_map


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [(480, 640, 1024, (768, 1024)), (640, 427, 1024, (1024, 683)), (96, 128, 64, (48, 64)), (1, 500, 64, (1, 64))],
)
def test_long_side_fits(height, width, size, expected):
    assert fitted_size(height, width, size) == expected


def test_image_is_resized_padded_with_grey_and_normalised():
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    pixels, image_size = resize_and_pad(image, 48)
    assert image_size == (32, 48)
    assert pixels.dtype == torch.float32
    resized = np.asarray(Image.fromarray(image).resize((48, 32), Image.Resampling.BILINEAR)).astype(np.float64)
    for channel in range(3):
        expected = np.full((48, 48), 128.0)
        expected[:32] = resized[..., channel]
        expected = (expected - PIXEL_MEAN[channel]) / PIXEL_STD[channel]
        np.testing.assert_allclose(pixels[channel].numpy(), expected, atol=1e-5)


def test_image_of_the_right_size_keeps_its_pixels():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels, _ = resize_and_pad(image, 32)
    restored = pixels * torch.tensor(PIXEL_STD)[:, None, None] + torch.tensor(PIXEL_MEAN)[:, None, None]
    assert np.array_equal(restored.round().byte().permute(1, 2, 0).numpy(), image)


@pytest.mark.parametrize(("height", "width", "size"), [(60, 90, 48), (37, 23, 101), (213, 320, 128), (640, 427, 256)])
def test_map_is_resized_as_pil_does_nearest(height, width, size):
    values = np.random.default_rng(1).integers(0, 1 << 24, (height, width), dtype=np.int32)
    h, w = fitted_size(height, width, size)
    expected = np.zeros((size, size), dtype=np.int32)
    expected[:h, :w] = np.asarray(Image.fromarray(values).resize((w, h), Image.Resampling.NEAREST))
    assert np.array_equal(resize_and_pad_map(values, size), expected)


def test_stack_of_masks():
    masks = np.random.default_rng(2).random((3, 20, 10)) > 0.5
    resized = resize_and_pad_map(masks, 16)
    assert resized.shape == (3, 16, 16)
    assert resized.dtype == bool
    assert np.array_equal(resized[1], resize_and_pad_map(masks[1], 16))
