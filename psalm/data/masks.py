"""COCO segmentations, in any of their three notations, as masks, and masks as compressed run lengths.

pycocotools trusts what it is given: counts that it has not written itself can make it read and write beyond its memory,
or leave pixels of a mask as it found them there. So no foreign text gets there: run lengths are read and checked here.
pycocotools encodes masks and draws polygons, for sizes and coordinates at which that is safe.

Letters: H W height and width, S segmentations, R runs.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from psalm.data.errors import DataError

MAX_PIXELS = 3 << 24
"""Where pycocotools writes RLE, it has room for six characters a run, but closes with one more. A run takes six from
2^24 pixels on, and where not more than three do, there is room because memory is handed out in larger pieces."""
MAX_COORDINATE = 1_000_000
"""Where pycocotools draws polygons, it counts fifths of a pixel with 32 bits, and notes each one along the outline."""
NUMBERS = (int, float)

COMPRESSED_COUNTS = re.compile("(?:[P-o]{0,5}+[0-O]++)++")
"""Numbers of one to six characters, of which the last is from the first half: pycocotools writes no more, and cannot
read more. Nothing is tried twice (``+`` behind ``+``), which bounds memory and time."""
ZERO = ord("0")
"""Added to the six bits of a character."""
CONTINUED, VALUE, SIGN = 0b100000, 0b011111, 0b010000
"""The number goes on; bits of its value; the highest of these, in its last character."""
VALUE_BITS = 5


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A COCO ``segmentation`` as bool [H, W]: polygons, compressed RLE, or uncompressed RLE (as COCO's crowds have).

    Args:
        segmentation: list of polygons [x1, y1, x2, y2, ...], or {"size": [H, W], "counts": str, bytes or list of int}.
        height: H of the image.
        width: W of the image.

    Raises:
        DataError: neither of them, a broken one, or one of another size than the image; or ``check_size`` refuses it.
    """
    runs = _runs(segmentation, height, width)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def segmentation_area(segmentation: Any, height: int, width: int) -> int:
    """The pixels of a COCO segmentation, without making its mask; raises as ``segmentation_to_mask`` does."""
    if isinstance(segmentation, list):
        # What pycocotools has drawn, it may read, too; it does so faster.
        return int(coco_mask.area({"size": [height, width], "counts": _compressed(segmentation, height, width)}))
    return int(_runs(segmentation, height, width)[1::2].sum())


def segmentation_areas(segmentations: Sequence[Any], height: int, width: int) -> list[int | DataError]:
    """``segmentation_area`` of all segmentations of an image; RLEs take a tenth of the time.

    Returns:
        S times the pixels, or the error that ``segmentation_to_mask`` raises.
    """
    results: list[int | DataError] = [0] * len(segmentations)
    rles: dict[int, bytes] = {}
    for number, segmentation in enumerate(segmentations):
        try:
            if isinstance(segmentation, dict):
                rles[number] = _compressed(segmentation, height, width)
            else:
                results[number] = segmentation_area(segmentation, height, width)
        except DataError as error:
            results[number] = error
    if not rles:
        return results
    runs, places = _run_lengths([*rles.values()])
    starts = np.flatnonzero(places == 0)
    shortest = np.minimum.reduceat(runs, starts).tolist()
    covered = np.add.reduceat(runs, starts).tolist()
    areas = np.add.reduceat(runs * (places % 2), starts).tolist()
    for row, number in enumerate(rles):
        try:
            _check_runs(shortest[row], covered[row], height * width)
            results[number] = areas[row]
        except DataError as error:
            results[number] = error
    return results


def check_segmentation(segmentation: Any, height: int, width: int) -> None:
    """Raises what ``segmentation_to_mask`` would, but draws no polygon."""
    if isinstance(segmentation, dict):
        _runs(segmentation, height, width)
    else:
        check_size(height, width)
        _check_polygons(segmentation)


def check_size(height: int, width: int) -> None:
    """Raises DataError unless an image of this size has a pixel, and not more than are safe."""
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise DataError(
            f"an image must have from 1 to {MAX_PIXELS} pixels, but this one has height {height} and width {width}"
        )


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask bool [H, W] as compressed RLE that JSON can hold: {"size": [H, W], "counts": str}.

    Raises:
        DataError: ``check_size`` refuses its size.
    """
    height, width = mask.shape
    check_size(height, width)
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def id_counts(segment_map: np.ndarray) -> dict[int, int]:
    """Pixels per id of a segment map int [H, W]; counts runs, since rows of such maps are made of few."""
    flat = segment_map.ravel()
    if flat.size == 0:
        return {}
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    ids, inverse = np.unique(flat[starts], return_inverse=True)
    lengths = np.diff(starts, append=flat.size)
    counts = np.bincount(inverse.ravel(), weights=lengths).astype(np.int64)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def _runs(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Pixels of the runs down the columns, the first outside the mask, the next inside: int64 [R], H * W in all."""
    runs, _ = _run_lengths([_compressed(segmentation, height, width)])
    _check_runs(int(runs.min()), int(runs.sum()), height * width)
    return runs


