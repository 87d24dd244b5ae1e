"""Referring IoU against a naive implementation with sets of pixels."""

import pickle

import numpy as np
import pytest

from psalm.evaluation import ReferringIoU


def pixels(mask):
    return {(r, c) for r in range(mask.shape[0]) for c in range(mask.shape[1]) if mask[r, c]}


def naive(pairs):
    both = either = 0
    iou_sum = 0.0
    targets, others = [], []
    for pred, truth in ((pixels(pred), pixels(truth)) for pred, truth in pairs):
        both += len(pred & truth)
        either += len(pred | truth)
        if truth:
            iou = len(pred & truth) / len(pred | truth)
            targets.append((iou, bool(pred)))
        else:
            iou = 0.0 if pred else 1.0
            others.append(not pred)
        iou_sum += iou
    result = {"ciou": both / either, "giou": iou_sum / len(pairs)}
    for threshold in (50, 70, 90):
        result[f"pr{threshold}"] = sum(iou >= threshold / 100 for iou, _ in targets) / len(targets)
    result["n_acc"] = sum(others) / len(others)
    result["t_acc"] = sum(said for _, said in targets) / len(targets)
    return {name: 100 * value for name, value in result.items()}


def random_pairs(count):
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(count):
        truth = rng.random(rng.integers(4, 9, size=2)) < rng.choice([0.0, 0.3, 0.6, 1.0])
        noise = rng.random(truth.shape) < rng.choice([0.0, 0.05, 0.3])
        pairs.append(((truth ^ noise) & (rng.random() < 0.8), truth))
    return pairs


def strip(length, size=10):
    """A mask of one row whose first ``length`` pixels are set."""
    return (np.arange(size) < length)[None]


def scored(*pairs):
    metric = ReferringIoU()
    for pair in pairs:
        metric.update(*pair)
    return metric.compute()


def test_equals_the_definitions_on_random_pairs():
    pairs = random_pairs(200)
    expected = naive(pairs)
    assert all(5 < value < 95 for value in expected.values()), "the random pairs must exercise every figure"
    assert scored(*pairs) == pytest.approx(expected, abs=1e-6)


def test_iou_at_a_threshold_counts_as_found():
    assert scored((strip(7), strip(10)), (strip(9), strip(10))) == {
        "ciou": 80.0,
        "giou": 80.0,
        "pr50": 100.0,
        "pr70": 100.0,
        "pr90": 50.0,
    }


def test_target_that_is_predicted_empty_stays_in_every_share():
    result = scored((strip(0), strip(4)), (strip(4), strip(4)))
    assert result == {"ciou": 50.0, "giou": 50.0, "pr50": 50.0, "pr70": 50.0, "pr90": 50.0}


def test_mask_without_a_target_enters_the_union_and_no_precision():
    result = scored((strip(6), strip(0)), (strip(4), strip(4)))
    assert result == dict.fromkeys(("pr50", "pr70", "pr90", "t_acc"), 100.0) | {
        "ciou": 40.0,
        "giou": 50.0,
        "n_acc": 0.0,
    }


def test_figures_of_expressions_that_do_not_occur_are_left_out():
    assert scored() == {}
    assert scored((strip(0), strip(0))) == {"giou": 100.0, "n_acc": 100.0}
    assert "n_acc" not in scored((strip(1), strip(1)))


def test_states_of_ranks_give_the_same_bits_in_any_order():
    pairs = random_pairs(60)
    ranks = [ReferringIoU() for _ in range(3)]
    for i, pair in enumerate(pairs):
        ranks[i % 3].update(*pair)
    merged = ReferringIoU()
    for rank in ranks:
        merged.add_state(pickle.loads(pickle.dumps(rank.state())))
    assert merged.compute() == scored(*pairs) == scored(*reversed(pairs))
