"""A trial's side of its talk with the search."""

import math
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl

from tune.study.board import Outcome
from tune.trials import reporting
from tune.trials.failures import MetricError
from tune.trials.reporting import SearchCallback


class Answers:
    """Stands where the desk's actor handle would: remembers what is reported, and answers."""

    def __init__(self, goes_on: bool = True) -> None:
        self.goes_on = goes_on
        self.reported: list[Any] = []
        self.interrupted = False
        self.interruption = SimpleNamespace(remote=lambda: "interruption")
        self.report = SimpleNamespace(remote=self._report)

    def _report(self, job: str, message: dict[str, Any]) -> Future[bool]:
        self.reported.append((job, message))
        future: Future[bool] = Future()
        future.set_result(self.goes_on)
        return future


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers()
    monkeypatch.setattr(reporting.ray, "get", lambda future: future.result())
    monkeypatch.setattr(reporting.ray, "wait", lambda refs, timeout: (refs, []) if answers.interrupted else ([], refs))
    return answers


def evaluate(callback: SearchCallback, step: int, metrics: dict[str, float]) -> TrainerControl:
    control = TrainerControl(should_save=True)
    callback.on_evaluate(None, SimpleNamespace(global_step=step), control, metrics)
    return control


def test_an_evaluation_is_reported_at_its_global_step(desk: Answers) -> None:
    callback = SearchCallback(desk, "0003-1", "eval_pq")
    control = evaluate(callback, 60, {"eval_pq": 12.5, "eval_sq": 3.0})
    assert desk.reported == [("0003-1", {"eval_pq": 12.5, "global_step": 60})]
    assert (control.should_training_stop, control.should_save) == (False, True)
    assert callback.outcome(max_steps=60) == Outcome.COMPLETED


def test_a_trial_that_the_search_stops_saves_nothing_more(desk: Answers) -> None:
    desk.goes_on = False
    callback = SearchCallback(desk, "0003-1", "eval_pq")
    control = evaluate(callback, 60, {"eval_pq": 12.5})
    assert (control.should_training_stop, control.should_save) == (True, False)
    assert callback.outcome(max_steps=100) is None


def test_an_interrupted_trial_saves_a_checkpoint_at_that_step(desk: Answers) -> None:
    callback = SearchCallback(desk, "0003-1", "eval_pq")
    control = TrainerControl()
    callback.on_step_end(None, SimpleNamespace(global_step=7), control)
    assert (control.should_training_stop, control.should_save) == (False, False)
    desk.interrupted = True
    callback.on_step_end(None, SimpleNamespace(global_step=8), control)
    assert (control.should_training_stop, control.should_save) == (True, True)
    assert callback.outcome(max_steps=100) == Outcome.INTERRUPTED


def test_an_interruption_after_the_last_step_changes_nothing(desk: Answers) -> None:
    callback = SearchCallback(desk, "0003-1", "eval_pq")
    desk.interrupted = True
    callback.on_step_end(None, SimpleNamespace(global_step=60), TrainerControl())
    evaluate(callback, 60, {"eval_pq": 12.5})
    assert callback.outcome(max_steps=60) == Outcome.COMPLETED


def test_a_trial_without_an_evaluation_at_its_full_length_has_failed(desk: Answers) -> None:
    callback = SearchCallback(desk, "0003-1", "eval_pq")
    evaluate(callback, 40, {"eval_pq": 12.5})
    with pytest.raises(MetricError, match="eval_pq is missing at the end: it was last evaluated at step 40 of 60"):
        callback.outcome(max_steps=60)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"eval_pq": math.nan}, "eval_pq is nan at step 60"),
        ({"eval_pq": math.inf}, "eval_pq is inf at step 60"),
        ({"eval_sq": 3.0}, "eval_pq is missing from the evaluation at step 60, which has eval_sq"),
        ({}, "which has nothing"),
    ],
)
def test_a_metric_that_is_no_number_fails_the_trial(desk: Answers, metrics: dict[str, float], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        evaluate(SearchCallback(desk, "0003-1", "eval_pq"), 60, metrics)
    assert desk.reported == []
