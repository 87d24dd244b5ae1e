"""What things look like in the pictures of a comparison; colours mean the same in all of them."""

from typing import Any, Final, Literal

from matplotlib.lines import Line2D

from tune.costs import STEP_SECONDS
from tune.report.comparison import MACHINE, Search, Trial
from tune.study.board import UNFINISHED, Status

BEST, BASELINE, WHOLE, STOPPED, FAILED = "#0b7a4b", "#d9730d", "#4a78b5", "#a9b4c0", "#c4314b"
INK, FAINT = "#333a42", "#e3e7ec"
"""What trials are, and what text and lines are drawn in."""
SEARCHES = ("#4a78b5", "#8e5ea2", "#2a9d8f", "#b5654a", "#6b7f2a", "#b04a7f", "#5a5a5a", "#c2a02f")
"""Colours of searches where there are several."""
STYLE: Final[dict[str, Any]] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "psalm",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c96a1",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": FAINT,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
"""To be in force (``matplotlib.rc_context``) where figures are made and where they are saved."""
_LABELS = {
    STEP_SECONDS: ("seconds per step", 1.0),
    "parameters": ("parameters, millions", 1e-6),
    "trainable_parameters": ("trained parameters, millions", 1e-6),
    "system/peak_memory_mb": ("peak memory, MB", 1.0),
}

_OBJECTIVES = {
    "step_ms": ("step time, ms", 1.0),
    "parameters": _LABELS["trainable_parameters"],
    "peak_memory": ("peak memory, GiB", 1.0),
}


def objective_label(name: str) -> str:
    """An objective as axes and headings call it, with its unit; what is scored is in percent."""
    return _OBJECTIVES[name][0] if name in _OBJECTIVES else f"{name}, %"


def objective_value(trial: Trial, name: str) -> float:
    """The value of a trial that has completed, in the unit of ``objective_label``."""
    return trial.row.objectives[name] * (_OBJECTIVES[name][1] if name in _OBJECTIVES else 1.0)


def label_of(measure: str) -> str:
    """A measure as axes and headings call it, with its unit; what is scored is in percent."""
    if measure in _LABELS:
        return _LABELS[measure][0]
    return measure.removeprefix(MACHINE) if measure.startswith(MACHINE) else f"{measure}, %"


def scaled(measure: str, value: float) -> float:
    """A value in the unit of ``label_of``."""
    return value * _LABELS[measure][1] if measure in _LABELS else value


def trial_mark(search: int, trial: Trial) -> str:
    """What the SVG element of a trial is called; ``search`` is the place of its search in the page."""
    return f"trial:{search}:{trial.number}"


def final_value(trial: Trial) -> float | None:
    """The metric at full length; None of a trial that did not get there."""
    return trial.row.last if trial.row.status == Status.COMPLETED else None


def color_of(search: Search, trial: Trial) -> str:
    """By what a trial is."""
    if trial is search.best:
        return BEST
    if trial is search.baseline:
        return BASELINE
    return {Status.COMPLETED: WHOLE, Status.FAILED: FAILED}.get(trial.row.status, STOPPED)


def draw_order(search: Search, trial: Trial) -> int:
    """What is drawn over what: the best last."""
    if trial is search.best:
        return 6
    if trial is search.baseline:
        return 5
    return {Status.COMPLETED: 4, Status.FAILED: 3}.get(trial.row.status, 2)


def symbol_of(search: Search, trial: Trial) -> str:
    """Matplotlib's marker, by what a trial is."""
    if trial is search.best:
        return "*"
    return "D" if trial is search.baseline else "o"


def size_of(search: Search, trial: Trial) -> float:
    """Of its marker, in points."""
    return {"*": 15.0, "D": 8.0, "o": 7.0}[symbol_of(search, trial)]


def legend_of(search: Search, kind: Literal["points", "lines", "curves"], final: bool = False) -> list[Line2D]:
    """What colours mean, of those that occur; ``final``: only trials of full length are shown."""
    named = [(search.best, BEST, "best", "*")]
    if search.baseline is not search.best:
        named.append((search.baseline, BASELINE, "baseline", "D"))
    found = [
        _handle(kind, color, words, symbol, 2.4)
        for trial, color, words, symbol in named
        if trial is not None and (final_value(trial) is not None or not final)
    ]
    others = {trial.row.status for trial in search.proposed if trial not in (search.best, search.baseline)}
    if Status.COMPLETED in others:
        found.append(_handle(kind, WHOLE, "full length", "o", 1.3))
    if others - {Status.COMPLETED, Status.FAILED} and not final:
        unfinished = " or unfinished" if others & set(UNFINISHED) else ""
        found.append(_handle(kind, STOPPED, f"stopped early{unfinished}", "x", 1.3))
    if Status.FAILED in others and not final:
        found.append(_handle(kind, FAILED, "failed", "x", 1.3))
    return found


def _handle(kind: str, color: str, words: str, symbol: str, width: float) -> Line2D:
    marker = symbol if kind == "points" or (kind == "curves" and symbol == "x") else None
    broken = kind == "lines" and symbol == "x"
    line = "none" if kind == "points" else (0, (4, 2)) if broken else "-"
    size = 11 if marker == "*" else 6.5
    return Line2D([], [], color=color, marker=marker, markersize=size, linestyle=line, linewidth=width, label=words)
