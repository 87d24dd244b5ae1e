"""Shares of variance, against the exact ones of a full grid; and which trials are compared."""

import itertools
import statistics
from collections.abc import Mapping

import pytest

from tests.tune.made_searches import made_search, made_trial
from tune.report.importance import FEWEST, fanova, importances, spans_decades
from tune.study.board import Status

LEVELS = {"mm_n_heads": (2, 4, 8), "swin_type": ("base", "large"), "mm_hidden_dim": (32, 64, 128, 256)}
GAINS = {"mm_n_heads": {2: 0.0, 4: 3.0, 8: 7.0}, "swin_type": {"base": 0.0, "large": 2.0}}


def additive(setting: Mapping[str, object]) -> float:
    return 60 + GAINS["mm_n_heads"][setting["mm_n_heads"]] + GAINS["swin_type"][setting["swin_type"]]


def test_shares_are_those_of_an_analysis_of_variance() -> None:
    """On a full grid of an additive function they are exact: variances of the means of each level."""
    grid = [dict(zip(LEVELS, values, strict=True)) for values in itertools.product(*LEVELS.values())] * 4
    variance = {name: statistics.pvariance(gains.values()) for name, gains in GAINS.items()}
    total = sum(variance.values())
    found = fanova(grid, [additive(setting) for setting in grid])
    assert list(found)[:2] == ["mm_n_heads", "swin_type"]
    assert found["mm_n_heads"] == pytest.approx(variance["mm_n_heads"] / total, abs=0.01)
    assert found["swin_type"] == pytest.approx(variance["swin_type"] / total, abs=0.01)
    assert found["mm_hidden_dim"] < 0.02
    assert sum(found.values()) == pytest.approx(1)


def test_parameters_of_one_value_or_of_some_trials_only_have_no_share() -> None:
    settings = [
        {"mm_n_heads": heads, "seed": 0, **({"mm_n_points": 4} if heads == 2 else {})} for heads in (2, 4, 8)
    ] * 3
    assert list(fanova(settings, [float(setting["mm_n_heads"]) for setting in settings])) == ["mm_n_heads"]


def test_trials_are_compared_where_all_have_values_and_where_the_whole_ones_end() -> None:
    trials = [made_trial(n, {"mm_n_heads": (2, 4, 8)[n % 3]}, {50: n, 100: 2.0 * n}) for n in range(FEWEST)]
    trials += [made_trial(n, {"mm_n_heads": 2}, {50: 0.5 * n}, Status.PRUNED) for n in range(FEWEST, FEWEST + 3)]
    trials += [
        made_trial(20, {"mm_n_heads": 2}, {}, Status.FAILED),
        made_trial(21, {"mm_n_heads": 2}, {}, Status.RUNNING),
    ]
    early, whole = importances(made_search(trials))
    assert (early.step, early.trials, early.final) == (50, FEWEST + 3, False)
    assert (whole.step, whole.trials, whole.final) == (100, FEWEST, True)
    assert early.few


def test_too_few_trials_or_no_difference_tell_nothing() -> None:
    few = [made_trial(n, {"mm_n_heads": n}, {50: n}) for n in range(FEWEST - 1)]
    assert importances(made_search(few)) == []
    same = [made_trial(n, {"mm_n_heads": n}, {50: 1.0}) for n in range(FEWEST)]
    assert importances(made_search(same)) == []
    assert importances(made_search([])) == []


def test_what_is_seen_on_a_logarithmic_scale() -> None:
    assert spans_decades([1e-4, 1e-2])
    assert not spans_decades([0.0, 1e-2])
    assert not spans_decades([0.1, 0.9])
