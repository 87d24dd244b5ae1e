"""Panoptic quality (Kirillov et al., arXiv 1801.00868, section 4), as panopticapi computes it.

Letters: C categories, H W size of an image, T P segments of its ground truth and prediction.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_VOID = 0
_IOU_STEPS = 2.0**32
"""IoUs are rounded to 2**-32: their sums are then exact, the same bits for any order of images and number of ranks."""

IOU, TP, FP, FN = range(4)
"""Columns of the state."""


class PanopticQuality:
    """PQ, SQ and RQ in percent, over all categories, things, and stuff.

    A predicted and a true segment match if they share the category and their IoU, the true void inside the predicted
    segment left out, exceeds 0.5. Crowd segments are never matched nor missed. An unmatched predicted segment is no
    false positive if more than half of it lies on void and on the crowd segment of its category. Each category weighs
    the same; those that neither the truth nor the prediction contains (tp + fp + fn = 0) are left out.
    """

    def __init__(self, isthing: Sequence[bool]) -> None:
        """``isthing`` [C] says of every category, by index, whether it is a thing."""
        self.isthing = np.asarray(isthing, dtype=bool)
        if self.isthing.ndim != 1 or not len(self.isthing):
            raise ValueError(f"isthing must name at least one category, but got {isthing!r}")
        self._state = np.zeros((len(self.isthing), 4))

    def update(
        self,
        pred_map: NDArray[np.integer],
        pred_segments: Mapping[int, int],
        true_map: NDArray[np.integer],
        true_segments: Mapping[int, tuple[int, bool]],
    ) -> None:
        """Count one image.

        Maps [H, W] hold segment ids of any size, 0 = void; ``pred_segments`` says each id's category,
        ``true_segments`` its category and whether it is a crowd. A true segment without a pixel is missed, and of
        several crowds of one category the last counts, as in panopticapi. ValueError, naming the ids, for a map whose
        ids are not listed, a predicted segment without a pixel, an unknown category, or maps of different sizes.
        """
        if pred_map.shape != true_map.shape:
            raise ValueError(
                f"maps must have one size, but the prediction's is {pred_map.shape}, the truth's {true_map.shape}"
            )
        pred_category = self._categories(pred_segments.values(), "predicted")
        true_category = self._categories((category for category, _ in true_segments.values()), "true")
        iscrowd = np.array([bool(crowd) for _, crowd in true_segments.values()], dtype=bool)

        # Row 0 and column 0 are void; row t + 1 is the t-th true segment, column p + 1 the p-th predicted one.
        rows = _segment_numbers(true_map, list(true_segments), "true")
        columns = _segment_numbers(pred_map, list(pred_segments), "predicted")
        shape = (len(true_segments) + 1, len(pred_segments) + 1)
        pixels = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)
        pred_area, true_area = pixels.sum(0)[1:], pixels.sum(1)[1:]
        if not pred_area.all():
            empty = [segment for segment, area in zip(pred_segments, pred_area, strict=True) if not area]
            raise ValueError(f"predicted segments without a pixel in the map: {_shown(empty)}")

        overlap, void = pixels[1:, 1:], pixels[0, 1:]
        union = true_area[:, None] + pred_area - overlap - void
        comparable = (true_category[:, None] == pred_category) & ~iscrowd[:, None] & (overlap > 0)
        # More than half of the union can go to one pair only, so matches need no assignment.
        matched = comparable & (2 * overlap > union)
        iou = np.rint(overlap[matched] / union[matched] * _IOU_STEPS) / _IOU_STEPS
        match_category = true_category[matched.nonzero()[0]]

        ignored = void.copy()
        last_crowd = {int(true_category[row]): row for row in iscrowd.nonzero()[0]}
        for category, row in last_crowd.items():
            ignored += np.where(pred_category == category, overlap[row], 0)
        false_positive = ~matched.any(0) & (2 * ignored <= pred_area)
        missed = ~matched.any(1) & ~iscrowd

        np.add.at(self._state[:, IOU], match_category, iou)
        for column, category in (
            (TP, match_category),
            (FP, pred_category[false_positive]),
            (FN, true_category[missed]),
        ):
            self._state[:, column] += np.bincount(category, minlength=len(self.isthing))

    def state(self) -> NDArray[np.float64]:
        """What was counted so far: float64 [C, 4], columns IoU sum, tp, fp, fn. States of several ranks add up."""
        return self._state.copy()

    def add_state(self, state: NDArray[np.float64]) -> None:
        """Add another rank's state [C, 4] to this one."""
        if state.shape != self._state.shape:
            raise ValueError(f"the state must have shape {self._state.shape}, but got {state.shape}")
        self._state += state

    def compute(self) -> dict[str, float]:
        """``pq sq rq`` and the same with ``_things`` and ``_stuff``, in percent; an empty group is left out."""
        per_category = self.per_category()
        result: dict[str, float] = {}
        for suffix, member in (("", self.isthing | True), ("_things", self.isthing), ("_stuff", ~self.isthing)):
            group = [values for category, values in per_category.items() if member[category]]
            if group:
                result |= {f"{name}{suffix}": float(np.mean([values[name] for values in group])) for name in group[0]}
        return result

    def per_category(self) -> dict[int, dict[str, float]]:
        """``pq sq rq`` in percent of every category that occurs, by its index."""
        result = {}
        for category, (iou, tp, fp, fn) in enumerate(self._state.tolist()):
            count = tp + 0.5 * fp + 0.5 * fn
            if count:
                result[category] = {
                    "pq": 100 * iou / count,
                    "sq": 100 * iou / tp if tp else 0.0,
                    "rq": 100 * tp / count,
                }
        return result

    def _categories(self, categories: Iterable[int], which: str) -> NDArray[np.int64]:
        array = np.array(list(categories), dtype=np.int64)
        unknown = array[(array < 0) | (array >= len(self.isthing))]
        if len(unknown):
            raise ValueError(
                f"{which} segments of unknown category {_shown(unknown.tolist())}: "
                f"categories are 0 to {len(self.isthing) - 1}"
            )
        return array


def _segment_numbers(segment_map: NDArray[np.integer], ids: list[int], which: str) -> NDArray[np.int64]:
    """The position in ``ids`` plus one of every pixel's segment, 0 for void: int64 [H * W]."""
    if _VOID in ids:
        raise ValueError(f"{which} segments list id {_VOID}, which means void")
    known = np.array([_VOID, *ids], dtype=np.int64)
    order = known.argsort()
    pixels = segment_map.astype(np.int64).ravel()
    found = order[np.searchsorted(known, pixels, sorter=order).clip(max=len(known) - 1)]
    strange = known[found] != pixels
    if strange.any():
        raise ValueError(
            f"the {which} map has ids that its segments do not list: {_shown(np.unique(pixels[strange]).tolist())}"
        )
    return found


def _shown(values: list[int]) -> str:
    """At most ten of them."""
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
