"""What the model is trained on: losses of masks and of their names, at every layer of the predictor.

Letters as in the matcher: B batch, Q queries, C classes incl. background (last), N masks of an image, M masks of the
batch, K regions of an image, R regions of the batch, P points, A assigned pairs of the batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from psalm.model.mask_decoder.matcher import Assignment, HungarianMatcher, Targets
from psalm.model.mask_decoder.points import KeyedPoints, PointSource, sample_maps, sample_masks, uncertain_points
from psalm.model.mask_decoder.prediction import Prediction

_NO_MASKS = 1e-6
"""Divides sums that are zero because no image of the whole step has a mask."""


class PsalmCriterion:
    """Matching and losses of one batch of one task, summed over the predictor's layers (deep supervision).

    ========================  ==========================================================  ==========================
    loss                      what                                                        divided by
    ========================  ==========================================================  ==========================
    loss_mask                 BCE, mean over P points, of the assigned masks              number of masks
    loss_dice                 dice loss over the same points                              number of masks
    loss_class_name_class     CE of every query; background weighs ``no_object_weight``   sum of the class weights
    loss_SEG_class            BCE of every query; positives weigh (n - k) / k             n = images x Q
    loss_region_class         BCE of every region and query; positives weigh Q - 1        regions x Q
    ========================  ==========================================================  ==========================

    with k the number of masks. A region's positive is the query that is assigned to the mask that answers it: several
    regions may share one, and a region that no mask answers has none. Which of the last three losses there is depends
    on the logits in the prediction; an absent loss is absent, not zero. Points are drawn as in PointRend (arXiv
    1912.08193): of ``oversample_ratio * num_points`` candidates the most uncertain fill ``importance_sample_ratio`` of
    the ``num_points``, uniform points the rest.

    **Normalisation.** Every denominator is known from the numbers of masks, of regions and of images alone. Where
    ``num_masks`` or ``num_regions`` is None it is that of this batch. A caller that splits one step over ranks and
    micro-batches gives the totals of the whole step, and the *sum* of the parts' losses is then the loss of the
    undivided batch, exactly, for every loss above. Where parts are *averaged* (as data-parallel training does with
    gradients), give totals divided by the number of parts; ``num_images`` is then the batch size, which is its default.
    Points are drawn from each image's own key, so the split does not change them either. Averaging parts that were
    given no totals is not the loss of the undivided batch: masks of images with few of them then weigh more.

    Everything is computed in float32, whatever the predictions' type and the surrounding autocast.
    """

    def __init__(
        self,
        *,
        class_weight: float,
        mask_weight: float,
        dice_weight: float,
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
    ) -> None:
        if num_points < 1:
            raise ValueError(f"num_points must be at least 1, but got {num_points}")
        if oversample_ratio < 1:
            raise ValueError(f"oversample_ratio must be at least 1, but got {oversample_ratio}")
        if not 0 <= importance_sample_ratio <= 1:
            raise ValueError(f"importance_sample_ratio must be in [0, 1], but got {importance_sample_ratio}")
        self.matcher = HungarianMatcher(class_weight, mask_weight, dice_weight, num_points)
        self.weights = {
            "loss_mask": mask_weight,
            "loss_dice": dice_weight,
            "loss_class_name_class": class_weight,
            "loss_SEG_class": class_weight,
            "loss_region_class": class_weight,
        }
        self.no_object_weight = no_object_weight
        self.num_points = num_points
        self.num_candidates = int(num_points * oversample_ratio)
        self.num_uncertain = int(num_points * importance_sample_ratio)

    def __call__(
        self,
        predictions: Sequence[Prediction],
        mask_labels: Sequence[Tensor],
        class_labels: Sequence[Tensor] | None,
        random_keys: Tensor,
        *,
        region_labels: Sequence[Tensor] | None = None,
        num_masks: float | Tensor | None = None,
        num_regions: float | Tensor | None = None,
        num_images: float | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses by name, each a float32 scalar; their sum is what is minimised.

        ``predictions`` one per layer, the final one last; ``mask_labels`` bool [N, S, S] and ``class_labels``
        int64 [N] per image (None where the task has no class names; N = 0 is allowed); ``random_keys`` int64 [B];
        ``region_labels`` int64 [K] per image: which of its masks answers each region, -1 if none does, and None where
        region k is answered by mask k. ``num_masks``, ``num_regions`` and ``num_images``: see the class.
        """
        layers = self.layer_losses(
            predictions,
            Targets.of(mask_labels, class_labels, region_labels),
            KeyedPoints(random_keys.tolist()),
            num_masks=num_masks,
            num_regions=num_regions,
            num_images=num_images,
        )
        return {name: self.weights[name] * torch.stack([losses[name] for losses in layers]).sum() for name in layers[0]}

    def layer_losses(
        self,
        predictions: Sequence[Prediction],
        targets: Targets,
        points: PointSource,
        *,
        num_masks: float | Tensor | None = None,
        num_regions: float | Tensor | None = None,
        num_images: float | None = None,
    ) -> list[dict[str, Tensor]]:
        """Unweighted losses of each layer, in the order of ``predictions``."""
        assignments = self.matcher(predictions, targets, points)
        device = predictions[0].masks.device
        num_masks, num_regions = _on(device, num_masks), _on(device, num_regions)
        masks = max(sum(targets.counts), 1) if num_masks is None else num_masks
        regions = sum(targets.regions) if num_regions is None else num_regions
        images = float(len(targets.counts)) if num_images is None else num_images
        losses = []
        with torch.autocast(device.type, enabled=False):
            for layer, (prediction, assigned) in enumerate(zip(predictions, assignments, strict=True)):
                foreground = len(assigned.query) if num_masks is None else num_masks
                result = self._mask_losses(prediction.masks, targets, assigned, points, layer, masks)
                if prediction.class_logits is not None:
                    result["loss_class_name_class"] = self._class_loss(
                        prediction.class_logits, targets, assigned, foreground, images
                    )
                if prediction.seg_logits is not None:
                    result["loss_SEG_class"] = _seg_loss(prediction.seg_logits, assigned, masks, images)
                if prediction.region_logits is not None:
                    result["loss_region_class"] = _region_loss(prediction.region_logits, targets, assigned, regions)
                losses.append(result)
        return losses

    def _mask_losses(
        self,
        logits_BQHW: Tensor,
        targets: Targets,
        assigned: Assignment,
        points: PointSource,
        layer: int,
        num_masks: float | Tensor,
    ) -> dict[str, Tensor]:
        counts = [min(count, logits_BQHW.shape[1]) for count in targets.counts]
        logits_AHW = logits_BQHW[assigned.image, assigned.query].float()
        chosen = points("uniform", layer, counts, self.num_points - self.num_uncertain).to(logits_AHW.device)
        if self.num_uncertain:
            candidates = points("candidates", layer, counts, self.num_candidates).to(logits_AHW.device)
            chosen = torch.cat([uncertain_points(logits_AHW, candidates, self.num_uncertain), chosen], dim=1)
        truth_AP = sample_masks(targets.masks, assigned.mask, chosen)
        logits_AP = sample_maps(logits_AHW[:, None], chosen).squeeze(1)

        cross_entropy = F.binary_cross_entropy_with_logits(logits_AP, truth_AP, reduction="none").mean(1)
        probability_AP = logits_AP.sigmoid()
        overlap = (probability_AP * truth_AP).sum(1)
        dice = 1 - (2 * overlap + 1) / (probability_AP.sum(1) + truth_AP.sum(1) + 1)
        return {
            "loss_mask": _divide(cross_entropy.sum(), num_masks),
            "loss_dice": _divide(dice.sum(), num_masks),
        }

    def _class_loss(
        self, logits_BQC: Tensor, targets: Targets, assigned: Assignment, foreground: float | Tensor, images: float
    ) -> Tensor:
        if targets.labels is None:
            raise ValueError("class logits need class labels")
        B, Q, C = logits_BQC.shape
        truth_BQ = torch.full((B, Q), C - 1, dtype=torch.int64, device=logits_BQC.device)
        truth_BQ[assigned.image, assigned.query] = targets.labels[assigned.mask]
        weight_C = torch.ones(C, device=logits_BQC.device)
        weight_C[-1] = self.no_object_weight
        total = F.cross_entropy(logits_BQC.float().flatten(0, 1), truth_BQ.flatten(), weight_C, reduction="sum")
        # The sum of the targets' class weights: 1 for every assigned query, no_object_weight for every other.
        return _divide(total, self.no_object_weight * (images * Q - foreground) + foreground)


