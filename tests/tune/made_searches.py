"""Searches as ``tune.report.comparison`` reads them, made by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

from tune.report.comparison import Search, Trial
from tune.study.board import Board, Status, TrialRow
from tune.trials.resources import TrialResources


def made_trial(
    number: int,
    params: Mapping[str, Any],
    values: Mapping[int, float],
    status: Status = Status.COMPLETED,
    **measures: float,
) -> Trial:
    """A trial of a minute that began ``number`` minutes after the first."""
    row = TrialRow(number, params, status=status, values=dict(values), spent=60.0)
    row.step = row.evaluated
    return Trial(row, f"{number:032x}", f"{number:04d}", 60.0 * number, 60.0 * (number + 1), measures)


def made_search(trials: Sequence[Trial], mode: str = "max", baseline: int | None = None, **others: Any) -> Search:
    """A search of these trials, over all parameters that they have."""
    board = Board("made", "eval_pq", mode, 100, len(trials), baseline=baseline)
    board.trials = {trial.number: trial.row for trial in trials}
    space = {name: "some values" for trial in trials for name in trial.row.params}
    given = {
        "name": "made",
        "run_id": "f" * 32,
        "experiment_id": "1",
        "server": None,
        "status": "FINISHED",
        "started": 0.0,
        "space": space,
        "resources": TrialResources(),
        "seconds": {},
    }
    return Search(board=board, trials={trial.number: trial for trial in trials}, **(given | others))
