"""The pictures of a comparison: one drawing, shown as SVG in the page and saved as PNG.

What belongs to a trial is marked as such in the SVG, so that the page can name it and find it in all pictures. Colours
mean the same everywhere: the best trial, the baseline, trials of full length, those stopped early, failed ones.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tune.report.comparison import Search, best_so_far, better_when
from tune.report.importance import Importance
from tune.report.marks import (
    BASELINE,
    BEST,
    FAILED,
    INK,
    SEARCHES,
    STOPPED,
    WHOLE,
    color_of,
    draw_order,
    final_value,
    label_of,
    legend_of,
    objective_label,
    objective_value,
    scaled,
    size_of,
    symbol_of,
    trial_mark,
)
from tune.report.scales import Scale
from tune.study.board import Status
from tune.study.objectives import pareto_front

WIDTH = 12.0
"""Of a picture over the whole page, in inches."""
MOST_COLUMNS = 5
"""Of panels."""
MANY_CLASSES = 40
"""Of more only those that differ most are drawn."""
BELOW, AT_BOTTOM = -0.14, 0.04
"""Where trials without a final value are: below the axis of the metric, and as a fraction of a panel's height."""
TIMES = {
    "training": "#4a78b5",
    "evaluation": "#2a9d8f",
    "checkpointing": "#b5954a",
    "startup": "#a37fb5",
    "waiting": "#cfd6dd",
}
"""What the time of a search went into, with colours; the names are those of ``tune.results.TIMES``."""


def draw_best_so_far(searches: Mapping[int, Search]) -> Figure:
    """The best value over the device-hours spent; every completed trial is a point.

    Args:
        searches: of one metric, by their places in the page.
    """
    figure = Figure(figsize=(WIDTH, 4.6))
    axes = figure.subplots()
    alone = len(searches) == 1
    for place, search in searches.items():
        color = SEARCHES[place % len(SEARCHES)]
        found = best_so_far(search)
        total = search.device_hours(search.proposed)
        if not found:
            continue
        axes.step(
            [hours for hours, _, _ in found] + [total],
            [best for _, best, _ in found] + [found[-1][1]],
            where="post",
            color=color,
            linewidth=2.2,
            label=search.board.name,
        )
        for hours, _, trial in found:
            axes.plot(
                hours,
                trial.row.values[trial.row.evaluated],
                symbol_of(search, trial) if alone else "o",
                color=color_of(search, trial) if alone else color,
                markersize=size_of(search, trial) if alone else 6,
                markeredgecolor="white",
                zorder=draw_order(search, trial),
                gid=trial_mark(place, trial),
            )
        if search.baseline is not None and (value := final_value(search.baseline)) is not None:
            shade = BASELINE if alone else color
            axes.axhline(value, color=shade, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
            if alone:
                axes.annotate(
                    "baseline",
                    (0.004, value),
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 3),
                    textcoords="offset points",
                    color=BASELINE,
                    fontsize=9,
                )
    devices = {search.device for search in searches.values()}
    axes.set(xlabel=f"{devices.pop() if len(devices) == 1 else 'device'}-hours spent on trials", xlim=(0, None))
    axes.set_ylabel(label_of(next(iter(searches.values())).board.metric))
    if not alone:
        handles, _ = axes.get_legend_handles_labels()
        baselines = Line2D([], [], color=INK, linewidth=1.2, linestyle=(0, (5, 3)), label="their baselines")
        axes.legend(handles=[*handles, baselines], loc="best")
    return figure


def draw_curves(place: int, search: Search) -> Figure:
    """The metric of every trial over steps; a cross ends those that were stopped early or have failed."""
    figure = Figure(figsize=(WIDTH, 4.8))
    axes = figure.subplots()
    for trial in search.proposed:
        points = sorted(trial.row.values.items())
        if not points:
            continue
        color, whole = color_of(search, trial), trial.row.status == Status.COMPLETED
        named = trial in (search.best, search.baseline)
        axes.plot(
            [step for step, _ in points],
            [value for _, value in points],
            color=color,
            linewidth=2.4 if named else 1.2,
            marker=".",
            markersize=5,
            zorder=draw_order(search, trial),
            gid=trial_mark(place, trial),
        )
        if not whole:
            axes.plot(*points[-1], "x", color=FAILED if trial.row.status == Status.FAILED else color, markersize=7)
    axes.set(xlabel="global step", ylabel=label_of(search.board.metric), xlim=(0, search.board.full_length * 1.02))
    axes.legend(handles=legend_of(search, "curves"), loc="lower right" if search.board.mode == "max" else "upper right")
    return figure


