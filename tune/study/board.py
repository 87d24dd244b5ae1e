"""What is known about a search's trials: the one source of its decisions, its progress display and its results."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from psalm.train.learning_rates import LEARNING_RATE_CHANGES
from tune.space.dependents import Dependents
from tune.space.parameters import Value
from tune.study.objectives import Objective, pareto_front

STEP = "global_step"
"""The time axis of a search: the name under which every result carries its global training step."""


class Status(StrEnum):
    """How a trial stands; ``waiting`` is to run, for the first time or again; ``pruned`` is stopped early."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"
    FAILED = "failed"


class Outcome(StrEnum):
    """How an attempt ended.

    ``completed``: as it should, at its full length or where the search stopped it. ``crashed``: its processes died
    (killed, or their node was lost), which is not the trial's fault, up to a number of times. ``interrupted``: the
    search ended first.
    """

    COMPLETED = "completed"
    FAILED = "failed"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    INTERRUPTED = "interrupted"


UNFINISHED = (Status.WAITING, Status.RUNNING)


def trial_folder(search_folder: Path, number: int) -> Path:
    """Where a trial keeps its records, checkpoints and pictures."""
    return search_folder / "trials" / f"{number:04d}"


@dataclass(frozen=True)
class Fork:
    """Where a trial takes over from another one."""

    trial: int
    """The parent."""
    step: int
    """The global step up to which they are the same."""


@dataclass
class TrialRow:
    """One trial over all its attempts. Times are Unix times in seconds."""

    number: int
    params: Mapping[str, Value]
    rung: int = 0
    """Of the memory ladder, at which it runs or will run."""
    status: Status = Status.WAITING
    values: dict[int, float] = field(default_factory=dict)
    """Step -> the metric."""
    step: int = 0
    best: float | None = None
    reason: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Training arguments that the memory ladder changed in the last attempt."""
    attempts: int = 0
    crashes: int = 0
    needed_rung: int = 0
    """The highest rung at which it reported a result, or at which nothing was left to try."""
    since: float | None = None
    """Start of the attempt that runs; an attempt of a pruned trial runs until its processes are done with it."""
    spent: float = 0.0
    """Seconds of the attempts that have ended."""
    confirms: int | None = None
    """The trial whose setting it runs again with ``seed``; None for a trial that was proposed."""
    seed: int | None = None

    objectives: Mapping[str, float] = field(default_factory=dict)
    """Of a completed trial of a search for several: the value of each, in their order."""
    fork: Fork | None = None
    """Where it was forked from another trial; None for a trial that was not. Its values up to there are that one's."""
    learning_rate_changes: Mapping[str, float] = field(default_factory=dict)
    """Its learning rates from given steps on, see ``psalm.train.learning_rates``; empty where it has one alone."""

    answered_by: str | None = None
    """The run of an earlier search from which it has its values, without any training."""

    @property
    def setting(self) -> dict[str, Any]:
        """The arguments by which it differs from others."""
        setting: dict[str, Any] = dict(self.params)
        if self.seed is not None:
            setting["seed"] = self.seed
        if self.learning_rate_changes:
            setting[LEARNING_RATE_CHANGES] = dict(self.learning_rate_changes)
        return setting

    @property
    def evaluated(self) -> int:
        """The last step with a value; 0 if there is none."""
        return max(self.values, default=0)

    @property
    def last(self) -> float | None:
        """The value at the last step that has one."""
        return self.values[self.evaluated] if self.values else None

    @property
    def seconds(self) -> float:
        """How long its attempts have run."""
        return self.seconds_at(time.time())

    def seconds_at(self, now: float) -> float:
        """How long its attempts had run at a time."""
        return self.spent + (0.0 if self.since is None else max(now - self.since, 0.0))


