"""Hungarian matching against a search of every assignment."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from psalm.model.mask_decoder.matcher import HungarianMatcher, Targets
from psalm.model.mask_decoder.points import KeyedPoints, sample_maps, sample_masks
from psalm.model.mask_decoder.prediction import Prediction

MATCHER = HungarianMatcher(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, num_points=30)
KEYS = [5, 6, 7]
COUNTS = (3, 0, 2)
Q, C, LAYERS = 5, 4, 3


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    predictions = [
        Prediction(
            masks=3 * torch.randn(len(COUNTS), Q, 6, 8, generator=generator),
            class_logits=2 * torch.randn(len(COUNTS), Q, C, generator=generator),
        )
        for _ in range(LAYERS)
    ]
    masks = [torch.rand(n, 24, 24, generator=generator) > 0.6 for n in COUNTS]
    labels = [torch.randint(0, C - 1, (n,), generator=generator) for n in COUNTS]
    return predictions, Targets.of(masks, labels)


def pairs_of(assignment, image):
    here = assignment.image == image
    return list(zip(assignment.query[here].tolist(), assignment.target[here].tolist(), strict=True))


def naive_costs(prediction, masks, labels, image, points):
    """Cost of every pair by the definitions, pair by pair, in float64."""
    read = sample_maps(prediction.masks[image][None], points)[0].double().numpy()
    truth = sample_masks(masks, torch.arange(len(masks)), points.expand(len(masks), -1, -1)).double().numpy()
    costs = np.zeros((len(read), len(truth)))
    for q, x in enumerate(read):
        for n, t in enumerate(truth):
            p = 1 / (1 + np.exp(-x))
            bce = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
            dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            costs[q, n] = 5 * bce + 5 * dice
            if prediction.class_logits is not None:
                e = np.exp(prediction.class_logits[image, q].double().numpy())
                costs[q, n] -= 2 * e[labels[n]] / e.sum()
    return costs


@pytest.mark.parametrize("with_classes", [True, False])
def test_finds_the_cheapest_assignment_of_every_layer_and_image(with_classes):
    predictions, targets = batch()
    if not with_classes:
        predictions = [replace(prediction, class_logits=None) for prediction in predictions]
    masks, labels = targets.masks.split(COUNTS), targets.labels.split(COUNTS)
    assignments = MATCHER(predictions, targets, KeyedPoints(KEYS))
    for layer, assignment in enumerate(assignments):
        for image, count in enumerate(COUNTS):
            points = KeyedPoints(KEYS)("matching", layer, [1, 1, 1], 30)[image : image + 1]
            costs = naive_costs(predictions[layer], masks[image], labels[image], image, points)
            cheapest = min(
                permutations(range(Q), count), key=lambda queries: sum(costs[q, n] for n, q in enumerate(queries))
            )
            assert pairs_of(assignment, image) == sorted((q, n) for n, q in enumerate(cheapest))


def test_masks_are_numbered_within_the_image_and_within_the_batch():
    predictions, targets = batch()
    for assignment in MATCHER(predictions, targets, KeyedPoints(KEYS)):
        assert assignment.image.tolist() == [0, 0, 0, 2, 2]
        starts = torch.tensor([0, 3, 3])
        assert (assignment.mask == starts[assignment.image] + assignment.target).all()


def test_layers_are_matched_each_on_its_own():
    predictions, targets = batch()
    found = [pairs_of(assignment, 0) for assignment in MATCHER(predictions, targets, KeyedPoints(KEYS))]
    assert len({tuple(pairs) for pairs in found}) > 1


def test_more_masks_than_queries_leaves_masks_unassigned():
    masks = torch.rand(Q + 2, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    prediction = Prediction(masks=torch.randn(1, Q, 4, 4, generator=torch.Generator().manual_seed(1)))
    (assignment,) = MATCHER([prediction], Targets.of([masks], None), KeyedPoints([1]))
    assert assignment.query.tolist() == list(range(Q))
    assert len(set(assignment.mask.tolist())) == Q


def test_no_masks_at_all():
    targets = Targets.of([torch.zeros(0, 8, 8, dtype=torch.bool)] * 3, [torch.zeros(0, dtype=torch.int64)] * 3)
    for assignment in MATCHER(batch()[0], targets, KeyedPoints(KEYS)):
        assert len(assignment.query) == 0


def test_prediction_that_is_not_finite_is_matched_last():
    predictions, targets = batch()
    predictions[0].masks[0, 1] = float("nan")
    predictions[0].masks[0, 3] = float("inf")
    assignment = MATCHER(predictions, targets, KeyedPoints(KEYS))[0]
    assert [query for query, _ in pairs_of(assignment, 0)] == [0, 2, 4]


def test_answers_are_numbered_within_the_batch():
    masks, labels = [torch.zeros(n, 4, 4, dtype=torch.bool) for n in COUNTS], [[2, -1, 0, 2], [-1], [1]]
    targets = Targets.of(masks, None, [torch.tensor(answers) for answers in labels])
    assert targets.answers.tolist() == [2, -1, 0, 2, -1, 3 + 1]
    assert targets.regions == (4, 1, 1)
    assert Targets.of(masks, None).answers.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("label", [-2, 2])
def test_an_answer_must_be_one_of_the_image_s_masks(label):
    masks = [torch.zeros(2, 4, 4, dtype=torch.bool), torch.zeros(3, 4, 4, dtype=torch.bool)]
    with pytest.raises(RuntimeError, match="region labels of an image with 2 masks must be from -1 to 1"):
        Targets.of(masks, None, [torch.tensor([0, label]), torch.tensor([2])])


def test_labels_must_fit_masks():
    masks = [torch.zeros(2, 4, 4, dtype=torch.bool)]
    message = r"each mask needs one class label, but images have \(2,\) masks and \(1,\) labels"
    with pytest.raises(ValueError, match=message):
        Targets.of(masks, [torch.zeros(1, dtype=torch.int64)])
    with pytest.raises(ValueError, match="class logits cannot be matched without class labels"):
        MATCHER(batch()[0], Targets.of([torch.zeros(1, 4, 4)] * 3, None), KeyedPoints(KEYS))