def draw_parallel(place: int, search: Search) -> Figure:
    """A line per trial through the values of its parameters to its metric; below it, where it has no final one."""
    names, trials = list(search.space), search.proposed
    scales = [Scale.of([trial.row.params.get(name) for trial in trials]) for name in names]
    metric = Scale.of([final_value(trial) for trial in trials], logarithmic=False)
    figure = Figure(figsize=(WIDTH, 5.0))
    axes = figure.subplots()
    axes.grid(visible=False)
    for trial in trials:
        heights = [scale.place(trial.row.params.get(name)) for name, scale in zip(names, scales, strict=True)]
        value, named = final_value(trial), trial in (search.best, search.baseline)
        axes.plot(
            range(len(names) + 1),
            [*heights, BELOW if value is None else metric.place(value)],
            color=color_of(search, trial),
            linewidth=2.6 if named else 1.3,
            linestyle=(0, (4, 2)) if value is None else "-",
            alpha=1 if named else 0.8,
            zorder=draw_order(search, trial),
            gid=trial_mark(place, trial),
        )
    for position, scale in enumerate([*scales, metric]):
        last = position == len(names)
        axes.axvline(position, color="#8c96a1", linewidth=1, zorder=1)
        for text, height in scale.ticks:
            axes.annotate(
                text,
                (position, height),
                xytext=(6 if last else -6, 0),
                textcoords="offset points",
                ha="left" if last else "right",
                va="center",
                fontsize=9,
                zorder=10,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
            )
    axes.set_xticks(range(len(names) + 1), [*names, label_of(search.board.metric)])
    axes.tick_params(axis="x", length=0, pad=8)
    axes.set(yticks=[], xlim=(-0.35, len(names) + 0.25), ylim=(BELOW - 0.04, 1.06))
    for spine in axes.spines.values():
        spine.set_visible(False)
    handles = legend_of(search, "lines")
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles))
    return figure


def draw_importance(found: Sequence[Importance]) -> Figure:
    """Shares of the variance, a bar per parameter and set of trials; the order is that of the last set."""
    names = list(found[-1].shares)
    names += [name for each in found for name in each.shares if name not in names]
    names = list(dict.fromkeys(names))
    figure = Figure(figsize=(WIDTH * 0.75, 1.3 + 0.24 * (len(found) + 1) * len(names)))
    axes = figure.subplots()
    height = 0.8 / len(found)
    for index, each in enumerate(found):
        heights = [row + (index - (len(found) - 1) / 2) * height for row in range(len(names))]
        shares = [100 * each.shares.get(name, 0.0) for name in names]
        which = "completed trials at their end" if each.final else f"trials at step {each.step}"
        bars = axes.barh(
            heights, shares, height * 0.9, color=WHOLE if each.final else STOPPED, label=f"{each.trials} {which}"
        )
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="share of the variance, %", xlim=(0, 108))
    axes.legend(loc="lower right")
    return figure


def draw_slices(place: int, search: Search) -> Figure:
    """The metric over each parameter; trials that have no final value are crosses at the bottom."""
    names = list(search.space)
    rows = math.ceil(len(names) / MOST_COLUMNS)
    columns = math.ceil(len(names) / rows)
    figure = Figure(figsize=(min(WIDTH, 4 * columns), 3.1 * rows + 0.4))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, name in zip(panels.flat, names, strict=False):
        having = [trial for trial in search.proposed if name in trial.row.params]
        scale = Scale.of([trial.row.params[name] for trial in having])
        for trial in having:
            value, color = final_value(trial), color_of(search, trial)
            axes.plot(
                scale.place(trial.row.params[name]) + scale.jitter(trial.number),
                AT_BOTTOM if value is None else value,
                "x" if value is None else symbol_of(search, trial),
                transform=axes.get_xaxis_transform() if value is None else axes.transData,
                color=color,
                markeredgecolor=color if value is None else "white",
                markersize=6 if value is None else size_of(search, trial),
                zorder=draw_order(search, trial),
                gid=trial_mark(place, trial),
            )
        axes.set_xticks([height for _, height in scale.ticks], [text for text, _ in scale.ticks])
        axes.set(xlabel=name, xlim=(-0.1, 1.1))
        axes.margins(y=0.14)
        if search.baseline is not None and (value := final_value(search.baseline)) is not None:
            axes.axhline(value, color=BASELINE, linewidth=1, alpha=0.6)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(label_of(search.board.metric))
    handles = legend_of(search, "points")
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return figure


def draw_pareto(place: int, search: Search, measures: Iterable[str]) -> Figure | None:
    """The metric against each of some measures, with the front of what nothing beats in both; None without any.

    Only completed trials compete.
    """
    metric = search.board.metric
    completed = [trial for trial in search.proposed if trial.row.status == Status.COMPLETED]
    measured = {
        measure: [trial for trial in completed if measure in trial.measures]  # one that was not trained has no costs
        for measure in measures
        if measure != metric
    }
    known = {measure: trials for measure, trials in measured.items() if trials}
    if not known:
        return None
    figure = Figure(figsize=(WIDTH if len(known) > 1 else WIDTH / 2, 4.2))
    panels = figure.subplots(1, len(known), sharey=True, squeeze=False)
    for axes, (measure, trials) in zip(panels.flat, known.items(), strict=True):
        points = [(scaled(measure, trial.measures[measure]), trial.row.values[trial.row.evaluated]) for trial in trials]
        front = pareto_front(points, (better_when(measure), search.board.mode))
        corners = sorted(points[index] for index in front)
        where = "post" if better_when(measure) == "min" else "pre"
        axes.step(*zip(*corners, strict=True), where=where, color=INK, linewidth=1.2, zorder=1)
        for index, (trial, point) in enumerate(zip(trials, points, strict=True)):
            axes.plot(
                *point,
                symbol_of(search, trial),
                color=color_of(search, trial),
                markeredgecolor=INK if index in front else "white",
                markersize=size_of(search, trial),
                zorder=draw_order(search, trial),
                gid=trial_mark(place, trial),
            )
        axes.set(xlabel=label_of(measure))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.margins(0.08)
    panels.flat[0].set_ylabel(label_of(metric))
    handles = [*legend_of(search, "points", final=True), Line2D([], [], color=INK, label="front")]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return figure


