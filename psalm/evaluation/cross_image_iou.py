"""IoU and location error of what a region of one image means in another image.

Letters: N regions, M those that are in the target image, H W size of the target image.
"""

import math

import numpy as np
from numpy.typing import NDArray

from psalm.evaluation.mask_iou import MaskCounts, iou_figures

_MISSED = 100.0
"""Location error of an empty prediction where there is something to find: the whole diagonal."""


class CrossImageIoU:
    """Mean and cumulative IoU, and the location error, in percent.

    An empty true mask is a region whose category the target image does not have: its IoU is 1 if the prediction is
    empty, else 0, and the predicted pixels enter the union of ``ciou``. ``location_error`` is the distance between the
    centres of mass of both masks in percent of the image's diagonal, 100 for an empty prediction, averaged over the
    regions that are in the target: the error of Ego-Exo4D's correspondence task (Grauman et al., arXiv 2311.18259),
    whose challenge, other than this, takes the mean point of the largest contour for the centre.

    Figures are the same bits for any order of regions and any number of ranks.
    """

    def __init__(self) -> None:
        self._counts = MaskCounts()
        self._distances: list[float] = []

    def update(self, pred: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        """Count one region with its masks in the target image, bool [H, W].

        ValueError for masks of another type, or if their sizes differ.
        """
        self._counts.update(pred, truth)
        if truth.any():
            self._distances.append(_distance(pred, truth) if pred.any() else _MISSED)

    def state(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What was counted so far: int64 [N, 3], see ``MaskCounts``, and float64 [M], distances in percent."""
        return self._counts.state(), np.array(self._distances, dtype=np.float64)

    def add_state(self, state: tuple[NDArray[np.int64], NDArray[np.float64]]) -> None:
        """Append another rank's state to this one; ValueError for another shape."""
        counts, distances = state
        self._counts.add_state(counts)
        self._distances += distances.tolist()

    def compute(self) -> dict[str, float]:
        """``ciou miou location_error`` in percent.

        Left out: ``location_error`` without a region that is in its target, and ``ciou`` where no mask has a pixel.
        """
        result = iou_figures(self._counts.state())
        if self._distances:
            result["location_error"] = math.fsum(self._distances) / len(self._distances)
        return result


def _distance(pred: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Distance between the centres of mass of two masks with pixels, in percent of the diagonal."""
    return 100 * math.dist(_centre(pred), _centre(truth)) / math.hypot(*truth.shape)


def _centre(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Row and column of the centre of mass; the sums are whole numbers, so that only the last division rounds."""
    area = int(np.count_nonzero(mask))
    row, column = (int(np.arange(size) @ mask.sum(1 - axis)) for axis, size in enumerate(mask.shape))
    return row / area, column / area
