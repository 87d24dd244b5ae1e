"""What is expected of a search, against sums and a naive search without lanes."""

from dataclasses import replace

import numpy as np
import pytest

from tune.config import Confirm, SchedulerConfig, SearchConfig, load_config
from tune.options import DEFAULT_CONFIG
from tune.plan.expectation import HIGH, LIKELY, LOW, TrialTime, expect
from tune.simulation.simulation import Costs

COSTS = Costs(startup=30.0, overhead=4.0)
TIMES = [TrialTime(step=0.2, evaluation=1.0), TrialTime(step=0.4, evaluation=3.0)]
FULL = 4.0 + 150 * 0.3 + 3 * 2.0
"""Seconds of a mean trial of full length, evaluated every 50 steps; and of one that is stopped at the first rung."""
STOPPED = 4.0 + 50 * 0.3 + 2.0


@pytest.fixture(scope="module")
def search() -> SearchConfig:
    return replace(load_config(DEFAULT_CONFIG), num_samples=9)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_ends_are_sums(search: SearchConfig, mode: str) -> None:
    expected = expect(replace(search, mode=mode), 1, TIMES, COSTS)
    low, high = expected[LOW], expected[HIGH]
    assert (low.completed, low.stopped, high.completed, high.stopped) == (1, 8, 9, 0)
    assert low.wall_seconds == low.lane_seconds == pytest.approx(30 + FULL + 8 * STOPPED)
    assert high.wall_seconds == high.lane_seconds == pytest.approx(30 + 9 * FULL)


def test_three_lanes_share_the_work(search: SearchConfig) -> None:
    high = expect(search, 3, TIMES, COSTS)[HIGH]
    assert high.wall_seconds == pytest.approx(30 + 3 * FULL)
    assert high.lane_seconds == pytest.approx(3 * 30 + 9 * FULL)


def test_confirming_runs_are_of_full_length_and_come_last(search: SearchConfig) -> None:
    """Of the best three and the baseline, as far as so many have completed; with two lanes, two at a time."""
    without = expect(search, 2, TIMES, COSTS)
    expected = expect(replace(search, confirm=Confirm(best=3, seeds=5)), 2, TIMES, COSTS)
    assert [expected[name].confirmations for name in (LOW, HIGH)] == [5, 20]
    for name, runs, turns in ((LOW, 5, 3), (HIGH, 20, 10)):
        assert expected[name].lane_seconds == pytest.approx(without[name].lane_seconds + runs * FULL)
        assert expected[name].wall_seconds == pytest.approx(without[name].wall_seconds + turns * FULL)
    assert 5 < expected[LIKELY].confirmations <= 20


@pytest.mark.parametrize("count", [9, 40])
def test_likely_is_a_search_whose_trials_are_ranked_at_random(search: SearchConfig, count: int) -> None:
    """ASHA with one rung: a trial goes on from the upper third of those before it; the first always does."""
    draws = np.random.default_rng(7)
    completed = []
    for _ in range(2000):
        ranks = draws.permutation(count)
        goes_on = [n == 0 or ranks[n] >= np.percentile(ranks[:n], 100 * (1 - 1 / 3)) for n in range(count)]
        completed.append(sum(goes_on))
    likely = expect(replace(search, num_samples=count), 1, TIMES, COSTS)[LIKELY]
    assert likely.completed == pytest.approx(np.mean(completed), rel=0.06)
    assert likely.completed + likely.stopped == pytest.approx(count)
    mean = 30 + likely.completed * FULL + likely.stopped * STOPPED
    assert likely.lane_seconds == pytest.approx(mean, rel=0.06)


def test_without_early_stopping_nothing_is_uncertain_but_the_settings(search: SearchConfig) -> None:
    expected = expect(replace(search, scheduler=SchedulerConfig("none")), 2, TIMES[:1], COSTS)
    assert expected[LOW] == expected[HIGH]
    assert expected[LIKELY].lane_seconds == pytest.approx(expected[HIGH].lane_seconds)


@pytest.mark.parametrize("scheduler", ["hyperband", "median"])
def test_other_rules_stop_what_they_stop(search: SearchConfig, scheduler: str) -> None:
    config = replace(search, num_samples=30, scheduler=replace(search.scheduler, name=scheduler))
    expected = expect(config, 2, TIMES, COSTS)
    assert 0 < expected[LIKELY].stopped < expected[LOW].stopped < 30
    assert expected[LOW].lane_seconds < expected[LIKELY].lane_seconds < expected[HIGH].lane_seconds


def test_of_a_population_nobody_is_taken_to_be_stopped(search: SearchConfig) -> None:
    expected = expect(replace(search, scheduler=replace(search.scheduler, name="pbt")), 2, TIMES[:1], COSTS)
    assert expected[LOW] == expected[HIGH]
    assert expected[HIGH].stopped == 0


def test_the_same_search_is_expected_the_same(search: SearchConfig) -> None:
    assert expect(search, 2, TIMES, COSTS) == expect(search, 2, TIMES, COSTS)
