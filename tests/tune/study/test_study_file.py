"""The study on disk is what a new process of Optuna reads, at every moment what the board says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tune.config import SearchConfig, load_config
from tune.options import DEFAULT_CONFIG
from tune.study.board import Board, Status
from tune.study.objectives import Objective
from tune.study.study import create_study, propose
from tune.study.study_file import STUDY_FILE, StudyFile

FULL = 90


@pytest.fixture(scope="module")
def config() -> SearchConfig:
    return load_config(DEFAULT_CONFIG)


@pytest.fixture
def board(config: SearchConfig) -> Board:
    """A search with a trial of each kind, and one that confirms another."""
    board = Board(config.name, config.metric, config.mode, FULL, 9)
    for number in range(5):
        setting = propose(config, board.trials.values())
        assert setting is not None
        board.add(number, setting)
        board.start(number, 0.0)
    finish(board, 0, Status.COMPLETED, {30: 1.0, 90: 3.0})
    finish(board, 1, Status.PRUNED, {30: 0.5}, "stopped early at step 30")
    finish(board, 2, Status.FAILED, {30: 0.7}, "loss is nan")
    board.report(3, 30, 2.0)
    board.add(5, board.trials[0].params, confirms=0, seed=1)
    return board


def finish(board: Board, number: int, status: Status, values: dict[int, float], reason: str | None = None) -> None:
    for step, value in values.items():
        board.report(number, step, value)
    board.finish(number, status, 1.0, reason)


@pytest.fixture
def opened(config: SearchConfig, board: Board, tmp_path: Path) -> Callable[[], StudyFile]:
    """The file as each run of the search opens it."""
    return lambda: StudyFile(tmp_path, config, board, lambda number: f"run{number}")


def test_of_several_objectives_all_are_in_the_file(config: SearchConfig, board: Board, tmp_path: Path) -> None:
    """A stopped trial has failed for Optuna, which knows no other word then; that it was stopped is an attribute."""
    several = replace(config, objectives=(Objective("eval_pq", "max"), Objective("parameters", "min")))
    board.trials[0].objectives = {"eval_pq": 3.0, "parameters": 70.0}
    for _ in range(2):  # made, and opened again
        StudyFile(tmp_path, several, board, lambda number: None)
        whole, stopped = read(tmp_path, several)[:2]
        assert whole.values == [3.0, 70.0]
        assert (stopped.state.name, stopped.user_attrs["status"]) == ("FAIL", "pruned")
    directions = optuna.load_study(
        study_name=config.name, storage=JournalStorage(JournalFileBackend(str(tmp_path / STUDY_FILE)))
    ).directions
    assert [each.name for each in directions] == ["MAXIMIZE", "MINIMIZE"]


def read(folder: Path, config: SearchConfig) -> list[optuna.trial.FrozenTrial]:
    """As another process reads it."""
    storage = JournalStorage(JournalFileBackend(str(folder / STUDY_FILE)))
    return optuna.load_study(study_name=config.name, storage=storage).trials


def check(folder: Path, config: SearchConfig, board: Board) -> None:
    """The file is the study that proposes, number by number."""
    expected = create_study(config, board.proposed).trials
    for name in ("number", "state", "values", "params", "distributions", "intermediate_values"):
        assert [getattr(t, name) for t in read(folder, config)] == [getattr(t, name) for t in expected], name


def test_a_new_file_has_every_trial_as_it_is(opened: Any, config: SearchConfig, board: Board, tmp_path: Path) -> None:
    opened()
    check(tmp_path, config, board)
    trials = read(tmp_path, config)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING", "RUNNING"]
    assert trials[1].value == 0.5
    assert trials[2].user_attrs == {"trial": 2, "status": "failed", "reason": "loss is nan", "mlflow_run_id": "run2"}


def test_the_file_follows_event_by_event(opened: Any, config: SearchConfig, board: Board, tmp_path: Path) -> None:
    file = opened()
    events: list[Callable[[], object]] = [
        lambda: board.report(3, 60, 2.5),
        lambda: board.add(6, board.trials[0].params | {"learning_rate": 2e-3}),
        lambda: board.start(6, 5.0),
        lambda: board.finish(4, Status.WAITING, 6.0, "the search was interrupted"),
        lambda: finish(board, 3, Status.COMPLETED, {90: 4.0}),
        lambda: finish(board, 6, Status.PRUNED, {30: 0.1}, "stopped early at step 30"),
        lambda: board.start(4, 8.0),
        lambda: board.finish(4, Status.FAILED, 9.0, "does not fit"),
    ]
    for event in events:
        event()
        file.update()
        check(tmp_path, config, board)
        told = [
            tuple(trial.user_attrs[name] for name in ("trial", "status", "reason")) for trial in read(tmp_path, config)
        ]
        assert told == [(row.number, row.status, row.reason or "") for row in board.proposed]
    assert [trial.user_attrs["trial"] for trial in read(tmp_path, config)] == [0, 1, 2, 3, 4, 6]
    assert all(trial.state.is_finished() for trial in read(tmp_path, config))


def test_nothing_is_written_where_nothing_is_new(opened: Any, tmp_path: Path) -> None:
    opened().update()
    before = (tmp_path / STUDY_FILE).read_bytes()
    opened().update()
    assert (tmp_path / STUDY_FILE).read_bytes() == before


def test_a_resumed_search_catches_up_and_keeps_what_is_there(
    opened: Any, config: SearchConfig, board: Board, tmp_path: Path
) -> None:
    opened()
    before = (tmp_path / STUDY_FILE).read_bytes()
    finish(board, 3, Status.COMPLETED, {60: 2.0, 90: 4.0})
    board.add(6, board.trials[0].params | {"learning_rate": 2e-3})
    opened()
    check(tmp_path, config, board)
    assert (tmp_path / STUDY_FILE).read_bytes().startswith(before)


@pytest.mark.parametrize("damage", ["deleted", "torn", "zeros", "garbage", "[]", "{}", '{"op_code": 99}', "empty"])
def test_a_damaged_file_is_made_anew(
    opened: Any, config: SearchConfig, board: Board, tmp_path: Path, damage: str
) -> None:
    opened()
    path = tmp_path / STUDY_FILE
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    match damage:
        case "deleted":
            path.unlink()
        case "torn":
            path.write_bytes(content[:-20])
        case "zeros":
            path.write_bytes(content[:200] + bytes(100) + content[300:])
        case "empty":
            path.write_bytes(b"")
        case line:
            path.write_bytes(b"".join([*lines[:2], line.encode() + b"\n", *lines[2:]]))
    opened()
    check(tmp_path, config, board)


def test_a_file_of_other_trials_is_made_anew(opened: Any, config: SearchConfig, board: Board, tmp_path: Path) -> None:
    opened()
    board.trials[0].values[90] = 5.0
    opened()
    check(tmp_path, config, board)
    StudyFile(tmp_path, replace(config, name="other"), board, lambda number: None)
    check(tmp_path, replace(config, name="other"), board)


@pytest.mark.parametrize("by", ["file", "study"])
def test_what_somebody_deletes_while_the_search_runs_comes_back(
    opened: Any, config: SearchConfig, board: Board, tmp_path: Path, by: str
) -> None:
    file = opened()
    if by == "file":
        (tmp_path / STUDY_FILE).unlink()
    else:
        storage = JournalStorage(JournalFileBackend(str(tmp_path / STUDY_FILE)))
        optuna.delete_study(study_name=config.name, storage=storage)
    board.report(3, 60, 2.5)
    file.update()
    check(tmp_path, config, board)


def test_notes_of_a_reader_do_no_harm(opened: Any, config: SearchConfig, board: Board, tmp_path: Path) -> None:
    """Optuna's dashboard writes into the file, too."""
    file = opened()
    storage = JournalStorage(JournalFileBackend(str(tmp_path / STUDY_FILE)))
    study = optuna.load_study(study_name=config.name, storage=storage)
    study.set_user_attr("note", "good")
    board.report(3, 60, 2.5)
    file.update()
    opened()
    check(tmp_path, config, board)
    assert optuna.load_study(study_name=config.name, storage=storage).user_attrs == {"note": "good"}


def test_a_search_goes_on_without_the_file(
    opened: Any, config: SearchConfig, board: Board, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a full disk: something that can be neither removed nor written is where it should be."""
    blocker = tmp_path / STUDY_FILE
    blocker.mkdir()
    file = opened()
    board.report(3, 60, 2.5)
    file.update()
    assert caplog.text.count("cannot be written") == 1
    blocker.rmdir()
    file.update()
    check(tmp_path, config, board)