def _seg_loss(logits_BQ1: Tensor, assigned: Assignment, num_masks: float | Tensor, images: float) -> Tensor:
    logits_BQ = logits_BQ1.squeeze(-1).float()
    truth_BQ = torch.zeros_like(logits_BQ)
    truth_BQ[assigned.image, assigned.query] = 1
    count = images * logits_BQ.shape[1]
    negatives = torch.as_tensor(count - num_masks, dtype=torch.float32, device=logits_BQ.device)
    weight = _divide(negatives, num_masks).clamp(min=0)
    total = F.binary_cross_entropy_with_logits(logits_BQ, truth_BQ, pos_weight=weight, reduction="sum")
    return _divide(total, count)


def _region_loss(
    logits: Sequence[Tensor], targets: Targets, assigned: Assignment, num_regions: float | Tensor
) -> Tensor:
    regions = tuple(len(logits_KQ) for logits_KQ in logits)
    if regions != targets.regions:
        raise ValueError(
            f"each region needs one label, but images have {regions} regions and {targets.regions} region labels "
            "(or masks, where no region_labels are given)"
        )
    logits_RQ = torch.cat([logits_KQ.float() for logits_KQ in logits])
    Q = logits_RQ.shape[1]
    # The entry after the last mask is never assigned: that is where an answer of -1 reads.
    query_of_mask = assigned.query.new_full((sum(targets.counts) + 1,), -1)
    query_of_mask[assigned.mask] = assigned.query
    queries_Q = torch.arange(Q, device=logits_RQ.device)
    truth_RQ = (query_of_mask[targets.answers][:, None] == queries_Q).float()
    weight = logits_RQ.new_full((), Q - 1)
    total = F.binary_cross_entropy_with_logits(logits_RQ, truth_RQ, pos_weight=weight, reduction="sum")
    return _divide(total, num_regions * Q)


def _on(device: torch.device, total: float | Tensor | None) -> float | Tensor | None:
    """A step's total where losses are computed; a scalar if it is a tensor."""
    return total.to(device, torch.float32).reshape(()) if isinstance(total, Tensor) else total


def _divide(total: Tensor, count: float | Tensor) -> Tensor:
    """``total / count``; zero, still part of the graph, where neither has anything to count."""
    return total / (count.clamp(min=_NO_MASKS) if isinstance(count, Tensor) else max(count, _NO_MASKS))
