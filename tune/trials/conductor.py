"""Conducts a running search: asks its state; tells the display, MLflow, the study's file and the workers what came."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray.actor import ActorHandle

from psalm.train.arguments import with_defaults
from psalm.train.records import RunRecords, read_records
from tune.costs import costs
from tune.progress import Progress
from tune.results import summary, write_summary
from tune.study.board import Fork, Outcome, Status, TrialRow
from tune.study.state import Job, SearchState
from tune.study.study_file import StudyFile
from tune.tracking.tracker import Tracker
from tune.trials.cluster import Interrupted
from tune.trials.failures import one_line
from tune.trials.forking import take_over
from tune.trials.keeping import Keeper
from tune.trials.limits import Limits
from tune.trials.trial import TrialPlan

FINAL = {Status.COMPLETED: "FINISHED", Status.PRUNED: "FINISHED", Status.FAILED: "FAILED"}
"""MLflow's status of a trial that will not go on."""
POLL_SECONDS = 2.0
"""How often running trials' records are read and delivered."""
ENDING_SECONDS = 40.0
"""How long trials may take to save a last checkpoint when the search ends before them."""


class Overdue(Exception):  # noqa: N818
    """Trials did not end in time: they go on from earlier checkpoints."""


class Conductor:
    """One run of a search.

    Args:
        state: of the search.
        plan: of its trials.
        progress: the display.
        tracker: the view in MLflow.
        limits: of time.
        desk: through which workers are told.
        signal: what has interrupted the search, if anything.
        keeper: of the trials' files.
        study_file: the view for Optuna's tools.
    """

    def __init__(
        self,
        state: SearchState,
        plan: TrialPlan,
        progress: Progress,
        tracker: Tracker,
        limits: Limits,
        desk: ActorHandle[Any],
        signal: Callable[[], Interrupted | None],
        keeper: Keeper,
        study_file: StudyFile,
    ) -> None:
        self.state = state
        self.plan = plan
        self.progress = progress
        self.tracker = tracker
        self.limits = limits
        self.desk = desk
        self.signal = signal
        self.keeper = keeper
        self.study_file = study_file
        self._ending_until: float | None = None
        self._seen: dict[int, int] = {}
        self._next_poll = 0.0
        self._storage_away = False
        self._released = False  # the workers that wait

    def next_job(self) -> Job | None:
        """What is to run next, if anything is."""
        job = self.state.next_job()
        self._tell_answers()
        if job is None and not self._released:
            self.desk.release.remote()
        self._released = job is None
        if job is not None:
            row = self.state.board.trials[job.number]
            if row.fork is not None:
                self._take_over(row.number, row.fork)
            self.tracker.start_trial(job.number, self.plan.trial_folder(job.number), job.params, row.confirms, row.fork)
            self._read_step(row)
            self.progress.started(row)
        self.study_file.update()
        return job

    def _take_over(self, number: int, fork: Fork) -> None:
        """A fork gets its parent's beginning, if it can be had."""
        try:
            take_over(self.plan, number, fork)
        except OSError as error:
            self.progress.note(f"trial {number} begins anew, without what trial {fork.trial} has: {one_line(error)}")

    def _tell_answers(self) -> None:
        """Trials that need no training, because an earlier search has run them, get their records."""
        for row in self.state.board.trials.values():
            if row.answered_by is not None and not self.tracker.knows(row.number):
                record_answer(self.plan, row, row.answered_by)
                self.tracker.start_trial(row.number, self.plan.trial_folder(row.number), row.setting)
                finish(self.tracker, row)
                self.progress.ended(row)

    def evaluated(self, job: str, number: int, step: int, value: float) -> bool:
        """A trial was evaluated. Returns whether it goes on; its workers are told."""
        self._fetch(number)
        goes_on = self.state.result(number, step, value)
        self.desk.decide.remote(job, goes_on)
        self.study_file.update()
        self.progress.evaluated(self.state.board.trials[number])
        return goes_on

    def ended(self, job: str, number: int, outcome: Outcome, reason: str | None = None) -> None:
        """An attempt has ended; the trial may have, too."""
        self.desk.forget.remote(job)
        self._fetch(number)
        row = self.state.end(number, outcome, reason or self.state.closed)
        self.study_file.update()
        self.progress.ended(row)
        if row.status in FINAL:
            finish(self.tracker, row)
            self._with_storage(lambda: self.keeper.tidy(self.state.board))

    def check(self) -> None:
        """Raise ``Interrupted`` if a signal has ended the search."""
        if signal := self.signal():
            raise signal

    def look(self) -> None:
        """What is to be done several times a second.

        Raises:
            Interrupted: trials did not end in time after a signal.
            Overdue: trials did not end in time after a limit was reached.
        """
        if self._ending_until is None:
            signal = self.signal()
            reason = str(signal) if signal else self.limits.reached(self.state, time.time())
            if reason is not None:
                self._end_all(reason)
        elif time.monotonic() >= self._ending_until:
            raise self.signal() or Overdue(f"Some trials did not end within {ENDING_SECONDS:.0f} s")
        if time.monotonic() >= self._next_poll:
            for row in self.state.board.of(Status.RUNNING):
                self._fetch(row.number)
                self._read_step(row)
            self.tracker.sync()
            self._next_poll = time.monotonic() + POLL_SECONDS

    def _end_all(self, reason: str) -> None:
        self.state.close(reason)
        self.desk.interrupt.remote()
        self._ending_until = time.monotonic() + ENDING_SECONDS
        self.progress.note(f"{reason}: the search ends; running trials save a checkpoint")

    def _fetch(self, number: int) -> None:
        """Brings a trial's records and pictures here, if they are elsewhere."""
        storage = self.plan.storage
        if storage is not None:
            self._with_storage(lambda: storage.fetch(number, self.plan.trial_folder(number)))

    def _with_storage(self, action: Callable[[], object]) -> None:
        """Something that is done again later if the storage does not answer now; that is told once."""
        try:
            action()
            self._storage_away = False
        except OSError as error:
            if not self._storage_away:
                self.progress.note(f"the trials' storage does not answer: {one_line(error)}")
            self._storage_away = True

    def _read_step(self, row: TrialRow) -> None:
        for record in read_records(self.plan.trial_folder(row.number), after=self._seen.get(row.number, -1)):
            self._seen[row.number] = record["n"]
            if record["kind"] == "metrics":
                self.state.advance(row.number, record["step"])


