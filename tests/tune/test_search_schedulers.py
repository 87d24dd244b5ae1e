"""ASHA in global steps: who is stopped, and who never is."""

from typing import Any

import numpy as np
import pytest

from tune.config import SchedulerConfig
from tune.schedulers import StoppingRule, create_stopping_rule

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


def test_a_trial_of_full_length_ends_by_itself_even_on_a_rung() -> None:
    asha = rule(grace_period=60)  # rungs at 60 and 180
    for number, value in ((0, 50.0), (1, 60.0)):
        assert asha.goes_on(number, 60, value)
        assert asha.goes_on(number, FULL, 100 - value)


def test_a_grace_period_beyond_the_full_length_stops_nobody() -> None:
    asha = rule(grace_period=1000)
    assert all(asha.goes_on(number, step, -number) for number in range(5) for step in (60, 120, 180))


def test_none_never_stops() -> None:
    never = rule(name="none")
    assert all(never.goes_on(number, step, -number) for number in range(5) for step in (60, 120, 180))


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
