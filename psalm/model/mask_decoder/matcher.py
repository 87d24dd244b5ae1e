"""Which query answers for which ground-truth mask: Hungarian matching (DETR, arXiv 2005.12872; Mask2Former, 3.3).

Letters: B batch, Q queries, C classes incl. background (last), N masks of an image, M masks of the batch,
K regions of an image, R regions of the batch, P points, S side of the padded image, A assigned pairs of the batch,
L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from psalm.model.mask_decoder.points import PointSource, add_border, sample_maps, sample_masks
from psalm.model.mask_decoder.prediction import Prediction


@dataclass(frozen=True)
class Targets:
    """The ground truth of a batch, its images one after another."""

    masks: Tensor  # bool [M, S + 2, S + 2], with a border of zeros
    labels: Tensor | None  # int64 [M], class positions; None where the task has no classes
    counts: tuple[int, ...]  # N of each image
    answers: Tensor  # int64 [R], number of the mask within the batch that answers each region; -1 where none does
    regions: tuple[int, ...]  # K of each image

    @staticmethod
    def of(
        mask_labels: Sequence[Tensor],
        class_labels: Sequence[Tensor] | None,
        region_labels: Sequence[Tensor] | None = None,
    ) -> "Targets":
        """From one [N, S, S], one [N] and one [K] tensor per image.

        ``region_labels`` int64: which of the image's masks answers each region, -1 if none does; None where region k
        is answered by mask k.

        Raises:
            ValueError: masks and class labels of an image are not equally many.
            RuntimeError: a region label is no mask of its image (on a GPU the assertion fails on the device).
        """
        counts = tuple(len(masks) for masks in mask_labels)
        if class_labels is not None and (labelled := tuple(len(labels) for labels in class_labels)) != counts:
            raise ValueError(f"each mask needs one class label, but images have {counts} masks and {labelled} labels")
        labels = None if class_labels is None else torch.cat(list(class_labels))
        masks = add_border(torch.cat([masks.bool() for masks in mask_labels]))
        if region_labels is None:
            return Targets(masks, labels, counts, torch.arange(len(masks), device=masks.device), counts)
        answers = []
        for image, (labels_K, count) in enumerate(zip(region_labels, counts, strict=True)):
            known = ((labels_K >= -1) & (labels_K < count)).all()
            torch._assert_async(known, f"region labels of an image with {count} masks must be from -1 to {count - 1}")
            answers.append(torch.where(labels_K < 0, -1, labels_K + sum(counts[:image])))
        return Targets(masks, labels, counts, torch.cat(answers), tuple(len(labels_K) for labels_K in region_labels))


@dataclass(frozen=True)
class Assignment:
    """The pairs of one layer, sorted by image and then by query; every field int64 [A], on the predictions' device."""

    image: Tensor
    query: Tensor
    target: Tensor  # number of the mask within its image
    mask: Tensor  # number of the mask within the batch


@dataclass(frozen=True)
class HungarianMatcher:
    """Assigns queries to masks at the least total cost.

    The cost of a pair is ``class_weight`` times minus the probability of the mask's class, plus ``mask_weight`` times
    the binary cross-entropy, plus ``dice_weight`` times the dice loss, the last two over ``num_points`` random points
    that all masks of an image share. Without class logits (referring, region) only the masks count.
    """

    class_weight: float
    mask_weight: float
    dice_weight: float
    num_points: int

    @torch.no_grad()
    def __call__(self, predictions: Sequence[Prediction], targets: Targets, points: PointSource) -> list[Assignment]:
        """One assignment per layer. All layers' costs travel to the CPU together: one sync a call.

        An image with more masks than queries leaves masks unassigned. Costs that are not finite (a diverged or
        overflowed prediction) count as the highest: the loss itself then shows what happened.
        """
        device = predictions[0].masks.device
        image_of_mask = torch.repeat_interleave(torch.arange(len(targets.counts)), torch.tensor(targets.counts))
        image_of_mask = image_of_mask.to(device)
        with torch.autocast(device.type, enabled=False):
            costs = [
                self._cost(
                    prediction,
                    targets,
                    image_of_mask,
                    points("matching", layer, [1] * len(targets.counts), self.num_points),
                )
                for layer, prediction in enumerate(predictions)
            ]
        costs_LBQN = torch.stack(costs).nan_to_num(nan=1e9, posinf=1e9, neginf=-1e9).cpu().numpy()
        starts = [sum(targets.counts[:i]) for i in range(len(targets.counts))]
        rows = []  # [4, A] of each layer
        for cost_BQN in costs_LBQN:
            columns: list[list[int]] = [[], [], [], []]
            for image, (start, count) in enumerate(zip(starts, targets.counts, strict=True)):
                queries, masks = linear_sum_assignment(cost_BQN[image, :, :count])
                columns[0] += [image] * len(queries)
                columns[1] += queries.tolist()
                columns[2] += masks.tolist()
                columns[3] += (masks + start).tolist()
            rows.append(columns)
        pairs = torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
        return [Assignment(*layer) for layer in pairs]

    def _cost(self, prediction: Prediction, targets: Targets, image_of_mask: Tensor, points_BP2: Tensor) -> Tensor:
        """Costs [B, Q, Nmax] in float32; columns beyond an image's own N mean nothing."""
        points_BP2 = points_BP2.to(prediction.masks.device, non_blocking=True)
        logits_BQP = sample_maps(prediction.masks.float(), points_BP2)
        truth_MP = sample_masks(
            targets.masks, torch.arange(len(targets.masks), device=image_of_mask.device), points_BP2[image_of_mask]
        )
        truth_BPN = pad_sequence(truth_MP.split(targets.counts), batch_first=True).transpose(1, 2)

        # BCE(x, t) = softplus(x) - x t, and so the sum over points is one matrix product.
        probability_BQP = logits_BQP.sigmoid()
        cross_entropy = (F.softplus(logits_BQP).sum(-1, keepdim=True) - logits_BQP @ truth_BPN) / self.num_points
        overlap = probability_BQP @ truth_BPN
        total = probability_BQP.sum(-1, keepdim=True) + truth_BPN.sum(1, keepdim=True)
        dice = 1 - (2 * overlap + 1) / (total + 1)
        cost = self.mask_weight * cross_entropy + self.dice_weight * dice

        if prediction.class_logits is not None:
            if targets.labels is None:
                raise ValueError("class logits cannot be matched without class labels")
            labels_BN = pad_sequence(targets.labels.split(targets.counts), batch_first=True)
            probability_BQC = prediction.class_logits.float().softmax(-1)
            cost = cost - self.class_weight * probability_BQC.gather(
                2, labels_BN[:, None].expand(-1, probability_BQC.shape[1], -1)
            )
        return cost