@dataclass
class SearchRun:
    """What belongs to one run of a search."""

    study_file: StudyFile
    at_once: int = 0
    """Trials at a time; known once Ray is up."""


@contextmanager
def concluded(state: SearchState, tracker: Tracker, plan: TrialPlan) -> Iterator[SearchRun]:
    """A run of a search; however the block ends, the search can go on from there, and MLflow knows how all trials are.

    ``search.json`` is written at the end, too.
    """
    search_run_id = tracker.start_search(state.config.as_record())
    state.begin()
    tell_ends(state, tracker, plan)
    run = SearchRun(StudyFile(plan.folder, state.config, state.board, tracker.run_id))
    status, reason = "FINISHED", "the search has ended"
    try:
        yield run
    except Interrupted as interrupt:
        status, reason = "KILLED", f"the search was interrupted by {interrupt}"
        raise
    except Overdue:
        raise
    except BaseException as error:
        status, reason = "FAILED", f"the search failed: {type(error).__name__}"
        raise
    finally:
        for row in state.board.occupied:
            state.end(row.number, Outcome.INTERRUPTED, state.closed or reason)
        if status == "FINISHED" and state.board.best is None:
            status = "FAILED"
        state.conclude(status)
        run.study_file.update()
        tell_ends(state, tracker, plan)
        content = summary(state.board, search_run_id, tracker.run_id, costs(state.board, plan.folder, run.at_once))
        write_summary(plan.folder, content)
        tracker.finish_search(status, content)


def tell_ends(state: SearchState, tracker: Tracker, plan: TrialPlan) -> None:
    """Tells MLflow of trials that do not run any more, but do for all that it knows, as after a search was killed."""
    for row in state.board.trials.values():
        if not tracker.knows(row.number):
            tracker.start_trial(row.number, plan.trial_folder(row.number), row.setting, row.confirms, row.fork)
        if tracker.runs(row.number):
            finish(tracker, row)
    tracker.sync()


def record_answer(plan: TrialPlan, row: TrialRow, run_id: str) -> None:
    """What is known of a trial that an earlier run has answered, as its records."""
    with RunRecords(plan.trial_folder(row.number)) as records:
        records.settings(with_defaults(plan.settings(row.number, row.setting)))
        records.tags({"answered_by": run_id})
        records.event("started")
        for step, value in row.values.items():
            records.metrics(step, {plan.metric: value})
        records.event("completed", step=row.evaluated)


def finish(tracker: Tracker, row: TrialRow) -> None:
    """A trial's end, or that it waits for another run of the search, to MLflow."""
    status = FINAL.get(row.status, "KILLED")
    tracker.finish_trial(row.number, status, reason=row.reason, early_stopped=row.status == Status.PRUNED)
