"""A comparison as one HTML page that needs nothing else: tables, pictures as SVG, predictions as embedded PNG."""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from matplotlib.figure import Figure

from tune.progress import number
from tune.report.comparison import Search, Trial
from tune.report.style import CSS, JAVASCRIPT
from tune.report.words import status_words, summary

NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
PIXELS_PER_INCH = 111
"""Of pictures in the page: all have letters of the same size."""
_TRIAL = re.compile(r'<g id="trial:(\d+):(\d+)">')
_ID = re.compile(r' id="\w+_\d+"')


@dataclass(frozen=True)
class Cell:
    """Of a table: what is shown, as HTML, and what rows are sorted by."""

    html: str
    value: float | str | None = None
    kind: str = ""
    """CSS class."""


@dataclass(frozen=True)
class Row:
    """Of a table."""

    cells: Sequence[Cell]
    kind: str = ""
    mark: str = ""
    """Of the trial that it is about."""


def word(text: object, value: str | None = None) -> Cell:
    """A cell of text."""
    return Cell(escape(str(text)), str(text) if value is None else value, "word")


def figure_cell(value: float | None, kind: str = "", form: str = "") -> Cell:
    """A cell of a number, in a format; nothing where there is none."""
    return Cell("", None, kind) if value is None else Cell(format(value, form), value, kind)


def table(headings: Sequence[str], rows: Sequence[Row], sortable: bool = False) -> str:
    """HTML of a table; columns whose first cell is text are headed as such."""
    head = []
    for place, heading in enumerate(headings):
        text = escape(heading).replace("_", "_<wbr>")
        text = f"<button>{text}</button>" if sortable else text
        words = any("word" in row.cells[place].kind.split() for row in rows[:1])
        head.append(f"<th{' class=word' if words else ''}>{text}</th>")
    body = []
    for row in rows:
        cells = "".join(
            f'<td class="{cell.kind}" data-value="{_sorted_by(cell)}">{cell.html}</td>' for cell in row.cells
        )
        mark = f' data-trial="{row.mark}"' if row.mark else ""
        body.append(f'<tr class="{row.kind}"{mark}>{cells}</tr>')
    return (
        f'<div class="table"><table><thead><tr>{"".join(head)}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _sorted_by(cell: Cell) -> str:
    return "" if cell.value is None else escape(str(cell.value))


def svg(figure: Figure, searches: Sequence[Search]) -> str:
    """A figure as SVG for the page: each element of a trial is marked, and named when it is pointed at."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]

    def mark(found: re.Match[str]) -> str:
        place, trial = int(found[1]), int(found[2])
        title = escape(trial_title(searches[place], searches[place].trials[trial]))
        return f'<g class="trial" data-trial="{place}-{trial}"><title>{title}</title>'

    width = PIXELS_PER_INCH * figure.get_figwidth()
    return f'<div class="plot" style="max-width: {width:.0f}px">{_ID.sub("", _TRIAL.sub(mark, text))}</div>'


def trial_title(search: Search, trial: Trial) -> str:
    """What is shown of a trial that is pointed at."""
    return f"{trial.name}: {search.board.metric} {number(trial.row.last)}, {status_words(trial.row.status)}"


def trial_link(search: Search, trial: Trial, words: str | None = None) -> str:
    """HTML: the trial's name, leading to MLflow's page where there is a server; name and id show when pointed at."""
    address, shown = search.address(trial.run_id), escape(words or trial.name)
    title = f'title="{escape(trial.name)}, run {trial.run_id}"'
    return f"<span {title}>{shown}</span>" if address is None else f'<a href="{escape(address)}" {title}>{shown}</a>'


def badges(search: Search, trial: Trial) -> str:
    """HTML: whether a trial is the best, the baseline, or on the front of several objectives."""
    kinds = [kind for kind, of in (("best", search.best), ("baseline", search.baseline)) if trial is of]
    kinds += ["front"] if trial in search.front else []
    return "".join(f'<span class="badge {kind}">{kind}</span>' for kind in kinds)


def images(pngs: Mapping[str, bytes]) -> str:
    """Pictures beside one another, each with words above it."""
    figures = []
    for words, png in pngs.items():
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        figures.append(
            f'<figure><figcaption>{escape(words)}</figcaption><img alt="{escape(words)}" src="{source}"></figure>'
        )
    return f'<div class="pair">{"".join(figures)}</div>'


def heading(text: str, level: int = 1) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def section(title: str, body: str, note: str = "", caveat: str = "", level: int = 3) -> str:
    """A part of the page."""
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    warning = f'<p class="caveat">{escape(caveat)}</p>' if caveat else ""
    return f"<section><h{level}>{escape(title)}</h{level}>{words}{warning}{body}</section>"


def head_of(search: Search, level: int) -> str:
    """Title and summary of a search."""
    day = datetime.fromtimestamp(search.started, UTC).strftime("%Y-%m-%d %H:%M UTC")
    address = search.address(search.run_id)
    run = escape(search.run_id)
    link = f"<code>{run}</code>" if address is None else f'<a href="{escape(address)}"><code>{run}</code></a>'
    return (
        f"<h{level}>{escape(search.board.name)}</h{level}>"
        f'<p class="note">search of {day}, MLflow run {link}, {escape(search.status.lower())}</p>'
        f'<p class="summary">{escape(summary(search))}</p>'
    )


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{CSS}</style></head>'
        f"<body><main>{''.join(parts)}</main><script>{JAVASCRIPT}</script></body></html>\n"
    )
