"""IoU of the objects that visual prompts point at (PSALM, Zhang et al., arXiv 2403.14598, interactive segmentation).

Letters: N regions, H W size of an image.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from psalm.evaluation.mask_iou import MaskCounts, iou_figures

KINDS = ("point", "box", "scribble", "mask")
"""Types of prompts."""


class RegionIoU:
    """Cumulative and mean IoU in percent, over all regions and for each type of prompt.

    ``ciou`` is all intersections over all unions, ``miou`` the mean of the regions' IoUs, which is 1 where both masks
    are empty. Figures are the same bits for any order of regions and any number of ranks.
    """

    def __init__(self) -> None:
        self._counts = {kind: MaskCounts() for kind in KINDS}

    def update(self, kind: str, pred: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        """Count one region with its masks, bool [H, W], prompted by a ``kind`` of ``KINDS``.

        ValueError for another kind, masks of another type, or if their sizes differ.
        """
        self._of_kind(kind).update(pred, truth)

    def state(self) -> dict[str, NDArray[np.int64]]:
        """What was counted so far: by kind int64 [N, 3], see ``MaskCounts``."""
        return {kind: counts.state() for kind, counts in self._counts.items()}

    def add_state(self, state: Mapping[str, NDArray[np.int64]]) -> None:
        """Append another rank's state to this one; ValueError for an unknown kind or another shape."""
        for kind, counts in state.items():
            self._of_kind(kind).add_state(counts)

    def compute(self) -> dict[str, float]:
        """``ciou miou``, and for every kind that occurs ``{kind}_ciou {kind}_miou``, in percent.

        A ``ciou`` is left out where no mask has a pixel.
        """
        state = self.state()
        result = iou_figures(np.concatenate(list(state.values())))
        for kind, counts in state.items():
            result |= {f"{kind}_{name}": figure for name, figure in iou_figures(counts).items()}
        return result

    def _of_kind(self, kind: str) -> MaskCounts:
        if kind not in self._counts:
            raise ValueError(f"the type of a prompt must be one of {', '.join(KINDS)}, but got {kind!r}")
        return self._counts[kind]