def draw_front(place: int, search: Search) -> Figure:
    """Completed trials over every two of a search's objectives, those on the front with dark edges.

    Of two objectives the front is joined; of more, it is no line in any two.
    """
    names = [each.name for each in search.board.objectives]
    pairs = list(combinations(names, 2))
    columns = min(len(pairs), 3)
    rows = math.ceil(len(pairs) / columns)
    figure = Figure(figsize=(WIDTH if columns > 1 else WIDTH * 0.7, 4.2 * rows + 0.4))
    panels = figure.subplots(rows, columns, squeeze=False)
    front = search.front
    for axes, (second, first) in zip(panels.flat, pairs, strict=False):
        for trial in search.proposed:
            if trial.row.objectives:
                axes.plot(
                    objective_value(trial, first),
                    objective_value(trial, second),
                    symbol_of(search, trial),
                    color=color_of(search, trial),
                    markeredgecolor=INK if trial in front else "white",
                    markersize=size_of(search, trial),
                    zorder=draw_order(search, trial) + 0.5 * (trial in front),
                    gid=trial_mark(place, trial),
                )
        if search.baseline is not None and search.baseline.row.objectives:
            axes.axvline(objective_value(search.baseline, first), color=BASELINE, linewidth=1, alpha=0.6, zorder=1)
            axes.axhline(objective_value(search.baseline, second), color=BASELINE, linewidth=1, alpha=0.6, zorder=1)
        axes.set(xlabel=objective_label(first), ylabel=objective_label(second))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.margins(0.08)
    for axes in panels.flat[len(pairs) :]:
        axes.set_visible(False)
    if len(names) == 2:
        corners = sorted((objective_value(trial, names[1]), objective_value(trial, names[0])) for trial in front)
        where = "post" if search.board.objectives[1].mode == "min" else "pre"
        panels[0, 0].step(*zip(*corners, strict=True), where=where, color=INK, linewidth=1.2, zorder=1)
    on_front = Line2D([], [], color=INK, marker="o", markerfacecolor="none", label="on the front")
    if len(names) > 2:
        on_front.set_linestyle("none")
    handles = [*legend_of(search, "points", final=True), on_front]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return figure


def draw_classes(metric: str, best: Mapping[str, float], baseline: Mapping[str, float]) -> Figure:
    """A metric of every class, of the best trial and the baseline; of many classes those that differ most."""
    names = sorted(best.keys() & baseline.keys(), key=lambda name: best[name] - baseline[name])
    if len(names) > MANY_CLASSES:
        names = [*names[: MANY_CLASSES // 2], *names[-MANY_CLASSES // 2 :]]
    figure = Figure(figsize=(WIDTH * 0.75, 1.1 + 0.26 * len(names)))
    axes = figure.subplots()
    for height, name in enumerate(names):
        color = BEST if best[name] >= baseline[name] else FAILED
        axes.plot([baseline[name], best[name]], [height, height], color=color, linewidth=2.5, alpha=0.35, zorder=1)
        axes.text(102, height, f"{best[name] - baseline[name]:+.1f}", va="center", fontsize=9, color=color)
    axes.plot(
        [baseline[name] for name in names], range(len(names)), "D", color=BASELINE, label="baseline", markersize=6
    )
    axes.plot([best[name] for name in names], range(len(names)), "o", color=BEST, label="best", markersize=7)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=f"{metric} of each class, %", xlim=(-2, 110), ylim=(-0.7, len(names) - 0.3))
    axes.set_xticks(range(0, 101, 20))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def draw_costs(searches: Sequence[Search]) -> Figure:
    """What the time of each search went into, as shares of all that its trials could have used."""
    figure = Figure(figsize=(WIDTH, 1.2 + 0.55 * len(searches)))
    axes = figure.subplots()
    for height, search in enumerate(searches):
        left, usable = 0.0, search.seconds["wall"] * search.seconds["concurrency"]
        for kind, color in TIMES.items():
            share = 100 * search.seconds[kind] / usable
            axes.barh(height, share, 0.6, left, color=color, label=kind if height == 0 else None)
            if share >= 4:
                light = kind == "waiting"
                axes.text(
                    left + share / 2,
                    height,
                    f"{share:.0f} %",
                    ha="center",
                    va="center",
                    color=INK if light else "white",
                )
            left += share
    axes.set_yticks(range(len(searches)), [search.board.name for search in searches])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(xlabel="share of the time of all that ran at once, %", xlim=(0, 100))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(TIMES))
    return figure
