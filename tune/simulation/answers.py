"""What simulated searches answer after so much time, and whether one kind of search gets there sooner than another.

A search picks the completed trial with the best value of its own. That value flatters: it is the best of many, with the
luck of its seed. So the answer's score is what the picked setting came to with the other recorded seeds (with its own,
where there is no other).
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tune.simulation.curve_file import Curve, Curves
from tune.simulation.simulation import Simulated
from tune.study.ranks import spearman

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrap's."""


@dataclass(frozen=True)
class Answer:
    """A search's answer, from when it has it until the next one."""

    spent: float
    """Seconds of all lanes."""
    picked: float
    """The value by which it was picked."""
    score: float
    """What the setting came to with other seeds."""
    regret: float
    """How much better the best recorded setting is, both by the means over their seeds; never below 0."""


@dataclass(frozen=True)
class Ratio:
    """A share of the time of others, and its bootstrap interval; infinite where it does not get there in time."""

    value: float
    low: float
    high: float


def sign_of(curves: Curves) -> int:
    """What makes larger values better."""
    return 1 if curves.mode == "max" else -1


def answers(search: Simulated, curves: Curves) -> list[Answer]:
    """A search's answers, one after the other."""
    sign = sign_of(curves)
    seeds = {runs[0].setting: runs for runs in curves.settings}
    means = {setting: statistics.fmean(run.final for run in runs) for setting, runs in seeds.items()}
    best = max(sign * mean for mean in means.values())
    found: list[Answer] = []
    for completion in search.completions:
        run = search.runs[completion.number]
        if found and sign * run.final <= sign * found[-1].picked:
            continue
        score = _with_other_seeds(run, seeds[run.setting])
        found.append(Answer(completion.spent, run.final, score, best - sign * means[run.setting]))
    return found


def answer_at(found: Iterable[Answer], spent: float) -> Answer | None:
    """The answer of a search after so many seconds of all lanes; None if it had none."""
    return next((answer for answer in reversed(list(found)) if answer.spent <= spent), None)


def scores_over_time(
    searches: Sequence[Sequence[Answer]], times: NDArray[np.float64], sign: int
) -> NDArray[np.float64]:
    """The score of every search at every time, larger being better.

    Returns:
        (searches, times); minus infinity while there is no answer.
    """
    scores = np.full((len(searches), len(times)), -np.inf)
    for row, found in zip(scores, searches, strict=True):
        for answer in found:
            row[times >= answer.spent] = sign * answer.score
    return scores


def time_ratio(
    scores: NDArray[np.float64], reference: NDArray[np.float64], times: NDArray[np.float64], until: float
) -> Ratio:
    """How much of the reference's time is enough for the score that the reference has at a time.

    Score means the mean over searches. The interval is that of a bootstrap over the searches' seeds (percentiles); a
    seed's two searches are drawn together.

    Args:
        scores: (searches, times), as of ``scores_over_time``; a search's seed is its index.
        reference: the same, of the reference.
        times: seconds.
        until: the reference's time.
    """
    count = len(scores)
    draws = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    chosen = np.stack([(draws == seed).sum(axis=1) for seed in range(count)], axis=1)
    chosen = np.concatenate([np.ones((1, count)), chosen])  # the first row is all searches, once each
    target = _means(reference, chosen)[:, np.searchsorted(times, until, side="right") - 1]
    needed = _first_time(_means(scores, chosen), target, times)
    ratios = needed / _first_time(_means(reference, chosen), target, times)
    low, high = np.percentile(ratios[1:], INTERVAL, method="inverted_cdf")
    return Ratio(float(ratios[0]), float(low), float(high))


def _means(scores: NDArray[np.float64], chosen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean scores over searches that are chosen so many times each: (samples, times)."""
    none_yet = np.isneginf(scores)
    means: NDArray[np.float64] = chosen @ np.where(none_yet, 0.0, scores) / scores.shape[0]
    means[chosen @ none_yet > 0] = -np.inf
    return means


def _first_time(
    means: NDArray[np.float64], target: NDArray[np.float64], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """When each sample's mean first is at its target: (samples,)."""
    # Sums in another order differ in their last bits.
    reached = means >= (target - 1e-9 * np.abs(target))[:, None]
    return np.where(reached.any(axis=1), times[reached.argmax(axis=1)], np.inf)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of the values at a step with final ones; NaN where all values are the same."""

    step: int
    same_run: float
    """With the final values of the same runs."""
    other_seeds: float
    """With the mean final values of the same settings' other seeds; NaN if there are none."""


def correlations(curves: Curves) -> list[Correlation]:
    """Whether early values tell the final ranking: of every step, over all runs."""
    pairs = [(run, runs) for runs in curves.settings for run in runs]
    repeated = [(run, _with_other_seeds(run, runs)) for run, runs in pairs if len(runs) > 1]
    return [
        Correlation(
            step,
            spearman([run.values[step] for run, _ in pairs], [run.final for run, _ in pairs]),
            spearman([run.values[step] for run, _ in repeated], [final for _, final in repeated]),
        )
        for step in curves.steps
    ]


def _with_other_seeds(run: Curve, runs: Sequence[Curve]) -> float:
    """The mean final value of a setting's other runs; its own if there is no other."""
    return statistics.fmean([other.final for other in runs if other is not run] or [run.final])
