"""What a comparison says in words: of a search as a whole, and for MLflow's page of it."""

from psalm.train.learning_rates import LEARNING_RATE_CHANGES
from tune.progress import argument, clock, number
from tune.report.comparison import Search, Trial, counts
from tune.study.board import Status
from tune.study.confirmation import TEST, differences_of, samples_of

_STATUS_WORDS = {
    Status.COMPLETED: "completed",
    Status.PRUNED: "stopped early",
    Status.FAILED: "failed",
    Status.RUNNING: "running",
    Status.WAITING: "unfinished",
}
NOTE_ROWS = 10
"""Of the table on MLflow's page."""


def status_words(status: Status) -> str:
    """As tables say it."""
    return _STATUS_WORDS[status]


def setting_words(trial: Trial) -> str:
    """``mm_hidden_dim 64, learning_rate 0.001``."""
    row = trial.row
    changes = {LEARNING_RATE_CHANGES: row.learning_rate_changes} if row.learning_rate_changes else {}
    return ", ".join(f"{name} {number(value)}" for name, value in {**row.params, **changes}.items())


def difference_to_baseline(search: Search, trial: Trial) -> float | None:
    """A completed trial's final value less the baseline's; None where one of them has none, or they are one."""
    baseline = search.baseline
    if baseline is None or trial is baseline or {baseline.row.status, trial.row.status} != {Status.COMPLETED}:
        return None
    if trial.row.last is None or baseline.row.last is None:
        return None
    return trial.row.last - baseline.row.last


def summary(search: Search) -> str:
    """The answer in a few sentences: which setting, by how much, how sure, at what cost."""
    return " ".join([_answer(search), *_certainty(search), *_front(search), _cost(search)])


def _answer(search: Search) -> str:
    best, metric = search.best, search.board.metric
    if best is None:
        return "No trial has completed."
    found = f"Trial {best.number} has the best {metric}, {number(best.row.last)} %, with {setting_words(best)}"
    difference = difference_to_baseline(search, best)
    if difference is not None and search.baseline is not None:
        better = "more" if difference >= 0 else "less"
        return (
            f"{found}: {abs(difference):.2f} points {better} than the baseline "
            f"(trial {search.baseline.number}, {number(search.baseline.row.last)} %)."
        )
    if best is search.baseline:
        return f"{found}. It is the baseline: no other trial is better."
    return f"{found}."


def _certainty(search: Search) -> list[str]:
    """What runs with new seeds say of the best, if there are any."""
    samples, differences, best = samples_of(search.board), differences_of(search.board), search.best
    if best is None or best.number not in samples:
        return []
    sample = samples[best.number]
    found = f"Run again with {len(sample.values)} new seeds it has {sample.mean:.2f} on average"
    if best.number not in differences:
        return [f"{found}."]
    difference = differences[best.number]
    p = "" if difference.p is None else f", p = {difference.p:.2g}, {TEST}"
    return [f"{found}, {difference.value:+.2f} against the baseline's: {difference.words}{p}."]


def _front(search: Search) -> list[str]:
    """Which trials nothing beats in several objectives."""
    if not search.front:
        return []
    names = ", ".join(map(str, search.board.objectives))
    listed = ", ".join(str(trial.number) for trial in search.front)
    only = "trial" if len(search.front) == 1 else "trials"
    on_front = "" if search.baseline is None or search.baseline in search.front else "; the baseline is not on it"
    return [f"The front of {names}: {only} {listed}{on_front}."]


def _cost(search: Search) -> str:
    found = counts(search)
    listed = ", ".join(f"{count} {status_words(status)}" for status, count in found.items())
    spent = search.device_hours(search.proposed)
    total = f"{len(search.proposed)} trials ({listed}) took {hours(spent)} {search.device}-hours"
    confirming = [search.trials[row.number] for row in search.board.confirmations]
    if confirming:
        again = search.device_hours(confirming)
        total += f", {len(confirming)} runs with new seeds another {hours(again)}"
    if "wall" in search.seconds:
        total += f"; the search ran for {clock(search.seconds['wall'])}"
    return f"{total}."


def hours(value: float) -> str:
    """With sensible digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.2g}"


def describe_in_markdown(search: Search) -> str:
    """For MLflow's page of the search: the answer, and the first of the ranking."""
    names, metric = list(search.space), search.board.metric
    lines = [summary(search), "", "All of it: artifact `report/report.html`.", ""]
    lines.append(f"| trial | status | {metric} | {' | '.join(names)} |")
    lines.append("|" + "---|" * (len(names) + 3))
    for trial in search.ranking[:NOTE_ROWS]:
        cells = [argument(trial.row, name) or number(None) for name in names]
        value = number(trial.row.last)
        lines.append(f"| {trial.number} | {status_words(trial.row.status)} | {value} | {' | '.join(cells)} |")
    return "\n".join(lines)
