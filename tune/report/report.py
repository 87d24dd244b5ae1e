"""Writes the comparison of searches: a page, and its pictures as PNG.

The page comes first with what is asked first, the answer and the ranking, and goes on to why: curves, hyperparameters,
costs. One drawing of each picture serves both.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from tune.report import page as html
from tune.report import plots, tables
from tune.report.comparison import COST_MEASURES, Search, Trial
from tune.report.importance import FEW, Importance, importances
from tune.report.marks import STYLE
from tune.study.board import Status

DPI = 130
"""Of the PNGs."""
TITLE_HEIGHT = 32
"""Of the titles above predictions, in pixels."""
CURVES = (
    "Crosses end trials that did not reach full length. Point at a line, or at a row above, to find the trial in all "
    "pictures."
)
PARALLEL = (
    "Each line is a trial: its values, and on the right what came of it at full length. Broken lines lead below: these "
    "trials did not get there."
)
SLICES = (
    "The metric at full length. Crosses at the bottom are trials that did not get there. The line is the baseline's "
    "value. Points of values from a list are spread a little."
)
PARETO = (
    "Completed trials; the line joins those that no other one beats in both. Seconds per step are the median over a "
    "run's logs, peak memory is of one process."
)
FRONT = (
    "Completed trials. Those with dark edges are on the front: no other one is better in one objective and as good in "
    "all others. The coloured lines cross at the baseline. Times and memory differ between runs of one setting, too."
)
FEW_WORDS = (
    "From 12 random settings the shares of a known function were off by up to 28 points, from 24 by 17, from 48 by 9: "
    "take them as a hint."
)
PREDICTIONS = "The same images in the same order, as each run's last evaluation left them."


class Pictures:
    """Pictures of a report, by file name, as PNG.

    Args:
        searches: of the page, in order.
    """

    def __init__(self, searches: Sequence[Search]) -> None:
        self.searches = searches
        self.files: dict[str, bytes] = {}

    def show(self, name: str, figure: Figure) -> str:
        """Keeps a figure, and returns it as HTML."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
        self.files[f"{name}.png"] = buffer.getvalue()
        return html.svg(figure, self.searches)


def write_report(searches: Sequence[Search], page: Path, folder: Path) -> None:
    """Writes ``page``, and its pictures into ``folder``; both are replaced.

    Raises:
        OSError: they cannot be written.
    """
    pictures = Pictures(searches)
    with rc_context(STYLE):
        parts = _parts(searches, pictures)
    title = "Comparison of " + ", ".join(search.board.name for search in searches)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for name, content in pictures.files.items():
        (folder / name).write_bytes(content)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html.page(title, parts), encoding="utf-8")


def _parts(searches: Sequence[Search], pictures: Pictures) -> list[str]:
    if len(searches) == 1:
        (search,) = searches
        return [html.head_of(search, 1), *_of_one(0, search, pictures, "", _of_all(searches, pictures))]
    names = ", ".join(search.board.name for search in searches)
    parts = [html.heading(f"Comparison of {names}"), html.section("Searches", tables.searches_table(searches))]
    parts += _of_all(searches, pictures)
    for place, search in enumerate(searches):
        parts += [html.head_of(search, 2), *_of_one(place, search, pictures, f"{place + 1}_", [])]
    return parts


def _of_all(searches: Sequence[Search], pictures: Pictures) -> list[str]:
    """What searches share: how good they were after how much, and what their time went into."""
    parts = []
    metrics = list(dict.fromkeys(search.board.metric for search in searches))
    for metric in metrics:
        alike = {place: search for place, search in enumerate(searches) if search.board.metric == metric}
        if any(search.best is not None for search in alike.values()):
            name = "best_so_far" if len(metrics) == 1 else f"best_so_far_{metric}"
            parts.append(
                html.section(
                    f"Best {metric} so far",
                    pictures.show(name, plots.draw_best_so_far(alike)),
                    "Every point is a completed trial, where it ended. The time of all other trials counts, too.",
                )
            )
    ended = {place: search for place, search in enumerate(searches) if search.seconds.get("trials")}
    if ended:
        figure = plots.draw_costs(list(ended.values()))
        parts.append(
            html.section("Where the time went", pictures.show("costs", figure) + tables.costs_table(ended.values()))
        )
    return parts


