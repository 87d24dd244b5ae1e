"""What a new search learns from earlier ones: read from a real store, level with its own values, not run twice."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from psalm.train.arguments import parse_settings, resolved_settings, with_defaults
from psalm.train.fingerprints import input_fingerprints
from psalm.train.records import RunRecords
from tune.config import SearchConfig, load_config
from tune.options import DEFAULT_CONFIG
from tune.reproduction.recorded import RecordError, read_record
from tune.study.board import Board, Outcome, Status
from tune.study.state import SearchState
from tune.study.study import propose
from tune.study.warm_start import Earlier, aligned, answer, read_earlier
from tune.tracking.ledger import TrackingError
from tune.tracking.tracker import Tracker
from tune.trials.conductor import record_answer
from tune.trials.trial import TrialPlan

SETTING = {"mm_hidden_dim": 64, "mm_n_heads": 8, "mm_n_points": 4, "learning_rate": 1e-3, "swin_type": "base"}
"""The baseline of the default search."""


@pytest.fixture(scope="module")
def config() -> SearchConfig:
    return load_config(DEFAULT_CONFIG)


@pytest.fixture(scope="module")
def prints(config: SearchConfig) -> dict[str, str]:
    return input_fingerprints(with_defaults({**config.arguments, **SETTING}))


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")


def record_search(
    folder: Path, config: SearchConfig, trials: list[tuple[Mapping[str, Any], float, str, Mapping[str, Any]]]
) -> None:
    """A search that has ended, of trials with settings, last value, status and tags."""
    tracker = Tracker(f"sqlite:///{folder / 'mlflow.db'}", folder / config.name, config.name)
    tracker.start_search(config.as_record())
    for number, (settings, value, status, tags) in enumerate(trials):
        run = folder / config.name / "trials" / f"{number:04d}"
        tracker.start_trial(number, run, {name: settings[name] for name in SETTING if name in settings})
        with RunRecords(run) as records:
            records.settings(resolved_settings(parse_settings({**config.arguments, **settings})))
            records.tags(tags)
            records.event("started")
            records.metrics(50, {"eval_pq": value / 2})
            if status == "FINISHED":
                records.metrics(config.max_steps, {"eval_pq": value})
                records.event("completed", step=config.max_steps)
        tracker.finish_trial(number, status.replace("PRUNED", "FINISHED"), early_stopped=status == "PRUNED")
    tracker.finish_search("FINISHED", {})


def test_trials_that_fit_are_taken_and_others_are_accounted_for(
    config: SearchConfig, client: MlflowClient, tmp_path: Path, prints: dict[str, str]
) -> None:
    record_search(
        tmp_path,
        replace(config, name="before"),
        [
            (SETTING, 70.0, "FINISHED", prints),
            (SETTING | {"learning_rate": 5e-3}, 60.0, "FINISHED", {}),
            (SETTING | {"mm_hidden_dim": 256}, 80.0, "FINISHED", {}),
            (SETTING | {"max_steps": 300, "mm_n_points": 8}, 90.0, "FINISHED", prints),
            (SETTING, 71.0, "FINISHED", prints),
            (SETTING, 10.0, "PRUNED", {}),
            (SETTING, 10.0, "FAILED", {}),
            (SETTING | {"learning_rate_changes": {"50": 5e-4}}, 99.0, "FINISHED", prints),
        ],
    )
    found, lines = read_earlier(client, ["before"], config)
    assert [each.params for each in found] == [
        SETTING,
        SETTING | {"learning_rate": 5e-3},
        SETTING | {"mm_n_points": 8},
    ]
    assert [(each.source, each.value) for each in found] == [
        ("before, 150 steps", 70.0),
        ("before, 150 steps", 60.0),
        ("before, 300 steps", 90.0),
    ]
    assert found[0].values == {50: 35.0, 150: 70.0}, "the very same run"
    assert [each.values for each in found[1:]] == [None, None], "other data, another length"
    assert lines[0] == "warm start: 3 of 8 trials of before"
    assert len(lines) == 6
    assert "  left out, 1: their learning rate was changed midway" in lines
    assert "  left out, 1: their settings are those of earlier ones" in lines
    assert any("mm_hidden_dim = 256" in line and "not in the space" in line for line in lines)
    assert "  left out, 1: they did not complete" in lines
    assert "  left out, 1: they were stopped early" in lines


def test_fewer_and_more_arguments(config: SearchConfig, client: MlflowClient, tmp_path: Path) -> None:
    """An argument that was not searched then has the value that it had; one not searched now is of no account."""
    only_rate = load_config(DEFAULT_CONFIG, [f"{name}={SETTING[name]}" for name in SETTING if name != "learning_rate"])
    record_search(tmp_path, replace(only_rate, name="rate"), [({"learning_rate": 2e-3}, 70.0, "FINISHED", {})])
    found, _ = read_earlier(client, ["rate"], config)
    assert [each.params for each in found] == [SETTING | {"learning_rate": 2e-3}]
    record_search(tmp_path, replace(config, name="all"), [(SETTING, 70.0, "FINISHED", {})])
    found, _ = read_earlier(client, ["all"], only_rate)
    assert [each.params for each in found] == [{"learning_rate": 1e-3}]


def test_a_trial_is_taken_without_the_arguments_that_would_not_be_searched_in_it(
    config: SearchConfig, client: MlflowClient, tmp_path: Path
) -> None:
    record_search(
        tmp_path,
        replace(config, name="before"),
        [(SETTING, 70.0, "FINISHED", {}), (SETTING | {"swin_type": "large", "mm_n_points": 8}, 60.0, "FINISHED", {})],
    )
    conditional = tmp_path / "conditional.yaml"
    space = "{mm_n_points: {choice: [2, 4], when: swin_type == 'base'}, swin_type: {choice: [base, large]}}"
    conditional.write_text(f"{{name: s, num_samples: 2, space: {space}, arguments: {{max_steps: 150}}}}")
    found, _ = read_earlier(client, ["before"], load_config(conditional))
    assert [each.params for each in found] == [{"swin_type": "base", "mm_n_points": 4}, {"swin_type": "large"}]


def test_an_unknown_experiment_is_named_with_those_there_are(config: SearchConfig, client: MlflowClient) -> None:
    with pytest.raises(TrackingError, match="there is no experiment 'nowhere'; there are Default"):
        read_earlier(client, ["nowhere"], config)


def board_of(values: Mapping[float, float]) -> Board:
    """Completed trials: learning rate -> value."""
    board = Board("s", "eval_pq", "max", 150, 10)
    for number, (rate, value) in enumerate(values.items()):
        board.add(number, SETTING | {"learning_rate": rate})
        board.start(number, 0.0)
        board.report(number, 150, value)
        board.finish(number, Status.COMPLETED, 1.0)
    return board


def earlier_of(values: Mapping[float, float], source: str = "a") -> list[Earlier]:
    return [Earlier(f"{rate}", source, SETTING | {"learning_rate": rate}, value) for rate, value in values.items()]


def test_values_are_level_where_settings_are_shared() -> None:
    found = aligned(earlier_of({1e-3: 50.0, 2e-3: 60.0}), board_of({1e-3: 70.0, 5e-3: 10.0}).proposed)
    assert [value for _, value in found] == [70.0, 80.0]


def test_sources_are_level_each_for_itself() -> None:
    earlier = earlier_of({1e-3: 50.0}) + earlier_of({1e-3: 90.0, 2e-3: 91.0}, "b")
    assert [value for _, value in aligned(earlier, board_of({1e-3: 70.0}).proposed)] == [70.0, 70.0, 71.0]


def test_without_shared_settings_medians_are_level_once_there_are_enough() -> None:
    earlier = earlier_of({1e-4: 1.0, 2e-4: 2.0, 3e-4: 3.0})
    few = board_of({1e-3: 70.0, 2e-3: 71.0, 3e-3: 72.0}).proposed
    assert [value for _, value in aligned(earlier, few)] == [1.0, 2.0, 3.0]
    enough = board_of({1e-3: 70.0, 2e-3: 71.0, 3e-3: 72.0, 4e-3: 73.0}).proposed
    assert [value for _, value in aligned(earlier, enough)] == [70.5, 71.5, 72.5]


def test_the_sampler_goes_where_earlier_trials_were_good(config: SearchConfig) -> None:
    """Earlier trials were best at small learning rates: proposals lie there more often than without them."""
    earlier = earlier_of({10 ** (-4 + 0.08 * n): -float(n) for n in range(25)})
    rows = board_of({1e-3: 0.0}).proposed
    without, small = (
        sum(float(propose(replace(config, seed=seed), rows, known)["learning_rate"]) < 5e-4 for seed in range(20))
        for known in ([], earlier)
    )
    assert small > without + 3


def test_what_was_run_already_is_answered_and_learnt_from(config: SearchConfig, tmp_path: Path) -> None:
    known = Earlier("abc", "before, 150 steps", SETTING, 70.0, {50: 30.0, 100: 60.0, 150: 70.0})
    assert answer([known], SETTING) is known
    assert answer([replace(known, values=None)], SETTING) is None
    with RunRecords(tmp_path) as records:
        state = SearchState(config, records, num_samples=3, earlier=[known])
        state.begin()
        job = state.next_job()
        assert job is not None
        assert job.number == 1, "trial 0, the baseline, needs no training"
        baseline = state.board.trials[0]
        assert (baseline.status, baseline.answered_by, baseline.last) == (Status.COMPLETED, "abc", 70.0)
    with RunRecords(tmp_path) as records:
        again = SearchState(config, records, num_samples=3)
        assert again.earlier == (known,)
        assert again.board.trials[0] == baseline
        again.begin()
        job = again.next_job()
        assert job is not None
        assert job.number == 1
        assert not again.result(1, 50, 10.0), "the answered trial counts at the first rung"
        again.end(1, Outcome.COMPLETED)


def test_an_answered_trial_has_records_of_its_own(config: SearchConfig, client: MlflowClient, tmp_path: Path) -> None:
    folder = tmp_path / config.name
    plan = TrialPlan(folder, config.arguments, config.resources, config.metric)
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", folder, config.name)
    tracker.start_search(config.as_record())
    record_answer(plan, board_of({1e-3: 70.0}).trials[0], "abc")
    run_id = tracker.start_trial(0, plan.trial_folder(0), SETTING)
    tracker.finish_trial(0, "FINISHED")
    tracker.finish_search("FINISHED", {})
    assert run_id is not None
    run = client.get_run(run_id)
    assert run.data.tags["answered_by"] == "abc"
    assert run.data.metrics["eval_pq"] == 70.0
    assert run.data.params["mm_hidden_dim"] == "64"
    assert run.info.status == "FINISHED"
    with pytest.raises(RecordError, match="its values are those of abc; give that"):
        read_record(client, run_id)
