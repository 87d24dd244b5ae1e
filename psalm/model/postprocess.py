"""Logits -> results at the image's own size, one image at a time: pure functions.

Inference of Mask2Former (arXiv 2112.01527) with PSALM's thresholds. Mask logits are resized first (``resize_masks``).

Letters: Q queries, C classes incl. background (last), R regions, T results, H W size of the original image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ABSENT_THRESHOLD = 0.5
"""Probability below which a region's object is absent from an image, where it may be (``cross_image``)."""


@dataclass(frozen=True)
class SegmentPrediction:
    """One segment of a panoptic map."""

    id: int  # from 1; 0 is void
    category: int  # class position, as in the logits
    isthing: bool
    score: float  # class probability; of a stuff segment merged from several queries, the highest


@dataclass(frozen=True)
class InstancePrediction:
    """Instances, not sorted by score."""

    masks: Tensor  # bool [T, H, W]
    categories: Tensor  # int64 [T]
    scores: Tensor  # float32 [T], in [0, 1]


@dataclass(frozen=True)
class MaskPrediction:
    """Masks of queries and how well each answers what was asked."""

    masks: Tensor  # bool [T, H, W]
    scores: Tensor  # float32 in [0, 1]: [T] for one question, [R, T] for one per region


def resize_masks(
    mask_logits: Tensor, image_size: tuple[int, int], padded_size: tuple[int, int], original_size: tuple[int, int]
) -> Tensor:
    """Mask logits [Q, h, w] of the padded image -> float32 [Q, H, W] of the original one.

    Bilinear to ``padded_size``, cut to ``image_size`` (the valid rows and columns), bilinear to ``original_size``;
    all sizes are (height, width). ValueError if the valid part is larger than the padded image.
    """
    height, width = image_size
    if height > padded_size[0] or width > padded_size[1]:
        raise ValueError(f"image_size {image_size} must lie within padded_size {padded_size}")
    padded = F.interpolate(mask_logits[None].float(), size=padded_size, mode="bilinear", align_corners=False)
    valid = padded[..., :height, :width]
    return F.interpolate(valid, size=original_size, mode="bilinear", align_corners=False)[0]