def _of_one(place: int, search: Search, pictures: Pictures, prefix: str, shared: Sequence[str]) -> list[str]:
    """The sections of one search; ``shared`` are those that it has with others, in their place."""
    if not search.proposed:
        return [html.section("Trials", "<p>There are none yet.</p>")]
    again = tables.confirmation_table(search)
    parts = []
    if search.front:
        figure = pictures.show(f"{prefix}front", plots.draw_front(place, search))
        title = f"Front of {', '.join(map(str, search.board.objectives))}"
        parts.append(html.section(title, figure + tables.front_table(place, search), FRONT))
    parts += [
        html.section("Ranking", tables.ranking_table(place, search), "Trials of full length first. A heading sorts."),
        *([html.section("Run again with new seeds", again)] if again else []),
        *shared[:1],
    ]
    if any(trial.row.values for trial in search.proposed):
        curves = pictures.show(f"{prefix}curves", plots.draw_curves(place, search))
        parts.append(html.section("Learning curves", curves + tables.correlation_words(search), CURVES))
        parallel = pictures.show(f"{prefix}parallel", plots.draw_parallel(place, search))
        parts.append(html.section("Hyperparameters together", parallel, PARALLEL))
        parts += _importance(search, pictures, prefix)
        slices = pictures.show(f"{prefix}slices", plots.draw_slices(place, search))
        parts.append(html.section("Hyperparameters one by one", slices, SLICES))
    pareto = plots.draw_pareto(place, search, COST_MEASURES)
    if pareto is not None:
        parts.append(html.section("Quality against cost", pictures.show(f"{prefix}pareto", pareto), PARETO))
    if search.best is not None and search.baseline is not None:
        parts += _against_baseline(search, search.best, search.baseline, pictures, prefix)
    failures = tables.failures_table(search)
    return [*parts, *([html.section("Not finished", failures)] if failures else []), *shared[1:]]


def _importance(search: Search, pictures: Pictures, prefix: str) -> list[str]:
    found = importances(search)
    if not found:
        return []
    shown = {name for each in found for name in each.shares}
    absent = [name for name in search.space if name not in shown]
    note = (
        "fANOVA (Hutter et al., ICML 2014): the share of the variance of the metric that each hyperparameter alone "
        f"explains. {_compared(found)}"
    )
    if absent:
        note += f" Without {', '.join(absent)}: one value, or not in every trial."
    few = min(each.trials for each in found)
    caveat = f"{few} trials are few for this. {FEW_WORDS}" if few < FEW else ""
    picture = pictures.show(f"{prefix}importance", plots.draw_importance(found))
    return [html.section("Which hyperparameters matter", picture, note, caveat)]


def _compared(found: Sequence[Importance]) -> str:
    """Which trials are compared, and why."""
    early, whole = (next((each for each in found if each.final == final), None) for final in (False, True))
    if early is None:
        return "All trials have reached their end."
    words = f"Step {early.step} is the last one that all trials with values have reached."
    if whole is None:
        return f"{words} Too few have completed to compare their ends."
    return (
        f"{words} At the end only trials are left that looked good before: what had bad values of a hyperparameter "
        "stopped there looks less important than it is."
    )


def _against_baseline(search: Search, best: Trial, baseline: Trial, pictures: Pictures, prefix: str) -> list[str]:
    parts = []
    if best is not baseline and baseline.row.status == Status.COMPLETED:
        body = tables.metrics_table(best, baseline)
        one, other = search.per_class.get(best.number, {}), search.per_class.get(baseline.number, {})
        for task in [task for task in one if task in other]:
            metric = next(iter(next(iter(one[task].values()))))
            figure = plots.draw_classes(metric, _of_metric(one[task], metric), _of_metric(other[task], metric))
            body += html.heading(f"{task}, class by class", 4) + pictures.show(f"{prefix}classes_{task}", figure)
        parts.append(html.section("Best against baseline", body, "At the last evaluation of each."))
    names = search.predictions.get(best.number, {})
    for name, png in names.items():
        shown = {f"best: {best.name}": png}
        if best is not baseline and name in search.predictions.get(baseline.number, {}):
            shown[f"baseline: {baseline.name}"] = search.predictions[baseline.number][name]
        pictures.files[f"{prefix}{name}"] = side_by_side(shown)
        title = " of ".join(["Predictions", *name.removesuffix(".png").split("_", 1)[1:]])
        parts.append(html.section(title, html.images(shown), PREDICTIONS))
    return parts


def _of_metric(classes: Mapping[str, Mapping[str, float]], metric: str) -> dict[str, float]:
    return {name: values[metric] for name, values in classes.items()}


def side_by_side(pictures: Mapping[str, bytes]) -> bytes:
    """PNGs from left to right as one, each below its title."""
    images = {title: Image.open(io.BytesIO(png)).convert("RGB") for title, png in pictures.items()}
    widths, heights = zip(*(each.size for each in images.values()), strict=True)
    whole = Image.new("RGB", (sum(widths), TITLE_HEIGHT + max(heights)), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(TITLE_HEIGHT // 2)
    left = 0
    for title, each in images.items():
        draw.text((left + TITLE_HEIGHT // 4, TITLE_HEIGHT // 4), title, "black", font)
        whole.paste(each, (left, TITLE_HEIGHT))
        left += each.width
    buffer = io.BytesIO()
    whole.save(buffer, "png")
    return buffer.getvalue()
