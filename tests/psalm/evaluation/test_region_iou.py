"""Region IoU against loops over the regions."""

import pickle

import numpy as np
import pytest

from psalm.evaluation import RegionIoU


def random_regions(count):
    """Scribbles do not occur."""
    rng = np.random.default_rng(0)
    regions = []
    for _ in range(count):
        truth = rng.random(rng.integers(4, 9, size=2)) < 0.5
        regions.append((str(rng.choice(["point", "box", "mask"])), truth ^ (rng.random(truth.shape) < 0.2), truth))
    return regions


def naive(regions):
    result = {}
    for prefix, kinds in {
        "": {"point", "box", "mask"},
        "point_": {"point"},
        "box_": {"box"},
        "mask_": {"mask"},
    }.items():
        chosen = [(pred, truth) for kind, pred, truth in regions if kind in kinds]
        both = [sum(p and t for p, t in zip(*map(np.ravel, pair), strict=True)) for pair in chosen]
        either = [sum(p or t for p, t in zip(*map(np.ravel, pair), strict=True)) for pair in chosen]
        result[f"{prefix}ciou"] = 100 * sum(both) / sum(either)
        result[f"{prefix}miou"] = 100 * sum(i / u for i, u in zip(both, either, strict=True)) / len(chosen)
    return result


def scored(regions):
    metric = RegionIoU()
    for region in regions:
        metric.update(*region)
    return metric.compute()


def test_equals_loops_over_all_regions_and_those_of_each_kind():
    regions = random_regions(60)
    assert scored(regions) == pytest.approx(naive(regions), abs=1e-6)


def test_nothing_counted_is_nothing_computed():
    assert scored([]) == {}


def test_states_of_ranks_give_the_same_bits_in_any_order():
    regions = random_regions(40)
    ranks = [RegionIoU() for _ in range(3)]
    for i, region in enumerate(regions):
        ranks[i % 3].update(*region)
    merged = RegionIoU()
    for rank in ranks:
        merged.add_state(pickle.loads(pickle.dumps(rank.state())))
    assert merged.compute() == scored(regions) == scored(reversed(regions))


def test_unknown_kind_is_refused():
    mask = np.ones((2, 2), dtype=bool)
    with pytest.raises(
        ValueError, match="type of a prompt must be one of point, box, scribble, mask, but got 'polygon'"
    ):
        RegionIoU().update("polygon", mask, mask)
