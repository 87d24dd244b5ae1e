"""Population based training of the learning rate: who is stopped, and which trial a new one is forked from.

Jaderberg et al. 2017, arXiv 1711.09846: the worst of a population are replaced by copies of the best, which train on
from there with a hyperparameter that was perturbed. Here a copy is a trial of its own: its learning rate is its
parent's up to the step at which it was forked (``learning_rate_changes``), and another one afterwards. So every trial
is one run, which can be trained again from its beginning; that it starts with its parent's checkpoint saves time alone.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from psalm.train.learning_rates import RateChanges
from tune.config import SchedulerConfig, SearchConfig
from tune.study.board import Fork, Status, TrialRow

FACTORS = (0.8, 1.25)
"""What a fork's learning rate is multiplied by: one of them. The paper has 0.8 and 1.2; these two undo each other."""


class StopLowest:
    """After the grace period, a trial is stopped where its value is in the lowest quantile.

    It is ranked among all trials that were evaluated at a step: the last of its own for which there are so many that
    the quantile is one of them, or that are the whole population. So the fastest, which is the first everywhere, is
    ranked a little later. It is stopped if, with itself, at most the quantile, and at least one, are not better: where
    many are equal, as at the start of a training, nobody is.
    """

    def __init__(self, config: SchedulerConfig, mode: str, full_length: int) -> None:
        self.config = config
        self.full_length = full_length
        self._sign = 1 if mode == "max" else -1
        self._values: defaultdict[int, dict[int, float]] = defaultdict(dict)

    def goes_on(self, number: int, step: int, value: float) -> bool:
        """Whether a trial is above the lowest quantile of those that have come as far."""
        if self.config.grace_period <= step < self.full_length and step % self.config.interval == 0:
            self._values[step][number] = self._sign * value
            fewest = max(2, min(self.config.population, round(1 / self.config.quantile)))
            ranked = (of for _, of in sorted(self._values.items(), reverse=True) if number in of and len(of) >= fewest)
            values = next(ranked, None)
            if values is not None:
                not_better = sum(other <= values[number] for other in values.values())
                return not_better > _share(self.config.quantile, len(values))
        return True


@dataclass(frozen=True)
class NewFork:
    """A trial to be forked from another one."""

    parent: TrialRow
    fork: Fork
    changes: RateChanges
    """Its learning rates from given steps on."""


def choose_fork(
    config: SearchConfig, number: int, rows: Iterable[TrialRow], saved: Callable[[int, int], bool]
) -> NewFork | None:
    """The fork that is trial ``number``: of one of the best that run, with a learning rate that none has had.

    A trial that runs can be a parent at the last step at which it was evaluated, not before the grace period, and has a
    checkpoint. How good it is, is told by the share of those evaluated at that step that are better; of two equally
    good ones the one that has come further is better. One of the top quantile, at least of one trial, is drawn by the
    search's seed and the number, and its factor with it.

    Args:
        config: the search.
        number: of the new trial.
        rows: the trials that were proposed.
        saved: whether a trial has a checkpoint of a step.

    Returns:
        None while there is no trial to fork from.
    """
    rows = list(rows)
    candidates = []
    for row in [row for row in rows if row.status == Status.RUNNING]:
        steps = [step for step in _own_values(row) if config.scheduler.grace_period <= step < config.max_steps]
        step = next((step for step in sorted(steps, reverse=True) if saved(row.number, step)), None)
        if step is not None:
            candidates.append((_share_of_better(row, step, rows, config.mode), step, row))
    candidates.sort(key=lambda each: (each[0], -each[1], each[2].number))
    had = [(dict(row.params), dict(row.learning_rate_changes)) for row in rows]
    forks = []
    for _, step, row in candidates[: _share(config.scheduler.quantile, len(candidates))]:
        peak = list(row.learning_rate_changes.values() or [float(row.params["learning_rate"])])[-1]
        for factor in FACTORS:
            changes = {**row.learning_rate_changes, str(step): peak * factor}
            if (dict(row.params), changes) not in had:
                forks.append(NewFork(row, Fork(row.number, step), changes))
    return forks[np.random.default_rng((config.seed, number)).integers(len(forks))] if forks else None


def _share(quantile: float, count: int) -> int:
    """How many of ``count`` are in a quantile; at least one."""
    return max(1, int(quantile * count))


def _share_of_better(row: TrialRow, step: int, rows: Iterable[TrialRow], mode: str) -> float:
    sign = 1 if mode == "max" else -1
    values = [sign * own[step] for other in rows if step in (own := _own_values(other))]
    return sum(value > sign * row.values[step] for value in values) / len(values)


def _own_values(row: TrialRow) -> Mapping[int, float]:
    """Those that a trial has not taken over from its parent, which would count twice."""
    begin = 0 if row.fork is None else row.fork.step
    return {step: value for step, value in row.values.items() if step > begin}
