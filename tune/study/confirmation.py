"""Is a setting better than the baseline, or was it lucky? The same settings again, with new seeds.

A search picks its best trial because of its value, so that value flatters: part of it is luck. The runs here are made
after the choice, with seeds that had no part in it, the same seeds for every setting.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from tune.config import Confirm
from tune.study.board import Board, Status, TrialRow

LEVEL = 0.05
"""Chance of calling any of the settings different from the baseline when none is."""
TEST = "Welch's t-test, two-sided, Holm's correction"


def to_confirm(board: Board, asked: Confirm) -> list[TrialRow]:
    """The trials of a search that are run again: the baseline, then the best."""
    completed = [row for row in board.ranking() if row.status == Status.COMPLETED]
    baseline = [row for row in completed if row.number == board.baseline]
    return baseline + [row for row in completed[: asked.best] if row not in baseline]


@dataclass(frozen=True)
class Sample:
    """One setting's values over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Their standard deviation (n - 1); None for one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def samples_of(board: Board) -> dict[int, Sample]:
    """The final values of the runs that confirm each trial, best mean first; only runs that completed count."""
    values: dict[int, list[float]] = {}
    for row in board.confirmations:
        if row.confirms is not None and row.status == Status.COMPLETED:
            values.setdefault(row.confirms, []).append(row.values[row.evaluated])
    samples = {number: Sample(tuple(each)) for number, each in values.items()}
    return dict(sorted(samples.items(), key=lambda item: item[1].mean, reverse=board.mode == "max"))


@dataclass(frozen=True)
class Difference:
    """A setting's mean less the baseline's."""

    value: float
    low: float | None
    high: float | None
    """Ends of the interval that holds the true difference with a confidence of 95 %, taken for itself."""
    p: float | None
    """Of no difference, corrected for the number of settings compared; None where there are too few values."""

    @property
    def certain(self) -> bool:
        """Whether it is more than noise."""
        return self.p is not None and self.p < LEVEL

    @property
    def words(self) -> str:
        """The verdict."""
        if self.p is None:
            return "cannot be tested: too few seeds, or no spread"
        return "different" if self.certain else "may be chance"


def compare_to(baseline: Sample, others: Mapping[int, Sample]) -> dict[int, Difference]:
    """Every setting's difference to the baseline, by Welch's t-test (B. L. Welch, Biometrika 34, 1947).

    Variances need not be equal. The p values are corrected by S. Holm's step-down method (Scandinavian Journal of
    Statistics 6, 1979), since several settings have several chances to look good. A setting with fewer than two values,
    or two that have no spread at all, cannot be tested.
    """
    found: dict[int, Difference] = {}
    for number, sample in others.items():
        difference = sample.mean - baseline.mean
        if (not baseline.deviation and not sample.deviation) or None in (baseline.deviation, sample.deviation):
            found[number] = Difference(difference, None, None, None)
            continue
        test = stats.ttest_ind(sample.values, baseline.values, equal_var=False)
        low, high = test.confidence_interval(0.95)
        found[number] = Difference(difference, float(low), float(high), float(test.pvalue))
    tested = {number: each.p for number, each in found.items() if each.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {
        number: Difference(each.value, each.low, each.high, corrected.get(number)) for number, each in found.items()
    }


def differences_of(board: Board) -> dict[int, Difference]:
    """Every setting that was run again, against the baseline; none if that was not."""
    samples = samples_of(board)
    if board.baseline is None or board.baseline not in samples:
        return {}
    baseline = samples.pop(board.baseline)
    return compare_to(baseline, samples)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected by Holm's method, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
