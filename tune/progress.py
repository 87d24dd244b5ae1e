"""A search as it runs: a live table on a terminal, a line per event anywhere else."""

import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from psalm.train.arguments import argument_fields, with_defaults
from tune.config import SearchConfig
from tune.study.board import UNFINISHED, Board, Status, TrialRow

STYLES = {
    Status.WAITING: "magenta",
    Status.RUNNING: "cyan",
    Status.COMPLETED: "green",
    Status.PRUNED: "yellow",
    Status.FAILED: "bold red",
}


WIDE = 120
"""Columns from which a table's headings stand on one line; also the width where there is no terminal."""


def create_console() -> Console:
    """Standard output; wide enough for tables where it is no terminal."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=WIDE)


def clock(seconds: float) -> str:
    """Seconds as minutes, e.g. ``3:07``, or hours, e.g. ``1:03:07``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def number(value: object) -> str:
    """A value as a person reads it: floats with four digits, the rest as it is."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {number(each)}" for name, each in value.items()) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def settings(row: TrialRow) -> str:
    """The values by which a trial differs from others."""
    return " ".join(f"{name}={number(value)}" for name, value in row.setting.items())


def argument(row: TrialRow, name: str) -> str:
    """A trial's value of an argument, with the last of the learning rates that follow; empty if it has none."""
    shown = number(row.params[name]) if name in row.params else ""
    if name != "learning_rate" or not row.learning_rate_changes:
        return shown
    *others, (step, rate) = row.learning_rate_changes.items()
    return f"{shown}, {'..., ' if others else ''}{number(rate)} from {step}"


def trial_table(board: Board, rows: Iterable[TrialRow], width: int = WIDE) -> Table:
    """Trials with status, hyperparameters, step and metric."""
    rows = list(rows)
    table = Table(box=SIMPLE_HEAD, padding=(0, int(width >= WIDE), 0, 0), show_edge=False)
    names = dict.fromkeys(name for row in rows for name in row.params)
    for heading in ("trial", "status", *names, "step", board.metric, "best", "time"):
        shown = heading if width >= WIDE else heading.replace("_", "_\n")
        table.add_column(shown, justify="left" if heading == "status" else "right", vertical="bottom", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row.number),
            Text(str(row.status), STYLES[row.status]),
            *(argument(row, name) for name in names),
            f"{row.step}/{board.full_length}",
            _metric(row.last),
            _metric(row.best),
            clock(row.seconds),
        )
    return table


def _metric(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4g}"


def _source(row: TrialRow) -> str:
    return "" if row.answered_by is None else f", answered by run {row.answered_by}: {settings(row)}"


def announce(config: SearchConfig, folder: Path, console: Console) -> None:
    """What will be searched, before it starts: the space, its size, what is fixed, and the baselines."""
    console.print(f"Search {config.name}: {config.num_samples} trials of {config.max_steps} steps", style="bold")
    for line in _announced(config, console.width):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for note in config.notes:
        console.print(f"  {note}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"  in {folder}\n", markup=False, highlight=False, soft_wrap=True)


def _announced(config: SearchConfig, width: int) -> Iterator[str]:
    space, fixed = config.space, with_defaults(config.arguments)
    if config.objectives:
        yield f"  objectives: {', '.join(map(str, config.objectives))}"
    leaders = config.dependents.leaders
    for name, values in (space.describe() | config.dependents.describe()).items():
        is_conditional = leaders.get(name, name) in space.conditions
        yield f"  {name}: {values}" + (f", else {number(fixed[name])}" if is_conditional else "")
    for rule in space.rules:
        yield f"  required: {rule}"
    discrete = [f"{space.size:,} combinations"] if len(space.continuous) < len(space.names) else []
    yield f"  size: {' x '.join((*discrete, *(f'{name} (continuous)' for name in space.continuous)))}"
    unsearched = {name: fixed[name] for name in space.unsearched}
    yield from _wrapped("not searched, as their conditions do not hold", unsearched, width)
    shown, fields = {*unsearched, *space.names, *leaders}, argument_fields()
    differing = {name: v for name, v in config.arguments.items() if name not in shown and v != fields[name].default}
    yield from _wrapped("fixed, unlike its default", differing, width)
    for trial, baseline in enumerate(config.baselines):
        yield from _wrapped(f"trial {trial}, a baseline", baseline, width)


def _wrapped(title: str, values: Mapping[str, Any], width: int) -> list[str]:
    """Values on as many lines as they need, of at most ``width`` columns unless one of them is longer."""
    return textwrap.wrap(
        " ".join(f"{name}={number(value)}" for name, value in values.items()),
        width,
        initial_indent=f"  {title}: ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


class Progress:
    """Shows a board while the search runs: ``with Progress(board, console) as progress: ...``."""

    def __init__(self, board: Board, console: Console) -> None:
        self.board = board
        self.console = console
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """Something to know about the search as a whole."""
        self._line(text)

    def started(self, row: TrialRow) -> None:
        """An attempt of a trial begins."""
        changes = ", ".join(f"{name}={number(value)}" for name, value in row.changes.items())
        starts = "starts" if row.confirms is None else f"confirms trial {row.confirms}"
        if row.fork is not None:
            starts = f"forks trial {row.fork.trial} at step {row.fork.step}"
        begins = starts if row.attempts == 1 else f"goes on (it was at step {row.step}), attempt {row.attempts}"
        self._event(row, f"{begins}: {settings(row)}" + (f" with {changes} to save memory" if changes else ""))

    def evaluated(self, row: TrialRow) -> None:
        """A trial has a new value."""
        if not self.console.is_terminal:
            self._event(row, f"step {row.step}/{self.board.full_length}, {self.board.metric} {_metric(row.last)}")

    def ended(self, row: TrialRow) -> None:
        """An attempt of a trial has ended, and the trial with it unless it waits."""
        outcome = {
            Status.WAITING: f"waits to go on from step {row.step}: {row.reason}",
            Status.COMPLETED: f"completed, {self.board.metric} {_metric(row.last)}{_source(row)}",
            Status.PRUNED: f"stopped early at step {row.step}, {self.board.metric} {_metric(row.last)}",
            Status.FAILED: f"failed: {row.reason}",
        }[row.status]
        self._event(row, f"{outcome} ({clock(row.seconds)})", STYLES[row.status])
        ended = len(self.board.trials) - len(self.board.of(*UNFINISHED))
        is_due = row.status not in UNFINISHED and ended % 4 == 0 and ended < self.board.num_samples
        if is_due and not self.console.is_terminal:
            self.console.print(trial_table(self.board, self.board.trials.values()))

    def _event(self, row: TrialRow, text: str, style: str = "") -> None:
        self._line(f"trial {row.number} {text}", style)

    def _line(self, text: str, style: str = "") -> None:
        stamp = f"[{clock(self.board.elapsed):>5} {self.board.fraction:4.0%}]"
        self.console.print(Text(f"{stamp} {text}", style), soft_wrap=True)

    def _render(self) -> Group:
        board = self.board
        best = board.best
        head = Text.assemble(
            (f"{board.name}  ", "bold"),
            f"{board.fraction:.0%} of {board.num_samples} trials  {clock(board.elapsed)}  ",
            f"best {board.metric} {_metric(best.last)} (trial {best.number})" if best else "",
        )
        bar = ProgressBar(total=1.0, completed=board.fraction, width=60)
        return Group(trial_table(board, board.trials.values(), self.console.width), head, bar)
