"""A trial's settings, and how its failure becomes one line."""

import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.exceptions import RayTaskError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from psalm.train.fields import SettingError
from tune.dependents import Dependents
from tune.monitor import failure_reason
from tune.reporting import MetricError, RayReportCallback
from tune.resources import TrialResources
from tune.trial import REASON_LENGTH, TrialError, TrialPlan, one_line, picklable_errors, reason_of


class DemandingError(RuntimeError):
    """Its constructor wants more than a message: it pickles, but does not come back."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"loss {loss} at step {step}")


def plan(folder: Path, resources: TrialResources | None = None) -> TrialPlan:
    return TrialPlan(folder, {"max_steps": 9, "seed": 3}, resources or TrialResources(), "eval_pq")


def test_a_trial_has_the_searchs_arguments_its_own_and_its_folder(tmp_path: Path) -> None:
    settings = plan(tmp_path).settings(7, {"mm_n_points": 2, "seed": 5})
    assert settings == {
        "max_steps": 9,
        "seed": 5,
        "mm_n_points": 2,
        "output_dir": str(tmp_path / "trials" / "0007"),
    }


def test_a_trial_has_only_its_own_of_what_follows_a_searched_argument(tmp_path: Path) -> None:
    towers = {"base": "/w/base.pkl", "large": "/w/large.pkl"}
    made = TrialPlan(
        tmp_path, {"max_steps": 9}, TrialResources(), "eval_pq", Dependents({"swin_type": {"vision_tower": towers}})
    )
    settings = made.settings(0, {"swin_type": "large"})
    assert settings.pop("output_dir")
    assert settings == {"max_steps": 9, "swin_type": "large", "vision_tower": "/w/large.pkl"}


@pytest.mark.parametrize(
    ("resources", "workers", "gpu", "backend"),
    [
        (TrialResources(1, 1, 0), {"CPU": 1}, False, None),
        (TrialResources(2, 2, 1), {"CPU": 2, "GPU": 1}, True, None),
        (TrialResources(2, 1, 0.5), {"CPU": 1, "GPU": 0.5}, True, "gloo"),
    ],
)
def test_workers_ask_for_what_they_need(
    tmp_path: Path, resources: TrialResources, workers: dict[str, float], gpu: bool, backend: str | None
) -> None:
    made = plan(tmp_path, resources)
    assert made.scaling.num_workers == resources.workers_per_trial
    assert made.scaling.resources_per_worker == workers
    assert made.scaling.use_gpu == gpu
    assert made.backend.backend == backend


def test_the_trials_own_process_holds_no_processor_that_its_workers_wait_for(tmp_path: Path) -> None:
    own = plan(tmp_path).own_resources.required_resources
    assert own.get("CPU", 0) == own.get("GPU", 0) == 0


def test_a_failure_that_cannot_be_unpickled_keeps_its_reason() -> None:
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(DemandingError(2, math.nan)))
    with pytest.raises(TrialError) as caught, picklable_errors():
        raise DemandingError(2, math.nan)
    assert str(pickle.loads(pickle.dumps(caught.value))) == "DemandingError: loss nan at step 2"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MetricError("eval_pq is nan at step 3"), "eval_pq is nan at step 3"),
        (SettingError("x must be 1"), "x must be 1"),
        (TrialError("ValueError: no"), "ValueError: no"),
        (RuntimeError("two\n  lines"), "RuntimeError: two lines"),
        (KeyError("name"), "KeyError: 'name'"),
    ],
)
def test_a_reason_is_one_line(error: Exception, reason: str) -> None:
    assert one_line(error) == reason


def test_a_long_reason_is_cut() -> None:
    assert len(one_line(RuntimeError("x" * 9999))) == REASON_LENGTH


def test_the_reason_comes_from_the_first_rank_that_failed() -> None:
    failures = {rank: UserExceptionWithTraceback(ValueError(f"rank {rank}"), "Traceback ...") for rank in (3, 1)}
    assert reason_of(WorkerGroupError("long text", failures)) == "ValueError: rank 1"
    assert reason_of(ControllerError(OSError("no node"))) == "OSError: no node"


def test_the_driver_sees_the_trials_reason() -> None:
    error = RayTaskError("run_trial", "Traceback ...", TrialError("eval_pq is nan at step 3"))
    assert failure_reason(error.as_instanceof_cause()) == "eval_pq is nan at step 3"


def evaluate(monkeypatch: pytest.MonkeyPatch, metrics: dict[str, float]) -> list[dict[str, Any]]:
    reported: list[dict[str, Any]] = []
    monkeypatch.setattr(ray.train, "report", reported.append)
    RayReportCallback("eval_pq").on_evaluate(None, SimpleNamespace(global_step=60), None, metrics)
    return reported


def test_an_evaluation_is_reported_at_its_global_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(monkeypatch, {"eval_pq": 12.5, "eval_sq": 3.0}) == [{"eval_pq": 12.5, "global_step": 60}]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"eval_pq": math.nan}, "eval_pq is nan at step 60"),
        ({"eval_pq": math.inf}, "eval_pq is inf at step 60"),
        ({"eval_sq": 3.0}, "eval_pq is missing from the evaluation at step 60, which has eval_sq"),
        ({}, "which has nothing"),
    ],
)
def test_a_metric_that_is_no_number_fails_the_trial(
    monkeypatch: pytest.MonkeyPatch, metrics: dict[str, float], message: str
) -> None:
    with pytest.raises(MetricError, match=message):
        evaluate(monkeypatch, metrics)
