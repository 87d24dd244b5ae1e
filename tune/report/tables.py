"""The tables of a comparison."""

from collections.abc import Iterable, Sequence
from html import escape

from tune.progress import argument, clock
from tune.report.comparison import COST_MEASURES, Search, Trial
from tune.report.marks import label_of, objective_label, objective_value, scaled
from tune.report.page import Cell, Row, badges, figure_cell, table, trial_link, word
from tune.report.plots import TIMES
from tune.report.words import difference_to_baseline, hours, status_words
from tune.study.board import Status
from tune.study.confirmation import LEVEL, TEST, differences_of, samples_of
from tune.study.ranks import early_to_final


def ranking_table(place: int, search: Search) -> str:
    """Every trial, best first."""
    measures = [name for name in COST_MEASURES if any(name in trial.measures for trial in search.proposed)]
    headings = ["", "trial", "status", search.board.metric, "less baseline", *search.space, "step", "time"]
    headings += [label_of(name) for name in measures]
    rows = []
    for rank, trial in enumerate(search.ranking, start=1):
        row, difference = trial.row, difference_to_baseline(search, trial)
        cells = [
            figure_cell(rank),
            Cell(trial_link(search, trial, str(trial.number)) + badges(search, trial), trial.number, "word"),
            Cell(escape(status_words(row.status)), str(row.status), f"word {row.status}"),
            figure_cell(row.last, "best" if trial is search.best else "", ".2f"),
            figure_cell(difference, form="+.2f"),
        ]
        for name in search.space:
            cells.append(Cell(escape(argument(row, name)), row.params.get(name, "")))
        cells += [figure_cell(row.step), Cell(clock(row.seconds), row.seconds)]
        for name in measures:
            value = scaled(name, trial.measures[name]) if name in trial.measures else None
            cells.append(figure_cell(value, form=".3g" if value is None or value < 1000 else ",.0f"))
        kind = "top" if trial is search.best else "baseline" if trial is search.baseline else ""
        less = "" if kind or row.status == Status.COMPLETED else "less"
        rows.append(Row(cells, kind or less, f"{place}-{trial.number}"))
    return table(headings, rows, sortable=True)


def front_table(place: int, search: Search) -> str:
    """The trials on the front of several objectives, best first in the first of them, with the baseline at the end."""
    names = [each.name for each in search.board.objectives]
    shown, baseline = search.front, search.baseline
    if baseline is not None and baseline not in shown and baseline.row.objectives:
        shown = [*shown, baseline]
    rows = []
    for trial in shown:
        cells = [Cell(trial_link(search, trial, str(trial.number)) + badges(search, trial), trial.number, "word")]
        for name in names:
            value = objective_value(trial, name)
            cells.append(figure_cell(value, form=".4g" if value < 1000 else ",.0f"))
        for name in search.space:
            cells.append(Cell(escape(argument(trial.row, name)), trial.row.params.get(name, "")))
        kind = "top" if trial is search.best else "baseline" if trial is baseline else ""
        rows.append(Row(cells, kind, f"{place}-{trial.number}"))
    return table(["trial", *map(objective_label, names), *search.space], rows, sortable=True)


def searches_table(searches: Sequence[Search]) -> str:
    """A line per search."""
    headings = ["search", "metric", "best", "less baseline", "best setting", "trials", "completed", "stopped", "failed"]
    headings += ["device-hours", "device"]
    rows = []
    for search in searches:
        best = search.best
        of = [trial.row.status for trial in search.proposed]
        difference = None if best is None else difference_to_baseline(search, best)
        cells = [
            word(search.board.name),
            word(search.board.metric),
            figure_cell(None if best is None else best.row.last, form=".2f"),
            figure_cell(difference, form="+.2f"),
            Cell("" if best is None else trial_link(search, best), None if best is None else best.name, "word"),
            *(
                figure_cell(count)
                for count in (len(of), *map(of.count, (Status.COMPLETED, Status.PRUNED, Status.FAILED)))
            ),
            Cell(hours(search.device_hours(search.proposed)), search.device_hours(search.proposed)),
            word(search.device),
        ]
        rows.append(Row(cells))
    return table(headings, rows, sortable=True)


def metrics_table(best: Trial, baseline: Trial) -> str:
    """Every metric of the evaluation, of the best trial and the baseline."""
    rows = []
    for name in best.measures:
        if name.startswith("eval_") and name in baseline.measures:
            one, other = best.measures[name], baseline.measures[name]
            cells = [figure_cell(one, form=".2f"), figure_cell(other, form=".2f")]
            rows.append(Row([word(name), *cells, figure_cell(one - other, form="+.2f")]))
    return table(["metric, %", "best", "baseline", "difference"], rows, sortable=True)


def confirmation_table(search: Search) -> str:
    """The settings that were run again with new seeds, best mean first; nothing if none was."""
    samples, differences = samples_of(search.board), differences_of(search.board)
    rows = []
    for trial, sample in samples.items():
        deviation = sample.deviation
        cells = [
            Cell(trial_link(search, search.trials[trial]) + badges(search, search.trials[trial]), trial, "word"),
            word(", ".join(f"{value:.2f}" for value in sample.values)),
            figure_cell(sample.mean, form=".2f"),
            figure_cell(deviation, form=".2f"),
        ]
        found = differences.get(trial)
        if found is None:
            cells += [Cell("")] * 4
        else:
            ends = "" if found.low is None or found.high is None else f"{found.low:+.2f} to {found.high:+.2f}"
            cells += [
                figure_cell(found.value, form="+.2f"),
                word(ends),
                figure_cell(found.p, form=".2g"),
                word(found.words),
            ]
        rows.append(Row(cells))
    headings = ["trial", "values", "mean", "deviation", "less baseline", "95 % interval", "p", ""]
    words = f'<p class="note">{escape(TEST)}; different: p &lt; {LEVEL:g}</p>' if differences else ""
    return table(headings, rows) + words if rows else ""


def correlation_words(search: Search) -> str:
    """Whether early values tell the final order, as HTML."""
    found = early_to_final(search.board)
    if not found:
        return ""
    listed = ", ".join(f"{value:.2f} at step {step} ({runs} runs)" for step, (value, runs) in found.items())
    return (
        f'<p class="note">Spearman\'s rank correlation of early values with final ones, over runs of full length: '
        f"{escape(listed)}.</p>"
    )


def failures_table(search: Search) -> str:
    """Trials that failed or did not finish, with their reasons; nothing if there are none."""
    rows = [
        Row(
            [
                Cell(trial_link(search, trial), trial.number, "word"),
                Cell(escape(status_words(trial.row.status)), str(trial.row.status), "word failed"),
                Cell(escape(trial.row.reason or ""), trial.row.reason, "word long"),
                figure_cell(trial.row.step),
            ]
        )
        for trial in search.trials.values()
        if trial.row.status in (Status.FAILED, Status.WAITING)
    ]
    return table(["trial", "", "reason", "step"], rows) if rows else ""


def costs_table(searches: Iterable[Search]) -> str:
    """What the time of searches went into."""
    headings = ["search", "ran for", "trials at once", *TIMES, "overhead per trial, s"]
    rows = []
    for search in searches:
        seconds = search.seconds
        cells = [word(search.board.name), Cell(clock(seconds["wall"]), seconds["wall"])]
        cells.append(figure_cell(seconds["concurrency"]))
        cells += [Cell(clock(seconds[kind]), seconds[kind]) for kind in TIMES]
        cells.append(figure_cell(seconds["overhead_per_trial"], form=".1f"))
        rows.append(Row(cells))
    return table(headings, rows)
