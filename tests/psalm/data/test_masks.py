"""COCO's three notations of one mask, and counting ids."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from psalm.data.errors import DataError
from psalm.data.masks import id_counts, segmentation_to_mask


def runs(mask: np.ndarray) -> list[int]:
    """Uncompressed RLE by hand: column-major, beginning with a run of zeros."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


@pytest.fixture
def mask() -> np.ndarray:
    return np.random.default_rng(0).random((7, 11)) > 0.5


def test_uncompressed_rle(mask):
    assert np.array_equal(segmentation_to_mask({"size": [7, 11], "counts": runs(mask)}, 7, 11), mask)


@pytest.mark.parametrize("as_text", [True, False])
def test_compressed_rle(mask, as_text):
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = rle["counts"].decode() if as_text else rle["counts"]
    assert np.array_equal(segmentation_to_mask({"size": [7, 11], "counts": counts}, 7, 11), mask)


def test_polygons_are_joined():
    two = [[1, 1, 4, 1, 4, 3, 1, 3], [6, 2, 9, 2, 9, 6, 6, 6]]
    expected = np.zeros((7, 11), dtype=bool)
    expected[1:3, 1:4] = True
    expected[2:6, 6:9] = True
    assert np.array_equal(segmentation_to_mask(two, 7, 11), expected)


def test_no_polygon_is_an_empty_mask():
    assert not segmentation_to_mask([], 3, 4).any()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "at least 3 x, y pairs, but got"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least 3 x, y pairs"),
        ({"size": [7, 11]}, "counts is missing"),
        ({"size": [11, 7], "counts": [77]}, r"size \[11, 7\] does not fit its image of \[height, width\] = \[7, 11\]"),
        ({"size": [7, 11], "counts": [70]}, "cover 70 pixels, but its image has 77"),
        ("circle", "polygons .* or RLE .*, but got 'circle'"),
    ],
)
def test_refusals(segmentation, message):
    with pytest.raises(DataError, match=message):
        segmentation_to_mask(segmentation, 7, 11)


def test_id_counts_against_unique():
    rng = np.random.default_rng(0)
    segment_map = np.repeat(rng.choice([0, 5, 70000, 16777215], (20, 6)), 3, axis=1).astype(np.int32)
    ids, counts = np.unique(segment_map, return_counts=True)
    assert id_counts(segment_map) == dict(zip(ids.tolist(), counts.tolist(), strict=True))
