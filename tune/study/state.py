"""A search's state: what it has done, and so what it does next.

Everything that changes it is an event in the records of the search's folder (``records.jsonl``, the format of a run's
records), written before it takes effect. The state is a function of the search's settings and these events, so a
search that ended in any way goes on from them. Events and their fields, besides the time:

========= =================================================================================================
started   the search begins: ``pid``; ``earlier``, the trials of other searches that its sampler is told
resumed   it goes on in a new process: ``pid``; the one before is known to have run ``until`` a Unix time
proposed  a trial: ``number``, ``params``, and the ``rung`` of the memory ladder at which it starts; one that is to
          confirm another also has the number of that, ``confirms``, and its new ``seed``; one that is forked from
          another ``forks``, that one's number as ``trial`` and the ``step``; ``learning_rate_changes``, if it has any
answered  a trial has its values from the run ``run_id`` of an earlier search, which it would repeat: ``number``
attempt   of a trial begins: ``number``, ``attempt`` (1, 2, ...), ``rung`` and the ``changes`` that it makes
result    of a trial: ``number``, ``step``, ``value``, and whether the trial ``goes_on``
ended     an attempt: ``number``, ``outcome``, the trial's ``status`` now, its ``rung`` next time, ``reason``; in a
          search for several objectives, their values where the trial has completed: ``objectives`` {name: value}
closed    nothing more is begun in this run of the search: ``reason``
concluded the run of the search has ended: ``status``
========= =================================================================================================

A trial whose attempt has not ended when its search is resumed was interrupted: it is to run again.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psalm.train.arguments import with_defaults
from psalm.train.learning_rates import LEARNING_RATE_CHANGES
from psalm.train.records import Record, RunRecords, metric_history, read_records
from tune.config import SearchConfig
from tune.costs import cost_objectives
from tune.errors import SearchError
from tune.space.parameters import Value
from tune.study.board import UNFINISHED, Board, Fork, Outcome, Status, TrialRow, trial_folder
from tune.study.confirmation import to_confirm
from tune.study.objectives import COSTS
from tune.study.population import choose_fork
from tune.study.schedulers import create_stopping_rule
from tune.study.study import propose
from tune.study.warm_start import Earlier, answer
from tune.trials.ladder import at_least_as_large, climb, height


@dataclass(frozen=True)
class Job:
    """An attempt to begin."""

    number: int
    """Of the trial in its search."""
    params: Mapping[str, Any]
    """The arguments by which it differs from other trials."""
    rung: int
    """Of the memory ladder; 0 is as configured."""
    changes: Mapping[str, Any]
    """Training arguments that the rung changes."""
    attempt: int
    """1, 2, ..."""


class SearchState:
    """Decides what runs; tell it what happens.

    Replays what the records hold already; trials that were running then are to run again. ``begin`` it, take a
    ``next_job`` whenever there is room, tell every ``result`` and the ``end`` of every attempt, and ``conclude`` it.

    Args:
        config: the search.
        records: of the search's folder.
        num_samples: trials in all, which may be more than when the search began; not more than there are settings.
        max_failures: how often the processes of one trial may die before it has failed.
        earlier: trials of other searches, for the sampler of one that begins.
        saved: whether a trial has a checkpoint of a step, of those that ``pbt`` may fork.

    Raises:
        SearchError: the records hold a trial that is not in the search's space.
        ValueError: the records are damaged.
    """

    def __init__(
        self,
        config: SearchConfig,
        records: RunRecords,
        *,
        num_samples: int,
        max_failures: int = 3,
        earlier: Sequence[Earlier] = (),
        saved: Callable[[int, int], bool] = lambda number, step: True,
    ) -> None:
        self.config = config
        self.saved = saved
        self.max_failures = max_failures
        self.board = Board(
            config.name,
            config.metric,
            config.mode,
            config.max_steps,
            num_samples=int(min(num_samples, config.most_trials)),
            dependents=config.dependents,
            objectives=config.objectives,
            population=config.scheduler.population if config.scheduler.name == "pbt" else None,
            exhausts=num_samples >= config.most_trials,
        )
        self.board.baseline = 0 if config.baselines else None
        self.earlier = tuple(earlier)
        self._records = records
        self._rule = create_stopping_rule(config.scheduler, config.mode, config.max_steps)
        self._closed: str | None = None
        self._until: float | None = None  # Unix time at which an earlier process is known to have been at work last
        for event in self._recorded():
            if event["event"] == "result":
                self._goes_on(event["number"], event["step"], event["value"])
            self._apply(event)
            self._until = event["time"]
        if self._until is not None:
            self._until = self._last_sign_of_life(self._until)
            self._interrupt(self._until)

    def begin(self) -> None:
        """A run of the search begins, the first or another one."""
        if self._until is None:
            self._record("started", pid=os.getpid(), earlier=[each.as_record() for each in self.earlier])
            return
        self._record("resumed", pid=os.getpid(), until=self._until)
        for row in self.board.of(Status.WAITING):
            if row.evaluated >= self.board.full_length and self._has_completed(row.number):
                self._record_end(row, Outcome.COMPLETED, None)

    def next_job(self) -> Job | None:
        """An attempt to begin now: of the first trial that waits, else of a new one. None if there is none."""
        if self._closed is not None:
            return None
        waiting = self.board.of(Status.WAITING)
        row = waiting[0] if waiting else self._propose() or self._fork() or self._confirm()
        if row is None:
            return None
        self._record(
            "attempt",
            number=row.number,
            attempt=row.attempts + 1,
            rung=row.rung,
            changes=climb(self._settings(row.params), row.rung),
        )
        return Job(row.number, row.setting, row.rung, row.changes, row.attempts)

    def result(self, number: int, step: int, value: float) -> bool:
        """A trial was evaluated at a global step; returns whether it goes on.

        A step that is not after the last one (a resumed trial repeats some) is not counted again, and goes on. A trial
        that is not running any more does not go on.

        Raises:
            ValueError: the value is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(
                f"trial {number}: {self.config.metric} is {value} at step {step}; only numbers are results"
            )
        row = self.board.trials[number]
        if row.status != Status.RUNNING:
            return False
        if row.values and step <= row.evaluated:
            return True
        goes_on = self._goes_on(number, step, value)
        self._record("result", number=number, step=step, value=value, goes_on=goes_on)
        return goes_on

    def advance(self, number: int, step: int) -> None:
        """A trial has trained up to a step; for the display only."""
        self.board.advance(number, step)

    def end(self, number: int, outcome: Outcome, reason: str | None = None) -> TrialRow:
        """The attempt of a trial has ended; the trial may be waiting for another one then.

        A trial that was stopped early is pruned, however its processes ended afterwards. The values of several
        objectives are read from the trial's own records.

        Raises:
            ValueError: no attempt of the trial runs.
        """
        row = self.board.trials[number]
        if row.since is None:
            raise ValueError(f"trial {number} is {row.status}, so no attempt of it can end ({outcome}: {reason})")
        self._record_end(row, outcome, reason)
        return row

    def close(self, reason: str) -> None:
        """Nothing more is begun in this run of the search; what runs may end."""
        if self._closed is None:
            self._record("closed", reason=reason)

    def conclude(self, status: str) -> None:
        """The run of the search has ended."""
        self._record("concluded", status=status)

    @property
    def closed(self) -> str | None:
        """Why nothing more is begun; None if something may be."""
        return self._closed

    @property
    def finished(self) -> bool:
        """Whether nothing runs and nothing will."""
        if self.board.occupied:
            return False
        if self._closed is not None:
            return True
        return not (self.board.of(Status.WAITING) or self._proposals_left or self._unconfirmed())

    @property
    def _proposals_left(self) -> bool:
        return self.board.to_propose > 0

    @property
    def _forking(self) -> bool:
        """Whether new trials are forked from others: the population has begun."""
        return self.board.population is not None and len(self.board.proposed) >= self.board.population

    def _propose(self) -> TrialRow | None:
        while self._proposals_left and not self._forking:
            number = len(self.board.trials)
            params = propose(self.config, self.board.proposed, self.earlier)
            assert params is not None, f"there are at most {self.config.most_trials} trials"
            self._record("proposed", number=number, params=params, rung=self._first_rung(params))
            known = answer(self.earlier, params)
            if known is None:
                return self.board.trials[number]
            self._record("answered", number=number, **known.as_record())
        return None

    def _fork(self) -> TrialRow | None:
        if not (self._forking and self._proposals_left):
            return None
        number = len(self.board.trials)
        new = choose_fork(self.config, number, self.board.proposed, self.saved)
        if new is None:
            return None
        self._record(
            "proposed",
            number=number,
            params=dict(new.parent.params),
            rung=new.parent.rung,
            forks=dataclasses.asdict(new.fork),
            learning_rate_changes=new.changes,
        )
        return self.board.trials[number]

    def _confirm(self) -> TrialRow | None:
        left = self._unconfirmed()
        if not left:
            return None
        row, seed = left[0]
        self.board.confirming = len(self.board.confirmations) + len(left)
        number = len(self.board.trials)
        changes = dict(row.learning_rate_changes)
        self._record(
            "proposed",
            number=number,
            params=dict(row.params),
            rung=row.rung,
            confirms=row.number,
            seed=seed,
            **({LEARNING_RATE_CHANGES: changes} if changes else {}),
        )
        return self.board.trials[number]

    def _unconfirmed(self) -> list[tuple[TrialRow, int]]:
        """What is to be run again, and with which seeds: once all trials that were proposed have ended."""
        asked, board = self.config.confirm, self.board
        if asked is None or self._proposals_left or any(row.status in UNFINISHED for row in board.proposed):
            return []
        done = {(row.confirms, row.seed) for row in board.confirmations}
        chosen = to_confirm(board, asked)
        first = self.config.arguments["seed"] + 1
        pairs = [(row, seed) for seed in range(first, first + asked.seeds) for row in chosen]
        return [(row, seed) for row, seed in pairs if (row.number, seed) not in done]

    def _goes_on(self, number: int, step: int, value: float) -> bool:
        """The scheduler's decision; a trial that confirms another one runs to its end."""
        return self.board.trials[number].confirms is not None or self._rule.goes_on(number, step, value)

    def _first_rung(self, params: Mapping[str, Value]) -> int:
        """Where on the memory ladder a new trial starts: what smaller trials have shown is not tried again.

        The highest rung at which a trial that is not larger had to run, and gave a result or had nothing left to try.
        """
        needed = [
            row.needed_rung
            for row in self.board.trials.values()
            if row.needed_rung and at_least_as_large(params, row.params, self.config.dependents)
        ]
        return min(max(needed, default=0), height(self._settings(params)))

    def _settings(self, params: Mapping[str, Value]) -> dict[str, Any]:
        """All arguments of a trial as configured."""
        return with_defaults(self.config.dependents.complete(self.config.arguments, params))

    def _consequence(
        self, row: TrialRow, outcome: Outcome, reason: str | None, missing: Sequence[str]
    ) -> tuple[Status, int, str | None]:
        """What an attempt's end makes of its trial: status, rung of the next attempt, reason.

        ``missing`` are objectives that a trial which has completed has no value of.
        """
        if row.status == Status.PRUNED:
            return Status.PRUNED, row.rung, row.reason
        match outcome:
            case Outcome.COMPLETED:
                if row.evaluated >= self.board.full_length:
                    if missing:
                        return Status.FAILED, row.rung, f"{', '.join(missing)} is missing in its records"
                    return Status.COMPLETED, row.rung, None
                end = f"it was last evaluated at step {row.evaluated} of {self.board.full_length}"
                return Status.FAILED, row.rung, f"{self.board.metric} is missing at the end: {end}"
            case Outcome.FAILED:
                return Status.FAILED, row.rung, reason
            case Outcome.INTERRUPTED:
                return Status.WAITING, row.rung, reason
            case Outcome.CRASHED:
                crashes = row.crashes + 1
                if crashes <= self.max_failures:
                    return Status.WAITING, row.rung, f"its processes died: {reason}"
                times = "once" if crashes == 1 else f"{crashes} times, the last time"
                return Status.FAILED, row.rung, f"its processes died {times}: {reason}"
            case Outcome.OUT_OF_MEMORY:
                if row.rung < height(self._settings(row.params)):
                    return Status.WAITING, row.rung + 1, f"out of memory: {reason}"
                where = "out of memory with gradient checkpointing, micro-batch 1"
                return Status.FAILED, row.rung, f"does not fit: {where}: {reason}"

    def _record_end(self, row: TrialRow, outcome: Outcome, reason: str | None) -> None:
        objectives = self._objectives(row) if outcome == Outcome.COMPLETED else {}
        missing = [name for name, value in objectives.items() if value is None]
        status, rung, words = self._consequence(row, outcome, reason, missing)
        known = {"objectives": objectives} if objectives and status == Status.COMPLETED else {}
        self._record(
            "ended", number=row.number, outcome=str(outcome), status=str(status), rung=rung, reason=words, **known
        )

    def _objectives(self, row: TrialRow) -> dict[str, float | None]:
        """The values of several objectives, from a trial's own records; None of one that they do not have."""
        if not self.config.objectives:
            return {}
        records = list(read_records(trial_folder(self._records.folder, row.number)))
        measured, history = cost_objectives(records), metric_history(records)
        found: dict[str, float | None] = {}
        for name in (each.name for each in self.config.objectives):
            if name == self.config.metric:
                found[name] = row.last
            else:
                found[name] = measured.get(name) if name in COSTS else history.get(name, {}).get(row.evaluated)
        return found

    def _has_completed(self, number: int) -> bool:
        """Whether a trial's own records say so: the search may have been killed before it heard of it."""
        events = [each for each in read_records(trial_folder(self._records.folder, number)) if each["kind"] == "event"]
        return bool(events) and events[-1]["event"] == "completed"

    def _last_sign_of_life(self, latest: float) -> float:
        """Unix time of the last record of an earlier process: the search's own, or one of a trial that ran."""
        times = [latest]
        for row in self.board.occupied:
            times += [record["time"] for record in read_records(trial_folder(self._records.folder, row.number))][-1:]
        return max(times)

    def _recorded(self) -> Iterator[Record]:
        for record in read_records(self._records.folder):
            if record["kind"] == "event":
                yield record

    def _record(self, event: str, **details: Any) -> None:
        """Write an event, then let it take effect."""
        self._records.event(event, **details)
        self._apply({"event": event, "time": time.time(), **details})

    def _apply(self, event: Record) -> None:
        """What an event changes; the same when it happens and when it is replayed."""
        at = event["time"]
        match event["event"]:
            case "started":
                self.earlier = tuple(map(Earlier.of_record, event["earlier"]))
                self.board.begin(at)
            case "resumed":
                self._interrupt(event["until"])
                self.board.begin_again(at, event["until"])
            case "proposed":
                self._check_params(event["number"], event["params"])
                self.board.add(
                    event["number"],
                    event["params"],
                    event["rung"],
                    event.get("confirms"),
                    event.get("seed"),
                    Fork(**event["forks"]) if "forks" in event else None,
                    event.get(LEARNING_RATE_CHANGES),
                )
            case "answered":
                self._apply_answer(event["number"], Earlier.of_record(event), at)
            case "attempt":
                self.board.start(event["number"], at, event["changes"])
            case "result":
                self._apply_result(event)
            case "ended":
                self._apply_end(event)
            case "closed":
                self._closed = event["reason"]
            case "concluded":
                self.board.conclude(at)
            case unknown:
                raise ValueError(f"{self._records.path} holds an event that this version does not know: {unknown}")

    def _apply_result(self, event: Record) -> None:
        row = self.board.report(event["number"], event["step"], event["value"])
        row.needed_rung = row.rung
        if not event["goes_on"]:
            row.status, row.reason = Status.PRUNED, f"stopped early at step {event['step']}"
            if self.board.population is not None:
                row.reason += f", among the worst {self.config.scheduler.quantile:.0%} there"

    def _apply_answer(self, number: int, known: Earlier, at: float) -> None:
        for step, value in sorted((known.values or {}).items()):
            self._rule.goes_on(number, step, value)
            self.board.report(number, step, value)
        self.board.finish(number, Status.COMPLETED, at).answered_by = known.run_id

    def _apply_end(self, event: Record) -> None:
        outcome, status = Outcome(event["outcome"]), Status(event["status"])
        row = self.board.finish(event["number"], status, event["time"], event["reason"])
        if outcome == Outcome.CRASHED:
            row.crashes += 1
        if outcome == Outcome.OUT_OF_MEMORY and status == Status.FAILED:
            row.needed_rung = row.rung
        row.rung = event["rung"]
        row.objectives = event.get("objectives", {})

    def _interrupt(self, at: float) -> None:
        """The process that ran the search is gone, its trials' processes with it, and what it had closed is open."""
        self._closed = None
        for row in self.board.occupied:
            running = row.status == Status.RUNNING
            self.board.finish(
                row.number,
                Status.WAITING if running else row.status,
                at,
                "the search was interrupted" if running else row.reason,
            )

    def _check_params(self, number: int, params: Mapping[str, Value]) -> None:
        refusal = self.config.space.refusal(params)
        if refusal is not None:
            raise SearchError(
                f"{self._records.path}: trial {number} is not of this search: {refusal}; "
                "resume a search with the file and options with which it began"
            )
