"""Simulated searches compared: tables, and a picture of the best so far over device-hours."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tune.progress import clock
from tune.simulation.answers import Answer, answer_at, correlations, scores_over_time, sign_of, time_ratio
from tune.simulation.curve_file import Curves
from tune.simulation.ways import Comparison, Way

HOUR = 3600.0
POINTS = 1000
"""Of time at which searches are compared."""
NOTHING = "-"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The answers after each budget, and the time to the reference's."""
    curves, count = comparison.curves, len(next(iter(comparison.searches.values())))
    console.print(
        f"{len(curves.runs)} recorded runs of {len(curves.settings)} settings; {count} searches in each way.\n"
        f"After so many device-hours: {curves.metric} of the setting picked, with other seeds than the one picked by. "
        "At the last: by what it was picked, and how far its mean is from the best. Mean±standard deviation",
        highlight=False,
    )
    table = _table("trials", "stopped", "time", *_hours(comparison))
    for heading in ("picked by", "regret"):
        table.add_column(heading, justify="right", no_wrap=True)
    for way, found in comparison.searches.items():
        at = [[answer_at(each.answers, budget) for each in found] for budget in comparison.budgets]
        table.add_row(
            *way.words,
            f"{statistics.fmean(each.trials for each in found):.1f}",
            f"{statistics.fmean(each.stopped for each in found):.1f}",
            clock(statistics.fmean(each.seconds for each in found)),
            *(_spread(of_budget, lambda answer: answer.score) for of_budget in at),
            _spread(at[-1], lambda answer: answer.picked),
            _spread(at[-1], lambda answer: answer.regret),
        )
    console.print(table)
    _print_ratios(comparison, console)


def _print_ratios(comparison: Comparison, console: Console) -> None:
    sampler, scheduler, _ = next(iter(comparison.reference.values())).words
    console.print(
        f"Device-hours to the score that {sampler}/{scheduler} has after each budget, as a share of its own "
        "(95 % interval of a bootstrap over seeds)",
        highlight=False,
    )
    table = _table(*_hours(comparison))
    times = _times(comparison)
    for lanes, reference in comparison.reference.items():
        of_reference = _scores(comparison, reference, times)
        for way in comparison.of_lanes[lanes]:
            ratios = [
                time_ratio(_scores(comparison, way, times), of_reference, times, budget)
                for budget in comparison.budgets
            ]
            cells = (f"{_ratio(each.value)} ({_ratio(each.low)} to {_ratio(each.high)})" for each in ratios)
            table.add_row(*way.words, *cells)
    console.print(table)


def print_correlations(curves: Curves, console: Console) -> None:
    """Whether early stopping could be trusted."""
    console.print("Spearman's rank correlation of a step's values with the final ones", highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("step", "same run", "other seeds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in correlations(curves):
        table.add_row(str(each.step), _number(each.same_run), _number(each.other_seeds))
    console.print(table)


def draw(comparison: Comparison, path: Path) -> None:
    """Best so far over device-hours: the mean over searches with its 95 % interval; lanes side by side."""
    panels = comparison.of_lanes
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels) + 2, 5), sharey=True, squeeze=False, layout="constrained"
    )
    times, sign = _times(comparison), sign_of(comparison.curves)
    for axis, (lanes, ways) in zip(axes.flat, panels.items(), strict=True):
        for way in ways:
            scores = _scores(comparison, way, times)
            known = np.isfinite(scores).all(axis=0)
            mean = sign * scores[:, known].mean(axis=0)
            error = 1.96 * scores[:, known].std(axis=0) / math.sqrt(len(scores))
            hours = times[known] / HOUR
            sampler, scheduler, _ = way.words
            (line,) = axis.plot(hours, mean, label=f"{sampler}, {scheduler}")
            axis.fill_between(hours, mean - error, mean + error, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set(title=f"{lanes} at a time", xlabel="device-hours")
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right" if sign > 0 else "upper right")
    axes.flat[0].set_ylabel(
        f"{comparison.curves.metric} of the best so far, with other seeds:\nmean with its 95 % interval"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _hours(comparison: Comparison) -> list[str]:
    return [f"{budget / HOUR:.3g} h" for budget in comparison.budgets]


def _times(comparison: Comparison) -> NDArray[np.float64]:
    return np.linspace(0.0, comparison.budgets[-1], POINTS)


def _scores(comparison: Comparison, way: Way, times: NDArray[np.float64]) -> NDArray[np.float64]:
    found = [each.answers for each in comparison.searches[way]]
    return scores_over_time(found, times, sign_of(comparison.curves))


def _table(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("sampler", "scheduler"):
        table.add_column(heading, no_wrap=True)
    for heading in ("lanes", *headings):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _spread(of_searches: Sequence[Answer | None], value: Callable[[Answer], float]) -> str:
    """Mean and standard deviation over searches; nothing unless all have an answer."""
    known = [value(answer) for answer in of_searches if answer is not None]
    if len(known) < len(of_searches):
        return NOTHING
    return f"{statistics.fmean(known):.2f}±{statistics.pstdev(known):.2f}"


def _ratio(value: float) -> str:
    return "never" if math.isinf(value) else _number(value)


def _number(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.2f}"
