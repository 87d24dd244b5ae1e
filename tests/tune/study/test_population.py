"""Population based training: who is stopped, who is forked, and what a file may ask for."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from psalm.train.fields import SettingError
from psalm.train.records import RunRecords
from tune.config import SchedulerConfig, SearchConfig, load_config
from tune.study.board import Board, Fork, Outcome, Status
from tune.study.population import StopLowest, choose_fork
from tune.study.state import SearchState
from tune.study.study import propose
from tune.study.study_file import StudyFile

FULL = 100
CONTENT: dict[str, Any] = {
    "name": "s",
    "metric": "eval_pq",
    "num_samples": 12,
    "max_concurrent": 4,
    "scheduler": {"name": "pbt", "population": 4},
    "arguments": {"max_steps": FULL, "eval_steps": 10, "warmup_ratio": 0.1},
    "space": {"learning_rate": {"loguniform": [1e-4, 1e-2]}, "mm_n_points": {"choice": [2, 4]}},
    "confirm": "1x2",
}


def load(tmp_path: Path, changes: Mapping[str, Any] | None = None, **arguments: Any) -> SearchConfig:
    given = {**CONTENT, **(changes or {})}
    given["arguments"] = {**given["arguments"], **arguments}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(given))
    return load_config(tmp_path / "s.yaml")


def stop(**changes: Any) -> StopLowest:
    return StopLowest(SchedulerConfig("pbt", **{"grace_period": 20, "population": 8, **changes}), "max", FULL)


def decisions(rule: StopLowest, step: int, *values: float) -> list[bool]:
    return [rule.goes_on(number, step, value) for number, value in enumerate(values)]


def test_the_lowest_of_four_is_stopped_and_two_of_eight() -> None:
    assert decisions(stop(), 20, 9, 8, 7) == [True] * 3, "a quarter of three is nobody"
    assert decisions(stop(), 20, 9, 8, 7, 6, 6.5) == [True, True, True, False, True]
    assert decisions(stop(), 20, 9, 8, 7, 6, 10, 11, 12, 6.5) == [True, True, True, False, True, True, True, False]


def test_a_small_population_is_enough_to_rank_in() -> None:
    assert decisions(stop(population=2), 20, 9, 8) == [True, False]


def test_who_is_always_the_first_is_ranked_when_others_have_come_as_far() -> None:
    rule = stop()
    assert decisions(rule, 20, 6, 7, 8, 9) == [True] * 4, "the worst was there before the others"
    assert not rule.goes_on(0, 30, 50)
    assert rule.goes_on(1, 30, 1), "at step 20 it is not the worst, and only two are at 30"


def test_where_all_are_equal_nobody_is_stopped() -> None:
    assert all(decisions(stop(), 20, *[0.0] * 9))


def test_nobody_is_stopped_before_the_grace_period_at_the_end_or_between_intervals() -> None:
    for step in (10, FULL):
        assert all(decisions(stop(), step, 9, 8, 7, 6)), step
    rule = stop(interval=40)
    assert all(decisions(rule, 20, 9, 8, 7, 6))
    assert decisions(rule, 40, 9, 8, 7, 6) == [True, True, True, False]


def test_smaller_is_better_where_it_is() -> None:
    rule = StopLowest(SchedulerConfig("pbt", 20), "min", FULL)
    assert decisions(rule, 20, 6, 7, 8, 9) == [True, True, True, False]


def board_of(config: SearchConfig, values: Mapping[int, Mapping[int, float]]) -> Board:
    board = Board(config.name, config.metric, config.mode, FULL, 12)
    for number, of_steps in values.items():
        board.add(number, {"learning_rate": 1e-3 * (number + 1), "mm_n_points": 2})
        board.start(number, 0.0)
        for step, value in of_steps.items():
            board.report(number, step, value)
    return board


def test_the_best_at_its_own_step_is_forked(tmp_path: Path) -> None:
    """Trial 2 has the highest value, but is further than others; at step 20 trial 1 is the best of all."""
    config = load(tmp_path)
    board = board_of(config, {0: {20: 5, 30: 50}, 1: {20: 9}, 2: {20: 7, 30: 40}, 3: {20: 8}})
    found = [choose_fork(config, number, board.proposed, lambda *_: True) for number in range(4, 30)]
    assert {new.fork for new in found if new is not None} == {Fork(0, 30)}, "best at 30; of two that are best the first"
    rates = {rate for new in found if new is not None for rate in new.changes.values()}
    assert rates == {1e-3 * 0.8, 1e-3 * 1.25}, "either factor is drawn"
    board.finish(0, Status.PRUNED, 0.0)
    new = choose_fork(config, 4, board.proposed, lambda *_: True)
    assert new is not None
    assert new.fork == Fork(1, 20), "one that has ended is forked no more, but is compared to"


def test_only_what_has_a_checkpoint_is_forked(tmp_path: Path) -> None:
    config = load(tmp_path)
    board = board_of(config, {0: {20: 5, 30: 50}})
    new = choose_fork(config, 4, board.proposed, lambda number, step: step < 30)
    assert new is not None
    assert new.fork == Fork(0, 20)
    assert choose_fork(config, 4, board.proposed, lambda *_: False) is None
    assert choose_fork(config, 4, board_of(config, {0: {10: 5}}).proposed, lambda *_: True) is None, "warm-up"


def test_a_fork_is_forked_where_it_has_values_of_its_own_and_no_setting_twice(tmp_path: Path) -> None:
    config = load(tmp_path)
    board = board_of(config, {0: {20: 5}})
    params = board.trials[0].params
    for number in (1, 2):
        new = choose_fork(config, number, board.proposed, lambda *_: True)
        assert new is not None
        board.add(number, params, fork=new.fork, learning_rate_changes=new.changes)
        board.start(number, 0.0)
    assert board.trials[1].values == {20: 5}
    assert board.trials[1].seconds_at(0.0) == 0
    assert choose_fork(config, 3, board.proposed, lambda *_: True) is None, "both rates were had"
    board.report(2, 30, 6)
    new = choose_fork(config, 3, board.proposed, lambda *_: True)
    assert new is not None
    assert new.fork == Fork(2, 30)
    (twenty, first), (thirty, second) = new.changes.items()
    assert (twenty, thirty) == ("20", "30")
    assert first == board.trials[2].learning_rate_changes["20"]
    assert second / first in (pytest.approx(0.8), pytest.approx(1.25))


def run_search(config: SearchConfig, folder: Path) -> SearchState:
    """Four trials at a time, to the end; each is better than those before it."""
    state = SearchState(config, RunRecords(folder), num_samples=config.num_samples)
    state.begin()
    running: dict[int, int] = {}
    while not state.finished:
        while len(running) < 4 and (job := state.next_job()) is not None:
            running[job.number] = state.board.trials[job.number].evaluated
        for number in list(running):
            step = running[number] = running[number] + 10
            goes_on = state.result(number, step, number + step / 10)
            if not goes_on or step >= FULL:
                state.end(number, Outcome.COMPLETED)
                del running[number]
    state.conclude("FINISHED")
    return state


def test_the_confirmation_of_a_fork_has_its_rates_from_the_beginning(tmp_path: Path) -> None:
    config = load(tmp_path)
    state = run_search(config, tmp_path / "search")
    board = state.board
    best = board.best
    assert best is not None
    assert best.fork is not None, "of these values, the best is a fork"
    assert [row.setting for row in board.confirmations] == [
        {**best.params, "learning_rate_changes": dict(best.learning_rate_changes), "seed": seed} for seed in (1, 2)
    ]
    assert all(row.fork is None and row.values.keys() == {*range(10, FULL + 1, 10)} for row in board.confirmations)

    study_file = StudyFile(tmp_path, config, board, lambda _: None)
    assert len(study_file._trials()) == len(board.sampled) == 4
    assert study_file._open(), "it is of these trials"
    assert propose(config, board.sampled) == propose(config, list(board.trials.values())[:4])


def test_a_search_ends_where_nobody_is_left_to_fork(tmp_path: Path) -> None:
    config = replace(load(tmp_path), confirm=None)
    state = SearchState(config, RunRecords(tmp_path / "search"), num_samples=12)
    state.begin()
    for number in range(4):
        assert state.next_job() is not None
        state.result(number, 20, number)
    assert not state.finished
    for number in range(4):
        state.end(number, Outcome.FAILED, "loss is nan")
    assert state.next_job() is None
    assert state.finished
    assert (state.board.to_propose, state.board.fraction) == (0, 1.0)


def test_fewer_at_a_time_than_the_population_are_warned_of(tmp_path: Path) -> None:
    (note,) = load(tmp_path, {"max_concurrent": 3, "baselines": []}).notes
    assert note.startswith(
        "scheduler: population = 4, but max_concurrent = 3: a trial that has ended is forked no more"
    )
    assert load(tmp_path, {"max_concurrent": 4, "baselines": []}).notes == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"space": {"mm_n_points": {"choice": [2, 4]}}},
            "scheduler: name = pbt changes the learning rate, but learning_rate is not searched in every trial; add it",
        ),
        (
            {"arguments": {**CONTENT["arguments"], "learning_rate_changes": {50: 1e-3}}},
            "scheduler: name = pbt sets learning_rate_changes itself; leave it out",
        ),
        ({"num_samples": 4}, "scheduler: population = 4 leaves none of num_samples = 4 to fork; lower it, or raise"),
        (
            {"space": {"learning_rate": {"choice": [1e-3, 1e-4]}}},
            "scheduler: population = 4, but there are settings for 2 only; lower it",
        ),
        (
            {"arguments": {**CONTENT["arguments"], "save_strategy": "no"}},
            "scheduler: name = pbt forks trials at their checkpoints, but save_strategy = no; leave that out",
        ),
        (
            {"arguments": {**CONTENT["arguments"], "save_steps": 33}},
            "scheduler: name = pbt forks trials at their checkpoints, but save_steps = 33 saves none at an evaluation",
        ),
        (
            {"scheduler": {"name": "pbt", "population": 4, "interval": 100}},
            "scheduler: name = pbt: no trial is evaluated at a multiple of interval = 100 between grace_period = 20",
        ),
    ],
)
def test_what_cannot_be_forked_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as error:
        load(tmp_path, changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"), [("population", 1), ("quantile", 0.6), ("quantile", 0), ("interval", 0), ("fraction", 1)]
)
def test_wrong_settings_of_it_are_refused(name: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=name):
        load(tmp_path, {"scheduler": {"name": "pbt", "population": 4, name: value}})
