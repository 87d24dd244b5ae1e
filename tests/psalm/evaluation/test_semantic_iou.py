"""Semantic IoU against loops over pixels that follow the definitions."""

import pickle

import numpy as np
import pytest

from psalm.evaluation import SemanticIoU


def naive(pairs, num_classes):
    truth_of, pred_of, both = ([0] * num_classes for _ in range(3))
    for pred, truth in pairs:
        for p, t in zip(pred.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if t == -1:
                continue
            truth_of[t] += 1
            pred_of[p] += 1
            both[t] += p == t
    iou = {c: both[c] / (truth_of[c] + pred_of[c] - both[c]) for c in range(num_classes) if truth_of[c]}
    total = sum(truth_of)
    return {
        "miou": 100 * sum(iou.values()) / len(iou),
        "fwiou": 100 * sum(iou[c] * truth_of[c] / total for c in iou),
        "pixel_accuracy": 100 * sum(both) / total,
    }


def random_pairs(count):
    """Class 5 is never true but predicted, class 6 is neither."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(count):
        truth = rng.integers(-1, 5, size=rng.integers(5, 12, size=2))
        pred = np.where(rng.random(truth.shape) < 0.6, truth.clip(min=0), rng.integers(0, 6, size=truth.shape))
        pairs.append((pred, truth))
    return pairs


def test_equals_the_definitions_counted_pixel_by_pixel():
    pairs = random_pairs(30)
    metric = SemanticIoU(7)
    for pair in pairs:
        metric.update(*pair)
    assert metric.compute() == pytest.approx(naive(pairs, 7), abs=1e-6)
    assert metric.per_category().keys() == set(range(5))


def test_class_predicted_where_it_is_not_lowers_others_and_has_no_iou():
    metric = SemanticIoU(3)
    metric.update(np.array([[0, 0, 1, 2]]), np.array([[0, 0, 1, 1]]))
    assert metric.per_category() == {0: {"iou": 100.0}, 1: {"iou": 50.0}}
    assert metric.compute() == {"miou": 75.0, "fwiou": 75.0, "pixel_accuracy": 75.0}


def test_prediction_on_ignored_pixels_counts_nowhere():
    metric = SemanticIoU(2)
    metric.update(np.array([[0, 1, 1]]), np.array([[0, -1, -1]]))
    assert metric.state().tolist() == [[1, 0], [0, 0]]


def test_classes_of_small_integer_types_do_not_overflow():
    metric = SemanticIoU(200)
    metric.update(np.full((2, 2), 199, dtype=np.uint8), np.full((2, 2), 198, dtype=np.int16))
    assert metric.state()[198, 199] == 4


def test_nothing_labelled_is_nothing_computed():
    metric = SemanticIoU(2)
    metric.update(np.zeros((2, 2), dtype=np.int64), np.full((2, 2), -1))
    assert metric.compute() == metric.per_category() == {}


def test_state_stays_as_it_was_taken():
    metric = SemanticIoU(1)
    state = metric.state()
    metric.update(np.array([[0]]), np.array([[0]]))
    assert state.tolist() == [[0]]


def test_states_of_ranks_give_the_same_bits_in_any_order():
    pairs = random_pairs(20)
    alone, ranks = SemanticIoU(7), [SemanticIoU(7) for _ in range(3)]
    for i, pair in enumerate(pairs):
        alone.update(*pair)
        ranks[i % 3].update(*pair)
    merged = SemanticIoU(7)
    for rank in reversed(ranks):
        merged.add_state(pickle.loads(pickle.dumps(rank.state())))
    assert merged.compute() == alone.compute()


@pytest.mark.parametrize(
    ("pred", "truth", "message"),
    [
        (
            np.zeros((2, 2)),
            np.zeros((2, 2), int),
            r"maps must be int \[H, W\] of one size, .* float64 \[2, 2\], the truth",
        ),
        (np.zeros((2, 3), int), np.zeros((2, 2), int), r"the prediction is int64 \[2, 3\], the truth int64 \[2, 2\]"),
        (np.zeros((1, 2, 2), int), np.zeros((1, 2, 2), int), r"the prediction is int64 \[1, 2, 2\]"),
        (np.array([[-1]]), np.array([[0]]), "the predicted map has class -1: classes are 0 to 1$"),
        (np.array([[0]]), np.array([[255]]), "the true map has class 255: classes are 0 to 1, -1 where nothing is"),
    ],
)
def test_wrong_maps_are_refused(pred, truth, message):
    metric = SemanticIoU(2)
    with pytest.raises(ValueError, match=message):
        metric.update(pred, truth)
    assert not metric.state().any()


def test_state_of_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"the state must have shape \(2, 2\), but got \(3, 3\)"):
        SemanticIoU(2).add_state(SemanticIoU(3).state())


def test_no_classes_are_refused():
    with pytest.raises(ValueError, match="num_classes must be at least 1, but got 0"):
        SemanticIoU(0)