@dataclass
class Board:
    """All trials of a search. A search that was resumed has several runs; only the time in them counts.

    Trials are proposed, or confirm others: the latter have no rank, and nobody stops them or learns from them.

    Args:
        name: of the search.
        metric: that is searched, with ``mode`` max or min.
        full_length: of a trial, in global steps.
        num_samples: trials planned.
        dependents: what follows the searched arguments.
    """

    name: str
    metric: str
    mode: str
    full_length: int
    num_samples: int
    dependents: Dependents = field(default_factory=Dependents)
    trials: dict[int, TrialRow] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    """Unix time at which this run of the search began."""
    ended: float | None = None
    earlier: float = 0.0
    """Seconds of the runs before."""
    baseline: int | None = None
    """The trial of the recommended setting, which others are compared to."""
    confirming: int = 0
    """Trials planned that confirm others."""
    objectives: tuple[Objective, ...] = ()
    """Of a search for several; the first is ``metric``."""
    population: int | None = None
    """Trials that are proposed before others are forked from them; None where none is forked."""
    exhausts: bool = False
    """Whether the trials planned are all that there can be, as no setting of the space is tried twice."""

    def begin(self, at: float) -> None:
        """A run of the search begins."""
        self.started, self.ended = at, None

    def conclude(self, at: float) -> None:
        """The run of the search has ended."""
        self.ended = at

    def begin_again(self, at: float, until: float) -> None:
        """The search is resumed; the run before is known to have lasted ``until`` then, if it did not say."""
        self.earlier += (until if self.ended is None else self.ended) - self.started
        self.begin(at)

    def add(
        self,
        number: int,
        params: Mapping[str, Value],
        rung: int = 0,
        confirms: int | None = None,
        seed: int | None = None,
        fork: Fork | None = None,
        learning_rate_changes: Mapping[str, float] | None = None,
    ) -> TrialRow:
        """A trial was proposed, or is to confirm another one with a new seed, or is forked from another one."""
        row = TrialRow(number, params, rung, confirms=confirms, seed=seed, fork=fork)
        row.learning_rate_changes = dict(learning_rate_changes or {})
        self.trials[number] = row
        if fork is not None:
            for step, value in self.trials[fork.trial].values.items():
                if step <= fork.step:
                    self.report(number, step, value)
        return row

    def start(self, number: int, at: float, changes: Mapping[str, Any] | None = None) -> TrialRow:
        """An attempt of a trial begins."""
        row = self.trials[number]
        row.status, row.reason, row.since, row.changes = Status.RUNNING, None, at, dict(changes or {})
        row.attempts += 1
        return row

    def advance(self, number: int, step: int) -> None:
        """A trial has trained up to a step."""
        row = self.trials[number]
        row.step = max(row.step, step)

    def report(self, number: int, step: int, value: float) -> TrialRow:
        """A trial was evaluated at a step."""
        row = self.trials[number]
        self.advance(number, step)
        row.values[step] = value
        row.best = value if row.best is None or self.better(value, row.best) else row.best
        return row

    def finish(self, number: int, status: Status, at: float, reason: str | None = None) -> TrialRow:
        """An attempt has ended, and the trial with it unless it is waiting now."""
        row = self.trials[number]
        row.spent, row.since = row.seconds_at(at), None
        row.status, row.reason = status, reason
        return row

    def of(self, *statuses: Status) -> list[TrialRow]:
        """The trials of some statuses, by number."""
        return [row for row in self.trials.values() if row.status in statuses]

    @property
    def proposed(self) -> list[TrialRow]:
        """The trials that were proposed, by number."""
        return [row for row in self.trials.values() if row.confirms is None]

    @property
    def to_propose(self) -> int:
        """How many trials are to be proposed yet; none is forked when no trial is left to be its parent."""
        left = max(self.num_samples - len(self.proposed), 0)
        ended = not any(row.status in UNFINISHED for row in self.proposed)
        return 0 if ended and self.population is not None and len(self.proposed) >= self.population else left

    @property
    def sampled(self) -> list[TrialRow]:
        """The trials that are proposals of the sampler or baselines, by number: those that are no forks of others."""
        return [row for row in self.proposed if row.fork is None]

    @property
    def confirmations(self) -> list[TrialRow]:
        """The trials that confirm others, by number."""
        return [row for row in self.trials.values() if row.confirms is not None]

    @property
    def occupied(self) -> list[TrialRow]:
        """The trials whose processes are at work, by number."""
        return [row for row in self.trials.values() if row.since is not None]

    def better(self, value: float, than: float) -> bool:
        """Whether a value of the metric is better than another."""
        return value > than if self.mode == "max" else value < than

    def ranking(self) -> list[TrialRow]:
        """Best first by the last value: completed trials, then those stopped early or unfinished, then the rest.

        Only trials of full length compete: the score of a short run is no answer.
        """
        classes = {Status.COMPLETED: 0, Status.FAILED: 2}
        sign = -1 if self.mode == "max" else 1

        def key(row: TrialRow) -> tuple[int, float, int]:
            return classes.get(row.status, 1), math.inf if row.last is None else sign * row.last, row.number

        return sorted(self.proposed, key=key)

    @property
    def best(self) -> TrialRow | None:
        """The best of the completed trials."""
        first = next(iter(self.ranking()), None)
        return first if first and first.status == Status.COMPLETED else None

    @property
    def front(self) -> list[TrialRow]:
        """The completed trials that no other one beats in all objectives, best first in the first of them.

        None where the search is not for several.
        """
        rows = [row for row in self.proposed if row.objectives]
        modes = [each.mode for each in self.objectives]
        return [rows[index] for index in pareto_front([list(row.objectives.values()) for row in rows], modes)]

    @property
    def fraction(self) -> float:
        """How much of the search is done: a finished trial counts whole, an unfinished one by its steps."""
        done = sum(
            min(row.step / self.full_length, 1.0) if row.status in UNFINISHED else 1.0 for row in self.trials.values()
        )
        return done / max(len(self.proposed) + self.to_propose + self.confirming, len(self.trials))

    @property
    def elapsed(self) -> float:
        """Seconds that the search has run, over all its runs."""
        return self.earlier + (time.time() if self.ended is None else self.ended) - self.started
