"""Panoptic quality against a naive implementation that follows the paper's definition with sets of pixels."""

from collections import Counter

import numpy as np
import pytest

from psalm.evaluation import PanopticQuality

ISTHING = (True, True, True, False, False, False, True)  # 6 never occurs


class NaiveQuality:
    """Every segment is a Python set of pixels."""

    def __init__(self):
        self.iou = Counter()
        self.tp = Counter()
        self.fp = Counter()
        self.fn = Counter()
        self.rules = Counter()

    def update(self, pred_map, pred_segments, true_map, true_segments):
        def pixels_of(segment_map, wanted):
            rows, columns = segment_map.shape
            return {(r, c) for r in range(rows) for c in range(columns) if segment_map[r, c] == wanted}

        void = pixels_of(true_map, 0)
        truth = {s: pixels_of(true_map, s) for s in true_segments}
        predictions = {s: pixels_of(pred_map, s) for s in pred_segments}
        crowd_of = {category: s for s, (category, crowd) in true_segments.items() if crowd}
        matched = set()
        for true_id, (category, crowd) in true_segments.items():
            if crowd:
                continue
            partner = None
            for pred_id, pred_category in pred_segments.items():
                labelled = predictions[pred_id] - void
                both = len(truth[true_id] & labelled)
                either = len(truth[true_id] | labelled)
                if pred_category == category and both / either > 0.5:
                    assert partner is None
                    partner = pred_id
                    self.iou[category] += both / either
                    self.rules["void shrinks a union"] += len(labelled) < len(predictions[pred_id])
            if partner is None:
                self.fn[category] += 1
            else:
                self.tp[category] += 1
                matched.add(partner)
        for pred_id, category in pred_segments.items():
            if pred_id in matched:
                continue
            excused = predictions[pred_id] & (void | truth.get(crowd_of.get(category), set()))
            if 2 * len(excused) > len(predictions[pred_id]):
                self.rules["excused by void alone"] += 2 * len(predictions[pred_id] & void) > len(predictions[pred_id])
                self.rules["excused by crowd"] += 2 * len(predictions[pred_id] & void) <= len(predictions[pred_id])
            else:
                self.fp[category] += 1

    def compute(self):
        result = {}
        for suffix, wanted in (("", (True, False)), ("_things", (True,)), ("_stuff", (False,))):
            rows = []
            for category, isthing in enumerate(ISTHING):
                tp, fp, fn = self.tp[category], self.fp[category], self.fn[category]
                if isthing in wanted and tp + fp + fn > 0:
                    sq = self.iou[category] / tp if tp else 0
                    rq = tp / (tp + fp / 2 + fn / 2)
                    rows.append((sq * rq, sq, rq))
            if rows:
                for i, name in enumerate(("pq", "sq", "rq")):
                    result[name + suffix] = 100 * sum(row[i] for row in rows) / len(rows)
        return result


def random_pair(rng):
    """A truth of rectangles with void and crowds, and a prediction made of shifted, relabelled and stray ones."""
    height, width = rng.integers(9, 17, size=2)

    def ids(n):
        return [int(s) for s in rng.choice(2**24 - 1, size=n, replace=False) + 1]

    def rectangle():
        top, left = rng.integers(0, height - 3), rng.integers(0, width - 3)
        return slice(top, top + rng.integers(2, height)), slice(left, left + rng.integers(2, width))

    true_map = np.zeros((height, width), dtype=np.int32)
    true_segments, crowds = {}, set()
    for segment in ids(rng.integers(1, 7)):
        category = int(rng.integers(0, 6))
        crowd = bool(rng.random() < 0.3) and category not in crowds
        crowds |= {category} if crowd else set()
        true_map[rectangle()] = segment
        true_segments[segment] = (category, crowd)
    true_map[rectangle()] = 0
    true_segments = {s: v for s, v in true_segments.items() if (true_map == s).any()}

    pred_map = np.zeros_like(true_map)
    pred_segments = {}
    for segment, (category, _) in true_segments.items():
        moved = np.roll(true_map == segment, int(rng.integers(-1, 2)), axis=int(rng.integers(0, 2)))
        if rng.random() < 0.85:
            pred_map[moved] = new = ids(1)[0]
            pred_segments[new] = category if rng.random() < 0.8 else int(rng.integers(0, 6))
    for new in ids(rng.integers(0, 3)):
        pred_map[rectangle()] = new
        pred_segments[new] = int(rng.integers(0, 6))
    if rng.random() < 0.5 and (true_map == 0).any():
        pred_map[true_map == 0] = new = ids(1)[0]
        pred_segments[new] = int(rng.integers(0, 6))
    pred_segments = {s: v for s, v in pred_segments.items() if (pred_map == s).any()}
    return pred_map, pred_segments, true_map, true_segments


def test_equals_naive_definition_on_random_pairs():
    rng = np.random.default_rng(0)
    total, naive_total = PanopticQuality(ISTHING), NaiveQuality()
    for _ in range(300):
        pair = random_pair(rng)
        quality, naive = PanopticQuality(ISTHING), NaiveQuality()
        for counter in (quality, naive, total, naive_total):
            counter.update(*pair)
        assert quality.compute() == pytest.approx(naive.compute(), abs=1e-6)
    assert total.compute() == pytest.approx(naive_total.compute(), abs=1e-6)
    assert 20 < total.compute()["pq"] < 80
    assert min(naive_total.rules.values()) > 20, "the random pairs must exercise every rule"
    assert len(naive_total.rules) == 3


