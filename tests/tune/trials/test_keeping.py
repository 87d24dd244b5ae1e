"""Files of trials go when nobody can need them any more."""

from pathlib import Path

import pytest

from psalm.train.checkpoint_files import FINAL_MODEL
from tune.study.board import Board, Status
from tune.study.objectives import Objective
from tune.trials.keeping import Keeper
from tune.trials.resources import TrialResources
from tune.trials.trial import TrialPlan

KINDS = ("checkpoint-5", "checkpoint-10", FINAL_MODEL, "artifacts")


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Five trials that have all kinds of files."""
    board = Board("small", "eval_pq", "max", 10, 5)
    for number in range(5):
        board.add(number, {})
        board.start(number, 0.0, {})
        for kind in KINDS:
            folder = tmp_path / "trials" / f"{number:04d}" / kind
            folder.mkdir(parents=True)
            (folder / "file").touch()
    return board


def kept(folder: Path, number: int) -> set[str]:
    return {path.name for path in (folder / "trials" / f"{number:04d}").iterdir()}


def end(board: Board, number: int, status: Status, value: float) -> None:
    board.report(number, 10, value)
    board.finish(number, status, 1.0)


def test_running_trials_keep_all_and_ended_ones_their_model_while_it_is_among_the_best(
    board: Board, tmp_path: Path
) -> None:
    keeper = Keeper(TrialPlan(tmp_path, {}, TrialResources(), "eval_pq"), keep_best=2)
    end(board, 0, Status.COMPLETED, 50.0)
    end(board, 1, Status.PRUNED, 90.0)
    end(board, 2, Status.FAILED, 95.0)
    keeper.tidy(board)
    assert kept(tmp_path, 0) == {FINAL_MODEL, "artifacts"}
    assert kept(tmp_path, 1) == kept(tmp_path, 2) == {"artifacts"}
    assert kept(tmp_path, 3) == kept(tmp_path, 4) == set(KINDS)
    end(board, 3, Status.COMPLETED, 40.0)
    keeper.tidy(board)
    assert kept(tmp_path, 3) == {FINAL_MODEL, "artifacts"}
    end(board, 4, Status.COMPLETED, 60.0)
    keeper.tidy(board)
    assert kept(tmp_path, 3) == {"artifacts"}
    assert kept(tmp_path, 0) == kept(tmp_path, 4) == {FINAL_MODEL, "artifacts"}


@pytest.mark.parametrize(("keep_best", "kept_models"), [(1, {0, 2}), (0, set())])
def test_those_on_the_front_keep_their_models_too(
    board: Board, tmp_path: Path, keep_best: int, kept_models: set[int]
) -> None:
    board.objectives = (Objective("eval_pq", "max"), Objective("step_ms", "min"))
    for number, objectives in enumerate([(50.0, 9.0), (40.0, 9.0), (30.0, 2.0)]):
        end(board, number, Status.COMPLETED, objectives[0])
        board.trials[number].objectives = dict(zip(("eval_pq", "step_ms"), objectives, strict=True))
    Keeper(TrialPlan(tmp_path, {}, TrialResources(), "eval_pq"), keep_best).tidy(board)
    assert {number for number in range(3) if FINAL_MODEL in kept(tmp_path, number)} == kept_models


def test_a_trial_that_waits_to_go_on_keeps_its_checkpoints(board: Board, tmp_path: Path) -> None:
    board.finish(0, Status.WAITING, 1.0, "interrupted")
    Keeper(TrialPlan(tmp_path, {}, TrialResources(), "eval_pq"), keep_best=0).tidy(board)
    assert kept(tmp_path, 0) == set(KINDS)
