"""Searches to be compared, and what is computed from them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from psalm.train.tasks import direction
from tune.costs import PEAK_MEMORY, STEP_SECONDS
from tune.study.board import Board, Status, TrialRow
from tune.trials.resources import TrialResources

HOUR = 3600.0
SIZES = ("parameters", "trainable_parameters")
"""Tags of a run that are numbers to compare."""
MACHINE = "system/"
COST_MEASURES = (STEP_SECONDS, "parameters", PEAK_MEMORY)
"""What the metric is weighed against."""
Figures = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Task -> class -> metric -> percent."""


@dataclass(frozen=True)
class Trial:
    """One trial: its row on the board, and what MLflow has besides. Times are Unix times in seconds."""

    row: TrialRow
    run_id: str
    name: str
    started: float
    ended: float
    """Of one that runs: when it was read."""
    measures: Mapping[str, float]
    """The last value of every metric, the median of the seconds per step, and the model's ``SIZES``."""

    @property
    def number(self) -> int:
        """In its search."""
        return self.row.number

    def spent_until(self, at: float) -> float:
        """Seconds that it had run at a time; those of a trial that ran in several parts are spread evenly."""
        if at >= self.ended:
            return self.row.seconds
        if at <= self.started:
            return 0.0
        return self.row.seconds * (at - self.started) / (self.ended - self.started)


@dataclass(frozen=True)
class Search:
    """One search: a parent run and its children."""

    name: str
    """Of the experiment."""
    run_id: str
    experiment_id: str
    server: str | None
    """Address of MLflow's pages; None where the store is no server."""
    status: str
    started: float
    board: Board
    trials: Mapping[int, Trial]
    """Proposed and confirming ones, by number."""
    space: Mapping[str, str]
    """What was searched, in words."""
    resources: TrialResources
    seconds: Mapping[str, float]
    """Where the time went, see ``tune.costs``; empty until the search has ended."""
    per_class: Mapping[int, Figures] = field(default_factory=dict)
    """Of the best trial and the baseline."""
    predictions: Mapping[int, Mapping[str, bytes]] = field(default_factory=dict)
    """Of the best trial and the baseline: file name -> PNG."""

    @cached_property
    def best(self) -> Trial | None:
        """The best of the completed trials."""
        row = self.board.best
        return None if row is None else self.trials[row.number]

    @property
    def baseline(self) -> Trial | None:
        """The trial of the recommended setting, however it ended."""
        return None if self.board.baseline is None else self.trials.get(self.board.baseline)

    @property
    def ranking(self) -> list[Trial]:
        """As ``Board.ranking``."""
        return [self.trials[row.number] for row in self.board.ranking()]

    @cached_property
    def front(self) -> list[Trial]:
        """As ``Board.front``; of a search that has ended, or was ended before it was resumed."""
        return [self.trials[row.number] for row in self.board.front]

    @property
    def proposed(self) -> list[Trial]:
        """Without those that confirm others, by number."""
        return [self.trials[row.number] for row in self.board.proposed]

    @property
    def device(self) -> str:
        """What a trial is charged for."""
        return "GPU" if self.resources.gpus_per_worker else "CPU"

    @property
    def devices(self) -> float:
        """How many of them each trial holds: its GPUs, or its CPUs if it has none."""
        each = self.resources.gpus_per_worker or self.resources.cpus_per_worker
        return self.resources.workers_per_trial * each

    def device_hours(self, trials: Iterable[Trial]) -> float:
        """What trials have cost in all."""
        return sum(trial.row.seconds for trial in trials) * self.devices / HOUR

    def address(self, run_id: str) -> str | None:
        """Of a run's page."""
        return None if self.server is None else f"{self.server}/#/experiments/{self.experiment_id}/runs/{run_id}"


def best_so_far(search: Search) -> list[tuple[float, float, Trial]]:
    """(device-hours spent, best value, trial) at the end of every completed trial, in that order.

    All trials that have run until then are paid for, also those that were stopped or have failed; runs that confirm
    others are not.
    """
    found: list[tuple[float, float, Trial]] = []
    best: float | None = None
    completed = (trial for trial in search.proposed if trial.row.status == Status.COMPLETED)
    for trial in sorted(completed, key=lambda trial: (trial.ended, trial.number)):
        value = trial.row.last
        if value is None:
            continue
        best = value if best is None or search.board.better(value, best) else best
        spent = sum(each.spent_until(trial.ended) for each in search.proposed)
        found.append((spent * search.devices / HOUR, best, trial))
    return found


def better_when(measure: str) -> str:
    """``max`` or ``min``: which way a measure of a trial is better."""
    if measure.startswith(MACHINE) or measure in SIZES or "loss" in measure:
        return "min"
    return direction(measure)


def counts(search: Search) -> dict[Status, int]:
    """How many of the proposed trials have each status; only those that occur."""
    statuses = [trial.row.status for trial in search.proposed]
    return {status: statuses.count(status) for status in Status if status in statuses}