def panoptic(
    class_logits: Tensor,
    mask_logits: Tensor,
    isthing: Sequence[bool],
    object_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> tuple[Tensor, list[SegmentPrediction]]:
    """One segment id per pixel: int32 [H, W] (0 = void), and the segments, every one of which has pixels.

    Queries that name a class with a probability above ``object_threshold`` compete for each pixel by that probability
    times the mask's; one that keeps less than ``overlap_threshold`` of its own mask is dropped, and its pixels are
    void. Stuff of one class is one segment. ``class_logits`` [Q, C], ``mask_logits`` [Q, H, W], ``isthing`` [C - 1].
    Two syncs with the CPU.
    """
    scores_Q, labels_Q = class_logits.float().softmax(-1).max(-1)
    kept = ((labels_Q != class_logits.shape[-1] - 1) & (scores_Q > object_threshold)).nonzero().squeeze(1)
    if not len(kept):
        return torch.zeros(mask_logits.shape[-2:], dtype=torch.int32, device=mask_logits.device), []

    scores, labels = scores_Q[kept], labels_Q[kept]
    probabilities = mask_logits[kept].float().sigmoid()
    winner_HW = (scores[:, None, None] * probabilities).argmax(0)
    inside_HW = probabilities.gather(0, winner_HW[None])[0] >= 0.5
    full_area = (probabilities >= 0.5).flatten(1).sum(1)
    zeros = torch.zeros_like(full_area)
    won_area = zeros.scatter_add(0, winner_HW.flatten(), torch.ones_like(winner_HW).flatten())
    seen_area = zeros.scatter_add(0, winner_HW.flatten(), inside_HW.flatten().to(zeros.dtype))

    table = torch.stack([scores.double(), *(column.double() for column in (labels, won_area, full_area, seen_area))])
    segments: list[SegmentPrediction] = []
    stuff: dict[int, int] = {}  # category -> segment id
    id_of_query = []
    for score, label, won, full, seen in zip(*table.tolist(), strict=True):
        category = int(label)
        if seen == 0 or won / full < overlap_threshold:
            id_of_query.append(0)
        elif category in stuff:
            merged = segments[stuff[category] - 1]
            segments[merged.id - 1] = SegmentPrediction(merged.id, category, False, max(score, merged.score))
            id_of_query.append(merged.id)
        else:
            segment = SegmentPrediction(len(segments) + 1, category, bool(isthing[category]), score)
            segments.append(segment)
            id_of_query.append(segment.id)
            if not segment.isthing:
                stuff[category] = segment.id
    ids = torch.tensor(id_of_query, dtype=torch.int32).to(mask_logits.device)
    return ids[winner_HW] * inside_HW, segments


def semantic(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Scores of every class at every pixel, float32 [C - 1, H, W] (not normalised); the class is the argmax."""
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    return torch.einsum("qc,qhw->chw", probabilities, mask_logits.float().sigmoid())


def semantic_labels(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """The class of every pixel, int64 [H, W]: the one with the highest score; see ``semantic``."""
    return semantic(class_logits, mask_logits).argmax(0)


def instance(
    class_logits: Tensor, mask_logits: Tensor, top_k: int = 100, isthing: Sequence[bool] | None = None
) -> InstancePrediction:
    """The ``top_k`` pairs of query and class by class probability; with ``isthing`` [C - 1] only things among them.

    Score: class probability times the mean mask probability inside the mask.
    """
    scores_QC = class_logits.float().softmax(-1)[:, :-1]
    scores, pairs = scores_QC.flatten().topk(min(top_k, scores_QC.numel()), sorted=False)
    queries, categories = pairs // scores_QC.shape[1], pairs % scores_QC.shape[1]
    if isthing is not None:
        things = torch.tensor(isthing, dtype=torch.bool).to(categories.device)[categories]
        scores, queries, categories = scores[things], queries[things], categories[things]
    quality = _mask_quality(mask_logits)
    return InstancePrediction((mask_logits > 0)[queries], categories, scores * quality[queries])


def referring(seg_logits: Tensor, mask_logits: Tensor, top_k: int | None = None) -> MaskPrediction:
    """The ``top_k`` (all, if None) queries by their [SEG] score, not sorted: masks [T, H, W], scores [T].

    ``seg_logits`` [Q, 1]. Score: sigmoid of the logit times the mean mask probability inside the mask.
    """
    scores_Q = seg_logits.float().sigmoid().flatten()
    scores, queries = scores_Q.topk(len(scores_Q) if top_k is None else min(top_k, len(scores_Q)), sorted=False)
    return MaskPrediction((mask_logits > 0)[queries], scores * _mask_quality(mask_logits)[queries])


def best_mask(seg_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """What an expression means, bool [H, W]: the mask of the query with the best score; see ``referring``."""
    found = referring(seg_logits, mask_logits)
    return found.masks[found.scores.argmax()]


def generalised_mask(seg_logits: Tensor, mask_logits: Tensor, threshold: float = 0.6) -> Tensor:
    """What an expression that may mean several objects or none means, bool [H, W].

    It is all masks together whose score (see ``referring``) is above ``threshold``: PSALM's rule for gRefCOCO. Where
    there is none the answer is that nothing is meant: an empty mask.
    """
    found = referring(seg_logits, mask_logits)
    return (found.masks & (found.scores > threshold)[:, None, None]).any(0)


def region(region_logits: Tensor, mask_logits: Tensor) -> MaskPrediction:
    """Every query's mask [Q, H, W] and its score for every region [R, Q]; a region's answer is the argmax of its row.

    ``region_logits`` [R, Q]. Score as for ``referring``.
    """
    return MaskPrediction(mask_logits > 0, region_logits.float().sigmoid() * _mask_quality(mask_logits))


def region_masks(region_logits: Tensor, mask_logits: Tensor, absent_threshold: float | None = None) -> Tensor:
    """The answer to each region, bool [R, H, W]: the mask of the query with the best score; see ``region``.

    With ``absent_threshold`` (``ABSENT_THRESHOLD`` for ``cross_image``) the answer is an empty mask where no query's
    probability for the region, the sigmoid of its logit, reaches it.
    """
    found = region(region_logits, mask_logits)
    answers_RHW = found.masks[found.scores.argmax(1)]
    if absent_threshold is None:
        return answers_RHW
    present_R = region_logits.float().sigmoid().amax(1) >= absent_threshold
    return answers_RHW & present_R[:, None, None]


def _mask_quality(mask_logits: Tensor) -> Tensor:
    """Mean probability inside each mask [Q]; 0 for an empty mask."""
    inside = (mask_logits > 0).flatten(1)
    return (mask_logits.float().sigmoid().flatten(1) * inside).sum(1) / (inside.sum(1) + 1e-6)
