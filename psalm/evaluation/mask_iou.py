"""Pixels that a predicted and a true mask have, alone and in common, and the IoUs that follow.

A pair is kept as three whole numbers, and ratios are added by ``math.fsum``, which rounds once, at the end: sums are
the same bits for any order of pairs.

Letters: N pairs of masks, H W size of an image.
"""

import math

import numpy as np
from numpy.typing import NDArray

INTERSECTION, PREDICTED, TRUE = range(3)
"""Columns of the counts: pixels of both masks, of the predicted one, of the true one."""


class MaskCounts:
    """The counts of pairs of masks, one row each."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int]] = []

    def update(self, pred: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        """Count one pair of masks, bool [H, W]; ValueError for another type, or if their sizes differ."""
        if pred.dtype != np.bool_ or truth.dtype != np.bool_ or pred.ndim != 2 or pred.shape != truth.shape:
            raise ValueError(
                "masks must be bool [H, W] of one size, but the prediction is "
                f"{pred.dtype} {list(pred.shape)}, the truth {truth.dtype} {list(truth.shape)}"
            )
        self._rows.append(
            (int(np.count_nonzero(pred & truth)), int(np.count_nonzero(pred)), int(np.count_nonzero(truth)))
        )

    def state(self) -> NDArray[np.int64]:
        """What was counted so far: int64 [N, 3], columns INTERSECTION, PREDICTED, TRUE."""
        return np.array(self._rows, dtype=np.int64).reshape(-1, 3)

    def add_state(self, state: NDArray[np.int64]) -> None:
        """Append another rank's state [N, 3] to this one; ValueError for another shape."""
        if state.ndim != 2 or state.shape[1] != 3:
            raise ValueError(f"the state must have shape [N, 3], but got {list(state.shape)}")
        self._rows += map(tuple, state.tolist())


def ious(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU of every pair of counts [N, 3], as a fraction: float64 [N]; 1 where both masks are empty."""
    union = _unions(counts)
    return np.divide(counts[:, INTERSECTION], union, out=np.ones(len(counts)), where=union > 0)


def iou_figures(counts: NDArray[np.int64], mean: str = "miou") -> dict[str, float]:
    """Cumulative and mean IoU of counts [N, 3], in percent.

    ``ciou`` is all intersections over all unions, left out where no mask has a pixel; under the name ``mean`` stands
    the mean of every pair's IoU, left out without a pair.
    """
    figures = {}
    union = int(_unions(counts).sum())
    if union:
        figures["ciou"] = 100 * int(counts[:, INTERSECTION].sum()) / union
    if len(counts):
        figures[mean] = 100 * math.fsum(ious(counts)) / len(counts)
    return figures


def _unions(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return counts[:, PREDICTED] + counts[:, TRUE] - counts[:, INTERSECTION]
