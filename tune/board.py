"""What is known about a search's trials while it runs: the one source of its progress display and its results."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tune.dependents import Dependents
from tune.parameters import Value


class Status(StrEnum):
    """How a trial stands; ``pruned`` is stopped early."""

    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"
    FAILED = "failed"
    KILLED = "killed"


@dataclass
class TrialRow:
    """One trial."""

    number: int
    params: Mapping[str, Value]
    started: float  # time.monotonic()
    status: Status = Status.RUNNING
    step: int = 0
    last: float | None = None
    best: float | None = None
    ended: float | None = None
    reason: str | None = None

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (time.monotonic() if self.ended is None else self.ended) - self.started


@dataclass
class Board:
    """All trials of a search.

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
    started: float = field(default_factory=time.monotonic)

    def start(self, number: int, params: Mapping[str, Value]) -> TrialRow:
        """A trial begins."""
        self.trials[number] = TrialRow(number, params, time.monotonic())
        return self.trials[number]

    def advance(self, number: int, step: int) -> None:
        """A trial has trained up to a step."""
        row = self.trials[number]
        row.step = max(row.step, step)

    def report(self, number: int, step: int, value: float) -> TrialRow:
        """A trial was evaluated at a step."""
        row = self.trials[number]
        self.advance(number, step)
        row.last = value
        row.best = value if row.best is None or self.better(value, row.best) else row.best
        return row

    def finish(self, number: int, status: Status, reason: str | None = None) -> TrialRow:
        """A trial has ended."""
        row = self.trials[number]
        row.status, row.reason, row.ended = status, reason, time.monotonic()
        return row

    def kill_running(self, reason: str) -> list[TrialRow]:
        """Nothing runs any more."""
        return [self.finish(row.number, Status.KILLED, reason) for row in self.of(Status.RUNNING)]

    def of(self, status: Status) -> list[TrialRow]:
        """The trials of a status, by number."""
        return [row for row in self.trials.values() if row.status == status]

    def better(self, value: float, than: float) -> bool:
        """Whether a value of the metric is better than another."""
        return value > than if self.mode == "max" else value < than

    def ranking(self) -> list[TrialRow]:
        """Best first by the last value: completed trials, then those stopped early or still running, then the rest.

        Only trials of full length compete: the score of a short run is no answer.
        """
        classes = {Status.COMPLETED: 0, Status.RUNNING: 1, Status.PRUNED: 1}
        sign = -1 if self.mode == "max" else 1

        def key(row: TrialRow) -> tuple[int, float, int]:
            return classes.get(row.status, 2), math.inf if row.last is None else sign * row.last, row.number

        return sorted(self.trials.values(), key=key)

    @property
    def best(self) -> TrialRow | None:
        """The best of the completed trials."""
        first = next(iter(self.ranking()), None)
        return first if first and first.status == Status.COMPLETED else None

    @property
    def fraction(self) -> float:
        """How much of the search is done: an ended trial counts whole, a running one by its steps."""
        done = sum(
            min(row.step / self.full_length, 1.0) if row.status == Status.RUNNING else 1.0
            for row in self.trials.values()
        )
        return done / self.num_samples

    @property
    def elapsed(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self.started
