"""Follows a running search: Tune's events and the trials' records go to the board, the display and the tracker."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayTaskError
from ray.tune import Callback
from ray.tune.experiment import Trial

from psalm.train.records import read_records
from tune.board import Board, Status, TrialRow
from tune.cluster import Interrupted
from tune.progress import Progress
from tune.results import summary, write_summary
from tune.study import STEP
from tune.tracking import Tracker
from tune.trial import one_line

POLL_SECONDS = 2.0
"""How often running trials' records are read and delivered."""


class Monitor(Callback):
    """Tune's callback; ``trial_folder`` gives where a trial's records are, ``check`` raises if the search is to end."""

    def __init__(
        self,
        board: Board,
        progress: Progress,
        tracker: Tracker,
        trial_folder: Callable[[int], Path],
        check: Callable[[], None],
    ) -> None:
        self.board = board
        self.progress = progress
        self.tracker = tracker
        self.trial_folder = trial_folder
        self.check = check
        self._seen: dict[int, int] = {}
        self._next_poll = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restoration that never happens here; a display has no copy."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's actor is up."""
        self._row(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has been evaluated."""
        row = self._row(trial)
        self.progress.evaluated(self.board.report(row.number, result[STEP], result[self.board.metric]))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial ran to its end, or was stopped early."""
        row = self._row(trial)
        if (trial.last_result or {}).get(STEP, 0) >= self.board.full_length:
            self._end(row, Status.COMPLETED, None)
        else:
            self._end(row, Status.PRUNED, f"stopped early at step {trial.last_result.get(STEP, 0)}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed."""
        self._end(self._row(trial), Status.FAILED, failure_reason(_raised(trial)))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Tune's loop goes round, several times a second."""
        self.check()
        if time.monotonic() >= self._next_poll:
            for row in self.board.of(Status.RUNNING):
                self._read_step(row.number)
            self.tracker.sync()
            self._next_poll = time.monotonic() + POLL_SECONDS

    def _row(self, trial: Trial) -> TrialRow:
        number, params = trial.config["number"], trial.config["params"]
        if number not in self.board.trials:
            self.tracker.start_trial(number, self.trial_folder(number), params)
            self.progress.started(self.board.start(number, params))
        return self.board.trials[number]

    def _end(self, row: TrialRow, status: Status, reason: str | None) -> None:
        self.progress.ended(self.board.finish(row.number, status, reason))
        self.tracker.finish_trial(
            row.number,
            "FAILED" if status == Status.FAILED else "FINISHED",
            reason=reason,
            early_stopped=status == Status.PRUNED,
        )

    def _read_step(self, number: int) -> None:
        for record in read_records(self.trial_folder(number), after=self._seen.get(number, -1)):
            self._seen[number] = record["n"]
            if record["kind"] == "metrics":
                self.board.advance(number, record["step"])


def _raised(trial: Trial) -> Exception | None:
    """What ended a trial, as Tune keeps it in the driver's own copy of the trial's folder."""
    path = Path(trial.pickled_error_file)
    return cloudpickle.loads(path.read_bytes()) if path.is_file() else None


def failure_reason(error: Exception | None) -> str:
    """What a failed trial's function raised, in one line."""
    return one_line(error.cause if isinstance(error, RayTaskError) else error)


@contextmanager
def concluded(board: Board, tracker: Tracker, folder: Path, record: Mapping[str, Any]) -> Iterator[None]:
    """Opens the search's run; however the block ends, no trial is left running and every run has its final status.

    ``search.json`` is written then, too.
    """
    search_run_id = tracker.start_search(record)
    status, reason = "FINISHED", "the search has ended"
    try:
        yield
    except Interrupted as interrupt:
        status, reason = "KILLED", f"the search was interrupted by {interrupt}"
        raise
    except BaseException as error:
        status, reason = "FAILED", f"the search failed: {type(error).__name__}"
        raise
    finally:
        for row in board.kill_running(reason):
            tracker.finish_trial(row.number, "KILLED", reason=reason)
        if status == "FINISHED" and not board.of(Status.COMPLETED):
            status = "FAILED"
        tracker.sync()
        content = summary(board, search_run_id, tracker.run_id)
        write_summary(folder, content)
        tracker.finish_search(status, content)