def strip(*lengths):
    """A map of one row: runs of (segment id, pixels)."""
    return np.concatenate([np.full(n, s, dtype=np.int64) for s, n in lengths])[None]


def counts(quality, category):
    return quality.state()[category].tolist()


def test_iou_of_exactly_half_is_no_match():
    quality = PanopticQuality([True])
    quality.update(strip((1, 2), (0, 2)), {1: 0}, strip((5, 4)), {5: (0, False)})
    assert counts(quality, 0) == [0, 0, 1, 1]


def test_segment_half_on_void_is_a_false_positive_and_more_than_half_is_not():
    quality = PanopticQuality([True])
    quality.update(strip((1, 4)), {1: 0}, strip((0, 2), (9, 2)), {9: (0, True)})
    assert counts(quality, 0) == [0, 0, 0, 0], "void and crowd of its category together"
    quality.update(strip((1, 4)), {1: 0}, strip((0, 2), (9, 2)), {9: (0, False)})
    assert counts(quality, 0) == [1, 1, 0, 0], "void is no part of the union"
    two = PanopticQuality([True, True])
    two.update(strip((1, 4)), {1: 0}, strip((0, 2), (9, 2)), {9: (1, False)})
    assert counts(two, 0) == [0, 0, 1, 0]
    assert counts(two, 1) == [0, 0, 0, 1]
    two.update(strip((1, 4)), {1: 0}, strip((0, 3), (9, 1)), {9: (1, True)})
    assert counts(two, 0) == [0, 0, 1, 0], "three quarters on void"
    assert counts(two, 1) == [0, 0, 0, 1], "a crowd is never missed"


def test_crowd_of_another_category_excuses_nothing():
    quality = PanopticQuality([True, True])
    quality.update(strip((1, 4)), {1: 0}, strip((9, 4)), {9: (1, True)})
    assert counts(quality, 0) == [0, 0, 1, 0]


def test_last_crowd_of_a_category_counts():
    truth = strip((8, 3), (9, 1))
    quality = PanopticQuality([True])
    quality.update(strip((1, 4)), {1: 0}, truth, {8: (0, True), 9: (0, True)})
    assert counts(quality, 0) == [0, 0, 1, 0]
    quality.update(strip((1, 4)), {1: 0}, truth, {9: (0, True), 8: (0, True)})
    assert counts(quality, 0) == [0, 0, 1, 0]


def test_true_segment_without_a_pixel_is_missed():
    quality = PanopticQuality([True])
    quality.update(strip((1, 4)), {1: 0}, strip((7, 4)), {7: (0, False), 8: (0, False)})
    assert counts(quality, 0) == [1, 1, 0, 1]


def test_perfect_prediction_is_100_and_groups_without_categories_are_left_out():
    quality = PanopticQuality([True, True])
    quality.update(strip((3, 4), (2**40, 4)), {3: 0, 2**40: 1}, strip((7, 4), (1, 4)), {7: (0, False), 1: (1, False)})
    assert quality.compute() == dict.fromkeys(("pq", "sq", "rq", "pq_things", "sq_things", "rq_things"), 100.0)
    assert PanopticQuality([True]).compute() == {}


def test_categories_by_index():
    quality = PanopticQuality([True, False, True])
    quality.update(strip((1, 3), (2, 1)), {1: 1, 2: 0}, strip((5, 4)), {5: (1, False)})
    assert quality.per_category() == {
        0: {"pq": 0.0, "sq": 0.0, "rq": 0.0},
        1: {"pq": 75.0, "sq": 75.0, "rq": 100.0},
    }


def test_states_of_ranks_add_up_to_the_same_bits_in_any_order():
    rng = np.random.default_rng(1)
    pairs = [random_pair(rng) for _ in range(40)]
    alone, ranks = PanopticQuality(ISTHING), [PanopticQuality(ISTHING) for _ in range(3)]
    for i, pair in enumerate(pairs):
        alone.update(*pair)
        ranks[i % 3].update(*pair)
    merged = PanopticQuality(ISTHING)
    for rank in ranks:
        merged.add_state(rank.state())
    assert merged.compute() == alone.compute()
    assert (merged.state() == alone.state()).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_segments": {}}, "the predicted map has ids that its segments do not list: 1"),
        ({"pred_segments": {1: 0, 30: 0}}, "predicted segments without a pixel in the map: 30"),
        ({"true_segments": {}}, "the true map has ids that its segments do not list: 5"),
        ({"pred_segments": {1: 4}}, "predicted segments of unknown category 4: categories are 0 to 0"),
        ({"true_segments": {5: (-1, False)}}, "true segments of unknown category -1: categories are 0 to 0"),
        ({"pred_segments": {0: 0, 1: 0}}, "predicted segments list id 0, which means void"),
        (
            {"pred_map": strip((1, 3))},
            r"maps must have one size, but the prediction's is \(1, 3\), the truth's \(1, 4\)",
        ),
    ],
)
def test_inconsistent_input_is_refused(change, message):
    given = {"pred_map": strip((1, 4)), "pred_segments": {1: 0}, "true_map": strip((5, 4))}
    given |= {"true_segments": {5: (0, False)}} | change
    quality = PanopticQuality([True])
    with pytest.raises(ValueError, match=message):
        quality.update(**given)
    assert not quality.state().any()
