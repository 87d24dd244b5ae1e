"""IoU of the masks that referring expressions mean, and whether there is one (GRES, Liu et al., arXiv 2306.00968).

Letters: N expressions, H W size of an image.
"""

import numpy as np
from numpy.typing import NDArray

from psalm.evaluation.mask_iou import PREDICTED, TRUE, MaskCounts, iou_figures, ious

_PRECISION_THRESHOLDS = {"pr50": 0.5, "pr70": 0.7, "pr90": 0.9}


class ReferringIoU(MaskCounts):
    """cIoU, gIoU, precision at IoU thresholds, and accuracy about targets, in percent.

    An empty true mask is an expression without a target (gRefCOCO), an empty predicted mask says that there is none.
    The definitions are those of GRES and of ``refer_evaluation.py`` in its repository (ReLA):

    - ``giou``: mean IoU of all expressions; without a target, 1 if the prediction is empty, else 0.
    - ``ciou``: all intersections over all unions; a mask where there is no target adds its pixels to the unions.
    - ``pr50 pr70 pr90``: of the expressions with a target, the share whose IoU reaches the threshold; one whose
      prediction is empty has IoU 0 and stays among them.
    - ``n_acc``: of the expressions without a target, the share whose prediction is empty; ``t_acc``: of those with a
      target, the share whose prediction is not. Here the paper counts, as versions of that script disagree on T-acc.

    Figures are the same bits for any order of expressions and any number of ranks.
    """

    def compute(self) -> dict[str, float]:
        """``ciou giou pr50 pr70 pr90 n_acc t_acc`` in percent.

        Left out: ``pr*`` without an expression that has a target, ``n_acc`` and ``t_acc`` without one that has none,
        ``t_acc`` also without one that has a target, and ``ciou`` where no mask has a pixel.
        """
        counts = self.state()
        with_target = counts[:, TRUE] > 0
        says_target = counts[:, PREDICTED] > 0
        result = iou_figures(counts, mean="giou")
        if with_target.any():
            iou = ious(counts)
            result |= {name: _share(iou >= least, with_target) for name, least in _PRECISION_THRESHOLDS.items()}
        if not with_target.all():
            result["n_acc"] = _share(~says_target, ~with_target)
            if with_target.any():
                result["t_acc"] = _share(says_target, with_target)
        return result


def _share(chosen: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    """How many of the expressions ``among`` [N], at least one, are ``chosen`` [N], in percent."""
    return 100 * int(np.count_nonzero(chosen & among)) / int(np.count_nonzero(among))
