"""Cross-image IoU and location error against loops over pixels."""

import math
import pickle

import numpy as np
import pytest

from psalm.evaluation import CrossImageIoU


def random_pairs(count):
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(count):
        height, width = rng.integers(5, 12, size=2)
        truth = np.zeros((height, width), dtype=bool)
        if rng.random() < 0.7:
            top, left = rng.integers(0, height - 2), rng.integers(0, width - 2)
            truth[top : top + rng.integers(1, height), left : left + rng.integers(1, width)] = True
        pred = np.roll(truth, tuple(rng.integers(-2, 3, size=2)), axis=(0, 1)) ^ (rng.random(truth.shape) < 0.1)
        pairs.append((pred & (rng.random() < 0.8), truth))
    return pairs


def naive(pairs):
    ious, errors = [], []
    both_sum = either_sum = 0
    for pred, truth in pairs:
        spots = [(r, c) for r in range(truth.shape[0]) for c in range(truth.shape[1])]
        found, there = [s for s in spots if pred[s]], [s for s in spots if truth[s]]
        both, either = len(set(found) & set(there)), len(set(found) | set(there))
        both_sum, either_sum = both_sum + both, either_sum + either
        ious.append(both / either if there else float(not found))
        if there and found:
            (y, x), (v, u) = ([sum(axis) / len(s) for axis in zip(*s, strict=True)] for s in (found, there))
            errors.append(math.sqrt((y - v) ** 2 + (x - u) ** 2) / math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
        elif there:
            errors.append(1.0)
    result = {"ciou": both_sum / either_sum, "miou": sum(ious) / len(ious), "location_error": sum(errors) / len(errors)}
    return {name: 100 * value for name, value in result.items()}


def scored(pairs):
    metric = CrossImageIoU()
    for pair in pairs:
        metric.update(*pair)
    return metric.compute()


def dot(row, column):
    mask = np.zeros((7, 25), dtype=bool)
    mask[row, column] = True
    return mask


EMPTY = np.zeros((7, 25), dtype=bool)


def test_equals_loops_over_pixels_on_random_pairs():
    pairs = random_pairs(100)
    assert scored(pairs) == pytest.approx(naive(pairs), abs=1e-6)


def test_location_error_is_in_percent_of_the_diagonal():
    assert scored([(dot(0, 0), dot(3, 4))])["location_error"] == pytest.approx(100 * 5 / math.sqrt(7**2 + 25**2))


def test_empty_prediction_misses_by_the_whole_diagonal():
    assert scored([(EMPTY, dot(3, 4)), (dot(3, 4), dot(3, 4))]) == {"ciou": 50.0, "miou": 50.0, "location_error": 50.0}


def test_absent_category_has_no_location_and_its_false_pixels_enter_the_union():
    assert scored([(EMPTY, EMPTY)]) == {"miou": 100.0}
    assert scored([(dot(0, 0), EMPTY), (dot(1, 1), dot(1, 1))]) == {"ciou": 50.0, "miou": 50.0, "location_error": 0.0}


def test_nothing_counted_is_nothing_computed():
    assert scored([]) == {}


def test_states_of_ranks_give_the_same_bits_in_any_order():
    pairs = random_pairs(60)
    ranks = [CrossImageIoU() for _ in range(3)]
    for i, pair in enumerate(pairs):
        ranks[i % 3].update(*pair)
    merged = CrossImageIoU()
    for rank in ranks:
        merged.add_state(pickle.loads(pickle.dumps(rank.state())))
    assert merged.compute() == scored(pairs) == scored(reversed(pairs))


def test_masks_of_different_sizes_are_refused_and_not_counted():
    metric = CrossImageIoU()
    with pytest.raises(ValueError, match=r"masks must be bool \[H, W\] of one size"):
        metric.update(EMPTY, EMPTY.T)
    assert metric.compute() == {}