def _compressed(segmentation: Any, height: int, width: int) -> bytes:
    """A segmentation as ``COMPRESSED_COUNTS``; whether their runs fit is still to be checked."""
    check_size(height, width)
    if isinstance(segmentation, dict):
        return _compressed_counts(segmentation, height, width)
    _check_polygons(segmentation)
    empty_mask = {"size": [height, width], "counts": [height * width]}
    rles = coco_mask.frPyObjects(segmentation or [empty_mask], height, width)
    return rles[0]["counts"] if len(rles) == 1 else coco_mask.merge(rles)["counts"]


def _compressed_counts(rle: dict[str, Any], height: int, width: int) -> bytes:
    for key in ("size", "counts"):
        if key not in rle:
            raise DataError(f"an RLE must have the keys size and counts, but {key} is missing")
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, (list, tuple)) or [*map(type, size)] != [int, int]:
        raise DataError(f"the size of an RLE must be a list of height and width, but got {size!r:.60}")
    if [*size] != [height, width]:
        raise DataError(f"an RLE of size {size!r:.60} does not fit its image of [height, width] = {[height, width]}")
    if isinstance(counts, list):
        for run in counts:
            if type(run) is not int or not 0 <= run <= height * width:
                raise DataError(f"the counts of an RLE must be whole numbers of its pixels, but got {run!r:.60}")
        _check_runs(0, sum(counts), height * width)
        return coco_mask.frPyObjects(rle, height, width)["counts"]
    text = counts.decode("latin-1") if isinstance(counts, bytes) else counts
    if not isinstance(text, str) or not COMPRESSED_COUNTS.fullmatch(text):
        raise DataError(f"the counts of an RLE must be compressed run lengths, but got {counts!r:.60}")
    return text.encode("ascii")


def _run_lengths(counts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The runs of RLEs, one RLE after the other, and the place of each in its RLE: both int64 [R].

    A number's characters hold five bits each, the lowest first. The first three numbers of an RLE are runs; any later
    one is by how much its run is longer than the last but one, the last on the same side of the outline.

    Args:
        counts: S times ``COMPRESSED_COUNTS``, at least once.
    """
    characters = np.frombuffer(b"".join(counts), dtype=np.uint8) - np.uint8(ZERO)
    last = np.flatnonzero(characters < CONTINUED)
    first = np.zeros_like(last)
    first[1:] = last[:-1] + 1
    lengths = last - first + 1
    bits = (characters & VALUE).astype(np.int64)
    powers = np.arange(len(bits)) - np.repeat(first, lengths)
    values = np.add.reduceat(bits << VALUE_BITS * powers, first)
    values -= ((bits[last] & SIGN) != 0).astype(np.int64) << VALUE_BITS * lengths  # two's complement

    starts = np.searchsorted(last, np.cumsum([0, *map(len, counts[:-1])]))
    start = np.repeat(starts, np.diff(starts, append=len(values)))
    places = np.arange(len(values)) - start
    # An RLE's runs 1, 3, ... are sums of its values 1, 3, ..., its runs 2, 4, ... of its values 2, 4, ..., and run 0 is
    # value 0. sums[i + 2] adds up the values i, i - 2, ... of all RLEs; what lies before the RLE's own is taken off.
    sums = np.zeros(len(values) + 2, dtype=np.int64)
    sums[2::2] = np.cumsum(values[::2])
    sums[3::2] = np.cumsum(values[1::2])
    skipped = (2 - places % 2) * (places > 0)
    return sums[2:] - sums[start + skipped], places


def _check_runs(shortest: int, covered: int, pixels: int) -> None:
    """The runs of an RLE, of which the shortest and the sum are given, must cover its image."""
    if shortest < 0:
        raise DataError(f"the counts of an RLE are damaged: they have a run of {shortest} pixels")
    if covered != pixels:
        raise DataError(f"the runs of an RLE cover {covered} pixels, but its image has {pixels}")


def _check_polygons(segmentation: Any) -> None:
    if not isinstance(segmentation, list):
        raise DataError(f"a segmentation must be polygons (list) or RLE (object), but got {segmentation!r:.60}")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise DataError(f"a polygon must be a list of at least 3 x, y pairs, but got {polygon!r:.60}")
        for value in polygon:
            if type(value) not in NUMBERS or not -MAX_COORDINATE <= value <= MAX_COORDINATE:  # NaN is not, either
                raise DataError(
                    f"coordinates of a polygon must be numbers, at most {MAX_COORDINATE} from 0, but got {value!r:.60}"
                )
