"""COCO's three notations of one mask, against plain loops and pycocotools, and what can be wrong with them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from psalm.data import masks
from psalm.data.errors import DataError
from psalm.data.masks import (
    MAX_PIXELS,
    check_segmentation,
    check_size,
    encode_mask,
    id_counts,
    segmentation_area,
    segmentation_areas,
    segmentation_to_mask,
)

H, W = 7, 11


def runs_of(mask: np.ndarray) -> list[int]:
    """Uncompressed RLE by hand: column-major, beginning with a run of zeros."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def mask_of(runs: list[int], height: int, width: int) -> np.ndarray:
    pixels = [index % 2 == 1 for index, run in enumerate(runs) for _ in range(run)]
    return np.array(pixels).reshape(width, height).T


def runs_in(text: str) -> list[int] | None:
    """The run lengths in compressed counts, read character by character; None where there are none to be read."""
    runs: list[int] = []
    bits = ""
    for character in text:
        code = ord(character) - ord("0")
        if not 0 <= code < 64:
            return None
        bits = f"{code % 32:05b}{bits}"
        if code < 32:
            if len(bits) > 30:
                return None
            number = int(bits, 2) - (2 ** len(bits) if bits[0] == "1" else 0)
            runs.append(number + runs[-2] if len(runs) > 2 else number)
            bits = ""
    return None if bits or not runs else runs


def compressed(runs: list[int], height: int, width: int) -> dict[str, Any]:
    """pycocotools' own text for run lengths."""
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode()}


