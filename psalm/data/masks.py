"""COCO segmentations, in any of their three notations, as masks.

Letters: H W height and width.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from psalm.data.errors import DataError


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A COCO ``segmentation`` as bool [H, W]: polygons, compressed RLE, or uncompressed RLE (as COCO's crowds have).

    Args:
        segmentation: list of polygons [x1, y1, x2, y2, ...], or {"size": [H, W], "counts": str, bytes or list of int}.
        height: H of the image.
        width: W of the image.

    Raises:
        DataError: neither of them, or of another size than the image.
    """
    if isinstance(segmentation, dict):
        return _decode(lambda: _checked_rle(segmentation, height, width), segmentation)
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                raise DataError(f"a polygon must be a list of at least 3 x, y pairs, but got {_short(polygon)}")
        if not segmentation:
            return np.zeros((height, width), dtype=bool)
        return _decode(lambda: coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)), segmentation)
    raise DataError(f"a segmentation must be polygons (list) or RLE (object), but got {_short(segmentation)}")


def _decode(rle: Callable[[], dict[str, Any]], segmentation: Any) -> np.ndarray:
    try:
        mask: np.ndarray = coco_mask.decode(rle()).astype(bool)
    except DataError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"a segmentation cannot be decoded ({error}): {_short(segmentation)}") from error
    return mask


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


def _checked_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """The RLE in pycocotools' compressed form; its size must be the image's."""
    missing = {"size", "counts"} - rle.keys()
    if missing:
        raise DataError(f"an RLE must have the keys size and counts, but {sorted(missing)[0]} is missing")
    if not isinstance(rle["size"], (list, tuple)) or list(rle["size"]) != [height, width]:
        raise DataError(f"an RLE of size {rle['size']} does not fit its image of [height, width] = {[height, width]}")
    counts = rle["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise DataError(f"the runs of an RLE cover {sum(counts)} pixels, but its image has {height * width}")
        return coco_mask.frPyObjects(rle, height, width)
    if not isinstance(counts, (str, bytes)) or not counts:
        raise DataError(f"the counts of an RLE must be text or a list of runs, but got {_short(counts)}")
    return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
