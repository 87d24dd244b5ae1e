"""IoU of classes of pixels (Long et al., arXiv 1411.4038, section 5), as Detectron2's SemSegEvaluator computes it.

Letters: C classes, H W size of an image.
"""

import math

import numpy as np
from numpy.typing import NDArray

_IGNORED = -1


class SemanticIoU:
    """Mean IoU, frequency weighted IoU and pixel accuracy, in percent.

    With n[i, j] labelled pixels of class i predicted as class j and t[i] = sum_j n[i, j], the IoU of class i is
    n[i, i] / (t[i] + sum_j n[j, i] - n[i, i]). ``miou`` is the mean of the IoUs of the classes that the truth has,
    ``fwiou`` their mean weighted by t, and ``pixel_accuracy`` sum_i n[i, i] / sum_i t[i]. A class that is predicted
    only has no IoU of its own; it lowers those of the classes that it stands for.

    Figures are the same bits for any order of images and any number of ranks: the state is whole numbers.
    """

    def __init__(self, num_classes: int) -> None:
        """``num_classes`` is C, at least one."""
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, but got {num_classes}")
        self.num_classes = num_classes
        self._confusion = np.zeros((num_classes, num_classes), dtype=np.int64)

    def update(self, pred: NDArray[np.integer], truth: NDArray[np.integer]) -> None:
        """Count one image.

        ``pred`` [H, W] holds classes 0 to C - 1, ``truth`` [H, W] the same or -1 where nothing is labelled. ValueError
        for another type or class, or if their sizes differ.
        """
        integers = np.issubdtype(pred.dtype, np.integer) and np.issubdtype(truth.dtype, np.integer)
        if not integers or pred.ndim != 2 or pred.shape != truth.shape:
            raise ValueError(
                "maps must be int [H, W] of one size, but the prediction is "
                f"{pred.dtype} {list(pred.shape)}, the truth {truth.dtype} {list(truth.shape)}"
            )
        self._check_classes(pred, 0, "predicted")
        self._check_classes(truth, _IGNORED, "true")
        labelled = truth != _IGNORED
        pairs = truth[labelled].astype(np.int64) * self.num_classes + pred[labelled].astype(np.int64)
        self._confusion += np.bincount(pairs, minlength=self._confusion.size).reshape(self._confusion.shape)

    def state(self) -> NDArray[np.int64]:
        """What was counted so far: int64 [C, C], labelled pixels by true (row) and predicted class (column).

        States of several ranks add up.
        """
        return self._confusion.copy()

    def add_state(self, state: NDArray[np.int64]) -> None:
        """Add another rank's state [C, C] to this one; ValueError for another shape."""
        if state.shape != self._confusion.shape:
            raise ValueError(f"the state must have shape {self._confusion.shape}, but got {state.shape}")
        self._confusion += state

    def compute(self) -> dict[str, float]:
        """``miou fwiou pixel_accuracy`` in percent; nothing without a labelled pixel."""
        iou = {category: values["iou"] for category, values in self.per_category().items()}
        if not iou:
            return {}
        pixels = self._confusion.sum(1).tolist()
        total = sum(pixels)
        return {
            "miou": math.fsum(iou.values()) / len(iou),
            "fwiou": math.fsum(value * pixels[category] for category, value in iou.items()) / total,
            "pixel_accuracy": 100 * int(self._confusion.trace()) / total,
        }

    def per_category(self) -> dict[int, dict[str, float]]:
        """``iou`` in percent of every class that the truth has, by its index."""
        both = self._confusion.diagonal().tolist()
        true, predicted = self._confusion.sum(1).tolist(), self._confusion.sum(0).tolist()
        return {
            category: {"iou": 100 * both[category] / (true[category] + predicted[category] - both[category])}
            for category in range(self.num_classes)
            if true[category]
        }

    def _check_classes(self, classes: NDArray[np.integer], lowest: int, which: str) -> None:
        strange = classes[(classes < lowest) | (classes >= self.num_classes)]
        if strange.size:
            ignored = f", {_IGNORED} where nothing is labelled" if lowest == _IGNORED else ""
            raise ValueError(
                f"the {which} map has class {strange[0]}: classes are 0 to {self.num_classes - 1}{ignored}"
            )
