"""ASHA in global steps: who is stopped, and who never is."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler

from tune.config import SchedulerConfig
from tune.schedulers import create_scheduler
from tune.study import STEP

FULL = 180


class Trials:
    """Feeds results to a scheduler as Tune does."""

    def __init__(self, mode: str = "max", **config: Any) -> None:
        settings = {"name": "asha", "grace_period": 20, "reduction_factor": 3} | config
        self.scheduler = create_scheduler(SchedulerConfig(**settings), "m", mode, FULL)

    def report(self, name: str, step: int, value: float) -> str:
        trial = SimpleNamespace(trial_id=name)
        if name not in self.scheduler._trial_info:
            self.scheduler.on_trial_add(None, trial)
        return self.scheduler.on_trial_result(None, trial, {STEP: step, "m": value})


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_only_the_best_third_goes_past_a_rung(mode: str, sign: int) -> None:
    trials = Trials(mode)
    decisions = [trials.report(str(n), 20, sign * value) for n, value in enumerate((9, 8, 7, 10, 1, 9.5))]
    assert decisions == ["CONTINUE", "STOP", "STOP", "CONTINUE", "STOP", "CONTINUE"]


def test_before_the_grace_period_nobody_is_stopped() -> None:
    trials = Trials()
    assert {trials.report(str(n), 19, -n) for n in range(9)} == {"CONTINUE"}


def test_between_rungs_nothing_is_decided() -> None:
    trials = Trials()
    trials.report("a", 20, 10.0)
    trials.report("b", 20, 11.0)
    trials.report("a", 60, 50.0)
    assert trials.report("b", 40, 0.0) == "CONTINUE"
    assert trials.report("b", 60, 0.0) == "STOP"


def test_a_trial_of_full_length_ends_by_itself_even_on_a_rung() -> None:
    trials = Trials(grace_period=60)  # rungs at 60 and 180
    for name, value in (("a", 50.0), ("b", 60.0)):
        assert trials.report(name, 60, value) == "CONTINUE"
        assert trials.report(name, FULL, 100 - value) == "CONTINUE"


def test_a_grace_period_beyond_the_full_length_stops_nobody() -> None:
    trials = Trials(grace_period=1000)
    assert {trials.report(str(n), step, -n) for n in range(5) for step in (60, 120, 180)} == {"CONTINUE"}


def test_none_never_stops() -> None:
    scheduler = create_scheduler(SchedulerConfig("none"), "m", "max", FULL)
    assert type(scheduler) is FIFOScheduler
