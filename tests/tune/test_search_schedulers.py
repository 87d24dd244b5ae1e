"""The schedulers in global steps: who is stopped, and who never is."""

from typing import Any

import numpy as np
import pytest

from tune.config import SCHEDULERS, SchedulerConfig
from tune.study.schedulers import Hyperband, StoppingRule, create_stopping_rule

FULL = 180


def rule(mode: str = "max", **config: Any) -> StoppingRule:
    settings = {"name": "asha", "grace_period": 20, "reduction_factor": 3} | config
    return create_stopping_rule(SchedulerConfig(**settings), mode, FULL)


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_only_the_best_third_goes_past_a_rung(mode: str, sign: int) -> None:
    asha = rule(mode)
    decisions = [asha.goes_on(number, 20, sign * value) for number, value in enumerate((9, 8, 7, 10, 1, 9.5))]
    assert decisions == [True, False, False, True, False, True]


def test_before_the_grace_period_nobody_is_stopped() -> None:
    asha = rule()
    assert all(asha.goes_on(number, 19, -number) for number in range(9))


def test_between_rungs_nothing_is_decided() -> None:
    asha = rule()
    asha.goes_on(0, 20, 10.0)
    asha.goes_on(1, 20, 11.0)
    asha.goes_on(0, 60, 50.0)
    assert asha.goes_on(1, 40, 0.0)
    assert not asha.goes_on(1, 60, 0.0)


def test_rungs_that_a_trial_has_passed_are_behind_it() -> None:
    """Evaluations at 70, 140: on the first, a trial passes the rungs 20 and 60; no rung is between them."""
    asha = rule()
    for number in range(3):
        asha.goes_on(number, 70, -number)
    assert asha.goes_on(0, 140, 50.0)
    assert asha.goes_on(0, 150, 0.0)
    asha.goes_on(3, 70, 99.0)
    assert asha.goes_on(3, 140, 1.0)


def test_a_trial_of_full_length_ends_by_itself_even_on_a_rung() -> None:
    asha = rule(grace_period=60)  # rungs at 60 and 180
    for number, value in ((0, 50.0), (1, 60.0)):
        assert asha.goes_on(number, 60, value)
        assert asha.goes_on(number, FULL, 100 - value)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_grace_period_beyond_the_full_length_stops_nobody(name: str) -> None:
    late = rule(name=name, grace_period=1000)
    assert all(late.goes_on(number, step, -number) for number in range(5) for step in (60, 120, 180))


def test_none_never_stops() -> None:
    never = rule(name="none")
    assert all(never.goes_on(number, step, -number) for number in range(5) for step in (60, 120, 180))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_at_its_full_length_nobody_is_stopped(name: str) -> None:
    scheduler = rule(name=name)
    assert all(scheduler.goes_on(number, FULL, -number) for number in range(9))


def test_it_is_asha_written_down_again() -> None:
    """Rungs at 20, 60 and 180; who is below the upper third of those before it on its rung is stopped."""
    asha = rule()
    random = np.random.default_rng(0)
    rungs: dict[int, list[float]] = {20: [], 60: []}
    stopped: set[int] = set()
    position = dict.fromkeys(range(12), 0)
    while any(step < FULL for number, step in position.items() if number not in stopped):
        number = int(random.choice([n for n, step in position.items() if n not in stopped and step < FULL]))
        position[number] += 20
        value = float(random.normal())
        expected = True
        if position[number] in rungs:
            recorded = rungs[position[number]]
            expected = not recorded or value >= np.percentile(recorded, 200 / 3)
            recorded.append(value)
        assert asha.goes_on(number, position[number], value) == expected
        if not expected:
            stopped.add(number)
    assert 0 < len(stopped) < 12


@pytest.mark.parametrize(
    ("grace", "factor", "full", "shares"),
    [
        (1, 3, 81, [81, 34, 15, 8, 5]),  # Hyperband's own example: table 1 of Li et al. 2017
        (50, 3, 150, [3, 2]),
        (50, 3, 149, [3, 2]),  # 150 is beyond its end: one rung all the same
        (20, 2, 180, [16, 10, 7, 5, 5]),  # rungs at 20, 40, 80 and 160
        (200, 3, 180, [1]),
    ],
)
def test_brackets_have_the_shares_of_hyperband(grace: int, factor: float, full: int, shares: list[int]) -> None:
    hyperband = Hyperband(SchedulerConfig("hyperband", grace, factor), "max", full)
    assert hyperband.shares == shares
    dealt = [hyperband.bracket(number) for number in range(2 * sum(shares))]
    assert [dealt.count(bracket) for bracket in range(len(shares))] == [2 * share for share in shares]
    for count in range(len(dealt)):
        expected = [share * count / sum(shares) for share in shares]
        owed = [
            abs(dealt[:count].count(bracket) - part) for bracket, part in zip(range(len(shares)), expected, strict=True)
        ]
        assert max(owed) < 2, "no bracket is ever far behind its share"


def test_a_trial_of_hyperband_competes_in_its_bracket_alone() -> None:
    hyperband = Hyperband(SchedulerConfig("hyperband", 20, 3), "max", FULL)  # rungs at 20 and 60
    of = {bracket: [n for n in range(30) if hyperband.bracket(n) == bracket] for bracket in range(3)}
    for number in range(30):
        hyperband.goes_on(number, 10, 0.0)
    first, second = of[0][:2]
    assert hyperband.goes_on(first, 20, 10.0)
    assert not hyperband.goes_on(second, 20, 9.0)
    first, second = of[1][:2]
    assert all(hyperband.goes_on(number, 20, 0.0) for number in of[1])
    assert hyperband.goes_on(first, 60, 10.0)
    assert not hyperband.goes_on(second, 60, 9.0)
    assert all(hyperband.goes_on(number, step, 0.0) for number in of[2] for step in (20, 60, 120))


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_it_is_the_median_rule_written_down_again(mode: str, sign: int) -> None:
    median = rule(mode, name="median")
    random = np.random.default_rng(1)
    values: dict[int, dict[int, float]] = {number: {} for number in range(12)}
    stopped: set[int] = set()
    while open_ := [n for n, own in values.items() if n not in stopped and max(own, default=0) < FULL]:
        number = int(random.choice(open_))
        step = max(values[number], default=0) + 10
        values[number][step] = value = float(random.normal(number, 3))
        others = [
            np.mean([each for at, each in own.items() if 20 <= at <= step])
            for other, own in values.items()
            if other != number and max(own, default=0) >= step >= 20
        ]
        worse = max(values[number].values()) < np.median(others) if len(others) >= 3 else False
        expected = step < 20 or step == FULL or not worse
        assert median.goes_on(number, step, sign * value) == expected, (number, step)
        if not expected:
            stopped.add(number)
    assert 0 < len(stopped) < 12


@pytest.mark.parametrize("name", SCHEDULERS)
def test_told_the_same_again_it_decides_the_same(name: str) -> None:
    def decisions() -> list[bool]:
        scheduler, random = rule(name=name), np.random.default_rng(2)
        running, made = set(range(20)), []
        for step in (20, 60, 120):
            for number in sorted(running):
                made.append(scheduler.goes_on(number, step, random.normal()))
                if not made[-1]:
                    running.remove(number)
        return made

    assert decisions() == decisions()
    assert all(decisions()) == (name == "none")
