"""Which hyperparameters matter: fANOVA over a search's trials, as far as their values can be compared.

Only trials of full length have final values, and they are those that looked good: where a bad value of a parameter had
its trials stopped, full length no longer shows that it matters. So the trials are also compared at the last step that
all of them have reached.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from tune.report.comparison import Search
from tune.space.parameters import Value
from tune.study.board import Status, TrialRow

FEWEST = 6
"""Trials below which nothing is computed."""
FEW = 48
"""Trials below which shares are a hint: those of a known function of five parameters, from random settings, were off by
0.28 with 12 trials, 0.17 with 24, 0.09 with 48 (the largest error, mean of 20 draws)."""


@dataclass(frozen=True)
class Importance:
    """Shares of the variance of a search's metric, over trials at one step."""

    step: int
    trials: int
    shares: Mapping[str, float]
    """Parameter -> share, most important first; they add up to 1."""
    final: bool
    """Whether it is that of the completed trials at their end."""

    @property
    def few(self) -> bool:
        """Whether the trials are too few to trust it."""
        return self.trials < FEW


def importances(search: Search) -> list[Importance]:
    """At the last step that all trials have reached, and at the end of the completed ones; as far as there are enough.

    Failed trials and forks of others are left out, as are parameters that are not in every trial, or have one value.
    """
    rows = [row for row in search.board.sampled if row.values and row.status != Status.FAILED]
    completed = [row for row in rows if row.status == Status.COMPLETED]
    found = []
    shared = set.intersection(*(set(row.values) for row in rows)) if rows else set()
    if shared and len(completed) < len(rows):
        step = max(shared)
        found.append(_importance(rows, [row.values[step] for row in rows], step, final=False))
    if completed:
        step = max(row.evaluated for row in completed)
        found.append(_importance(completed, [row.values[row.evaluated] for row in completed], step, final=True))
    return [each for each in found if each is not None]


def _importance(rows: Sequence[TrialRow], values: Sequence[float], step: int, final: bool) -> Importance | None:
    if len(rows) < FEWEST or len(set(values)) < 2:
        return None
    shares = fanova([row.params for row in rows], values)
    return Importance(step, len(rows), shares, final) if shares else None


def fanova(settings: Sequence[Mapping[str, Value]], values: Sequence[float]) -> dict[str, float]:
    """Share of the variance that each parameter alone explains (Hutter et al., ICML 2014), by Optuna.

    Args:
        settings: of each trial.
        values: of each trial.

    Returns:
        Most important first, adding up to 1; without parameters that have one value or are not in all settings.
    """
    columns = {name: [setting[name] for setting in settings if name in setting] for name in settings[0]}
    coded = {
        name: _coded(column)
        for name, column in columns.items()
        if len(column) == len(settings) and len(set(column)) > 1
    }
    distributions: dict[str, BaseDistribution] = {name: distribution for name, (_, distribution) in coded.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    study.add_trials(
        optuna.create_trial(
            params={name: numbers[index] for name, (numbers, _) in coded.items()},
            distributions=distributions,
            value=value,
        )
        for index, value in enumerate(values)
    )
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), params=list(coded))
    return {name: float(share) for name, share in shares.items()}


def _coded(values: Sequence[Value]) -> tuple[list[float], FloatDistribution]:
    """Values as numbers, and what they were drawn from: fractions from a range, others from a list.

    Those of a list are numbered, each in the middle of a unit, so that all weigh the same. (Optuna would make a
    dimension of each, and weigh combinations that do not exist.)
    """
    if all(isinstance(value, float) for value in values):
        numbers = [float(value) for value in values]
        return numbers, FloatDistribution(min(numbers), max(numbers), log=spans_decades(numbers))
    known = sorted(set(values), key=lambda value: (str(type(value)), value))
    return [known.index(value) for value in values], FloatDistribution(-0.5, len(known) - 0.5)


def spans_decades(numbers: Sequence[float]) -> bool:
    """Whether numbers are better seen on a logarithmic scale: all above 0, and ten times apart."""
    return min(numbers) > 0 and max(numbers) >= 10 * min(numbers)
