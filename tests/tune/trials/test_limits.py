"""What a search may use of time and devices."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from psalm.train.records import RunRecords
from tune.config import load_config
from tune.errors import SearchError
from tune.options import DEFAULT_CONFIG
from tune.study.board import Outcome
from tune.study.state import SearchState
from tune.trials.limits import HOUR, Limits, duration, parse_duration
from tune.trials.resources import TrialResources


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("8h", 28800), ("3600s", 3600), ("1d12h", 129600), ("1.5h", 5400), ("1h30m10s", 5410), (" 5s ", 5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "90", "h", "8 hours", "-5m", "30m2h", "0s", "nan", "1e3s", "8h8h"])
def test_what_is_no_duration_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SearchError, match="must be a time above 0 with its units, such as 90m, 8h or 1d12h") as refused:
        parse_duration(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(("seconds", "text"), [(5400, "1h30m"), (28800, "8h"), (129600, "1d12h"), (0.5, "0.5s")])
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = [1_000_000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    return clock


def opened(folder: Path) -> tuple[SearchState, RunRecords]:
    records = RunRecords(folder)
    state = SearchState(replace(load_config(DEFAULT_CONFIG), baselines=()), records, num_samples=4)
    state.begin()
    return state, records


def test_the_time_budget_is_of_this_run_alone(tmp_path: Path, now: list[float]) -> None:
    limits = Limits(8 * HOUR, None, None, TrialResources())
    for _ in range(2):
        state, records = opened(tmp_path)
        now[0] += 8 * HOUR - 1
        assert limits.reached(state, now[0]) is None
        now[0] += 1
        assert limits.reached(state, now[0]) == "--time-budget 8h is used up"
        state.conclude("FINISHED")
        records.close()


def test_device_hours_are_of_all_attempts_of_all_trials_in_all_runs(tmp_path: Path, now: list[float]) -> None:
    resources = TrialResources(workers_per_trial=2, cpus_per_worker=4, gpus_per_worker=0.5)
    by_gpu, by_cpu = Limits(None, 3, None, resources), Limits(None, None, 24, resources)
    state, records = opened(tmp_path)
    for number in range(2):
        state.next_job()
        now[0] += HOUR
        state.end(number, Outcome.FAILED, "no")
    now[0] += 9 * HOUR  # nothing runs
    state.conclude("FAILED")
    records.close()
    state, records = opened(tmp_path)
    state.next_job()
    now[0] += HOUR - 1
    assert (by_gpu.reached(state, now[0]), by_cpu.reached(state, now[0])) == (None, None)
    now[0] += 1  # 3 hours x 2 workers x 0.5 GPUs, x 4 CPUs
    assert by_gpu.reached(state, now[0]) == "--gpu-hours 3 is used up"
    assert by_cpu.reached(state, now[0]) == "--cpu-hours 24 is used up"
    records.close()


def test_without_limits_nothing_is_reached(tmp_path: Path, now: list[float]) -> None:
    state, records = opened(tmp_path)
    state.next_job()
    assert Limits(None, None, None, TrialResources()).reached(state, now[0] + 1e9) is None
    records.close()


def test_hours_of_gpus_that_no_trial_has_are_refused() -> None:
    with pytest.raises(SearchError, match=r"--gpu-hours 3 would never be reached, .* use --cpu-hours"):
        Limits(None, 3, None, TrialResources(gpus_per_worker=0))