def random_masks(count: int) -> Iterator[np.ndarray]:
    """Small ones, from empty to full."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.random(rng.integers(1, 30, 2)) < rng.choice([0, 0.02, 0.2, 0.5, 0.98, 1])


def damaged(rng: np.random.Generator, text: str) -> str:
    """A text with one to three mistakes, mostly of characters that numbers are made of."""
    characters = list(text)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(0, len(characters) + 1))
        new = chr(rng.integers(48, 112)) if rng.random() < 0.9 else rng.choice(list(" /p~\n\x00é\ud800"))
        match rng.integers(0, 5):
            case 0:
                characters = characters[:place]
            case 1:
                characters.insert(place, new)
            case 2:
                characters[place : place + 1] = [new]
            case 3:
                del characters[place : place + 1]
            case 4:
                characters[place : place + 2] = reversed(characters[place : place + 2])
    return "".join(characters)


@pytest.fixture
def mask() -> np.ndarray:
    return np.random.default_rng(0).random((H, W)) > 0.5


def test_uncompressed_rle(mask):
    assert np.array_equal(segmentation_to_mask({"size": [H, W], "counts": runs_of(mask)}, H, W), mask)


@pytest.mark.parametrize("as_text", [True, False])
def test_compressed_rle(mask, as_text):
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = rle["counts"].decode() if as_text else rle["counts"]
    decoded = segmentation_to_mask({"size": [H, W], "counts": counts}, H, W)
    assert decoded.dtype == bool
    assert np.array_equal(decoded, mask)


def test_polygons_are_joined():
    two = [[1, 1, 4, 1, 4, 3, 1, 3], [6, 2, 9, 2, 9, 6, 6, 6]]
    expected = np.zeros((H, W), dtype=bool)
    expected[1:3, 1:4] = True
    expected[2:6, 6:9] = True
    assert np.array_equal(segmentation_to_mask(two, H, W), expected)


def test_polygons_may_leave_the_image():
    expected = np.zeros((H, W), dtype=bool)
    expected[:, 2:5] = True
    assert np.array_equal(segmentation_to_mask([[2, -5.5, 5, -5.5, 5, 900, 2, 900]], H, W), expected)


def test_no_polygon_is_an_empty_mask():
    assert np.array_equal(segmentation_to_mask([], 3, 4), np.zeros((3, 4), dtype=bool))


def test_what_pycocotools_has_written_is_read():
    for mask in random_masks(500):
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert np.array_equal(segmentation_to_mask(rle, *mask.shape), mask)


def test_encoded_masks_are_cocos_and_fit_into_json():
    for mask in random_masks(100):
        rle = json.loads(json.dumps(encode_mask(mask)))
        assert rle["size"] == [*mask.shape]
        assert runs_in(rle["counts"]) == runs_of(mask)


def test_large_masks():
    """With runs above 2^20 pixels, on either side of the outline."""
    mask = np.zeros((1500, 2000), dtype=bool)
    mask[:, 800:1600] = True
    mask[700, 1900] = True
    for each in (mask, ~mask, mask & False, mask | True):
        rle = coco_mask.encode(np.asfortranarray(each, dtype=np.uint8))
        assert np.array_equal(segmentation_to_mask(rle, 1500, 2000), each)


def test_runs_up_to_the_most_pixels_that_there_may_be():
    rng = np.random.default_rng(1)
    for _ in range(300):
        runs = (10 ** rng.uniform(0, 7.4, rng.integers(1, 12))).astype(int).tolist()
        while sum(runs) > MAX_PIXELS:
            runs.pop()
        runs.append(MAX_PIXELS - sum(runs))
        assert segmentation_area(compressed(runs, 1 << 12, 3 << 12), 1 << 12, 3 << 12) == sum(runs[1::2])


def test_damaged_counts_are_refused_or_read_rightly():
    rng = np.random.default_rng(2)
    texts = [(mask.shape, encode_mask(mask)["counts"]) for mask in random_masks(200)]
    refused = 0
    for _ in range(10_000):
        (height, width), whole = texts[rng.integers(len(texts))]
        text = damaged(rng, whole)
        runs = runs_in(text)
        if runs is None or min(runs) < 0 or sum(runs) != height * width:
            refused += 1
            with pytest.raises(DataError):
                segmentation_to_mask({"size": [height, width], "counts": text}, height, width)
        else:
            decoded = segmentation_to_mask({"size": [height, width], "counts": text}, height, width)
            assert np.array_equal(decoded, mask_of(runs, height, width))
    assert 5_000 < refused < 9_950


REFUSED = [
    ([[1, 2, 3, 4]], "a polygon must be a list of at least 3 x, y pairs, but got [1, 2, 3, 4]"),
    ([[1, 2, 3, 4, 5, 6, 7]], "a polygon must be a list of at least 3 x, y pairs, but got [1, 2, 3, 4, 5, 6, 7]"),
    ([1, 2, 3, 4, 5, 6], "a polygon must be a list of at least 3 x, y pairs, but got 1"),
    ([[0, 0, 3, 0, 3, None]], "coordinates of a polygon must be numbers, at most 1000000 from 0, but got None"),
    ([[0, 0, 3, 0, 3, "4"]], "coordinates of a polygon must be numbers, at most 1000000 from 0, but got '4'"),
    ([[0, 0, 3, 0, 3, True]], "coordinates of a polygon must be numbers, at most 1000000 from 0, but got True"),
    ([[0, 0, 3, 0, 3, [4]]], "coordinates of a polygon must be numbers, at most 1000000 from 0, but got [4]"),
    ([[float("nan"), 0, 3, 0, 3, 4]], "coordinates of a polygon must be numbers, at most 1000000 from 0, but got nan"),
    ([[0, 0, 3, 0, 3, -1e400]], "coordinates of a polygon must be numbers, at most 1000000 from 0, but got -inf"),
    ([[0, 0, 3, 0, 3, 1e6 + 1]], "coordinates of a polygon must be numbers, at most 1000000 from 0, but got 1000001.0"),
    ([[0, 0, 3, 0, 3, 10**400]], f"at most 1000000 from 0, but got 1{'0' * 59}"),
    ("circle", "a segmentation must be polygons (list) or RLE (object), but got 'circle'"),
    (None, "a segmentation must be polygons (list) or RLE (object), but got None"),
    ({"size": [7, 11]}, "an RLE must have the keys size and counts, but counts is missing"),
    ({"counts": [77]}, "an RLE must have the keys size and counts, but size is missing"),
    ({"size": 77, "counts": [77]}, "the size of an RLE must be a list of height and width, but got 77"),
    ({"size": [7.0, 11], "counts": [77]}, "the size of an RLE must be a list of height and width, but got [7.0, 11]"),
    ({"size": [7, 11, 1], "counts": [77]}, "the size of an RLE must be a list of height and width, but got [7, 11, 1]"),
    (
        {"size": [11, 7], "counts": [77]},
        "an RLE of size [11, 7] does not fit its image of [height, width] = [7, 11]",
    ),
    ({"size": [7, 11], "counts": [70]}, "the runs of an RLE cover 70 pixels, but its image has 77"),
    ({"size": [7, 11], "counts": [70, 8]}, "the runs of an RLE cover 78 pixels, but its image has 77"),
    ({"size": [7, 11], "counts": []}, "the runs of an RLE cover 0 pixels, but its image has 77"),
    ({"size": [7, 11], "counts": [78, -1]}, "the counts of an RLE must be whole numbers of its pixels, but got 78"),
    ({"size": [7, 11], "counts": [-1, 77]}, "the counts of an RLE must be whole numbers of its pixels, but got -1"),
    ({"size": [7, 11], "counts": [70, 7.0]}, "the counts of an RLE must be whole numbers of its pixels, but got 7.0"),
    ({"size": [7, 11], "counts": ["77"]}, "the counts of an RLE must be whole numbers of its pixels, but got '77'"),
    ({"size": [7, 11], "counts": None}, "the counts of an RLE must be compressed run lengths, but got None"),
    ({"size": [7, 11], "counts": 77}, "the counts of an RLE must be compressed run lengths, but got 77"),
    ({"size": [7, 11], "counts": ""}, "the counts of an RLE must be compressed run lengths, but got ''"),
    ({"size": [7, 11], "counts": b"9\xff"}, "the counts of an RLE must be compressed run lengths, but got b'9\\xff'"),
    ({"size": [7, 11], "counts": "9zz"}, "the counts of an RLE must be compressed run lengths, but got '9zz'"),
    ({"size": [7, 11], "counts": "9\n"}, "the counts of an RLE must be compressed run lengths, but got '9\\n'"),
    ({"size": [7, 11], "counts": "9é"}, "the counts of an RLE must be compressed run lengths, but got '9é'"),
    ({"size": [7, 11], "counts": "]2P"}, "the counts of an RLE must be compressed run lengths, but got ']2P'"),
    ({"size": [7, 11], "counts": "]PPPPP2"}, "the counts of an RLE must be compressed run lengths, but got ']PPPPP2'"),
    ({"size": [7, 11], "counts": "999"}, "the runs of an RLE cover 27 pixels, but its image has 77"),
    ({"size": [7, 11], "counts": "OPV2O"}, "the counts of an RLE are damaged: they have a run of -1 pixels"),
]


@pytest.mark.parametrize("read", [segmentation_to_mask, segmentation_area, check_segmentation])
@pytest.mark.parametrize(("segmentation", "message"), REFUSED)
def test_refusals_are_one_line(read, segmentation, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read(segmentation, H, W)
    assert "\n" not in str(caught.value)


def test_what_is_not_refused_passes_the_check(mask):
    for segmentation in ([], [[0, 0, 3, 0, 3, 4]], encode_mask(mask), {"size": [H, W], "counts": runs_of(mask)}):
        check_segmentation(segmentation, H, W)


SEGMENTATIONS = [
    [],
    [[1, 1, 9, 2, 8, 11], [5.5, 0, 14, 3, 6, 12, 2, 9]],
    [[3, 3, 3.1, 3, 3.1, 3.1]],
    {"size": [15, 17], "counts": [20, 7, 200, 28]},
    *(encode_mask(np.random.default_rng(seed).random((15, 17)) < seed / 4) for seed in range(5)),
]


@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
def test_areas_are_those_of_the_masks(segmentation):
    assert segmentation_area(segmentation, 15, 17) == np.count_nonzero(segmentation_to_mask(segmentation, 15, 17))


def test_areas_of_many_are_those_of_each():
    areas = segmentation_areas(SEGMENTATIONS, 15, 17)
    assert areas == [segmentation_area(each, 15, 17) for each in SEGMENTATIONS]
    assert segmentation_areas(SEGMENTATIONS[:3], 15, 17) == areas[:3]
    assert segmentation_areas([], 15, 17) == []


def test_areas_of_many_tell_what_is_wrong_with_each(mask):
    good = encode_mask(mask)
    mixed = [each for segmentation, _ in REFUSED for each in (segmentation, good)]
    areas = segmentation_areas(mixed, H, W)
    assert areas[1::2] == [mask.sum()] * len(REFUSED)
    for area, (_, message) in zip(areas[::2], REFUSED, strict=True):
        assert isinstance(area, DataError)
        assert message in str(area)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, -1), (MAX_PIXELS + 1, 1), (1 << 40, 1 << 40)])
def test_sizes_that_no_image_has(height, width):
    expected = f"^an image must have from 1 to 50331648 pixels, but this one has height {height} and width {width}$"
    for read in (segmentation_to_mask, segmentation_area, check_segmentation):
        for segmentation in ([], {"size": [height, width], "counts": [height * width]}):
            with pytest.raises(DataError, match=expected):
                read(segmentation, height, width)
    with pytest.raises(DataError, match=expected):
        check_size(height, width)


def test_masks_without_a_pixel_are_not_encoded():
    with pytest.raises(DataError, match="but this one has height 0 and width 5"):
        encode_mask(np.zeros((0, 5), dtype=bool))


def test_only_masks_calls_pycocotools():
    """Besides the metric, which must not import data and is given masks and checked annotations."""
    package = Path(masks.__file__).parents[1]
    callers = [
        path.name for path in package.rglob("*.py") if re.search(r"^(from|import) pycocotools", path.read_text(), re.M)
    ]
    assert sorted(callers) == ["instance_ap.py", "masks.py"]


def test_id_counts_against_unique():
    rng = np.random.default_rng(0)
    segment_map = np.repeat(rng.choice([0, 5, 70000, 16777215], (20, 6)), 3, axis=1).astype(np.int32)
    ids, counts = np.unique(segment_map, return_counts=True)
    assert id_counts(segment_map) == dict(zip(ids.tolist(), counts.tolist(), strict=True))
