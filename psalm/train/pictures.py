"""Pictures of a run: predictions beside the truth, and learning curves.

Letters: H W size of an image.
"""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from PIL import Image, ImageDraw, ImageFont

from psalm.data.samples import ClassInfo
from psalm.train.scoring import ScoredImage

SIDE = 240
"""Longer side of every image in the picture of predictions, in pixels."""
GAP = 8
TITLE_HEIGHT = 22
LEGEND_ROW = 20
LEGEND_COLUMN = 150
TINT = 0.65
"""How much of a pixel's colour is its class's."""
VOID_COLOR = (60, 60, 60)
_GOLDEN_RATIO = 0.618033988749895


def class_color(index: int) -> tuple[int, int, int]:
    """RGB of a class: neighbouring indices have hues that are far apart."""
    value = (0.95, 0.7, 0.85)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb((index * _GOLDEN_RATIO) % 1, 0.8, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_predictions(images: Sequence[ScoredImage], classes: Sequence[ClassInfo], path: str | Path) -> None:
    """Rows of image | truth | prediction with a legend of the classes that occur, written as PNG.

    Segments have their class's hue and a white outline; void is dark.
    """
    shown: set[int] = set()
    rows = []
    for image in images:
        truth = {segment.id: segment.category for segment in image.record.segments}
        pred = {segment.id: segment.category for segment in image.pred_segments}
        shown |= {*truth.values(), *pred.values()}
        pixels = image.record.image
        pictures = (pixels, _tinted(pixels, image.record.segment_map, truth), _tinted(pixels, image.pred_map, pred))
        rows.append([_fitted(picture) for picture in pictures])
    legend = [(classes[category].name, class_color(category)) for category in sorted(shown)] + [("void", VOID_COLOR)]

    width = 3 * SIDE + 4 * GAP
    columns = width // LEGEND_COLUMN
    height = sum(row[0].height + GAP for row in rows) + -(-len(legend) // columns) * LEGEND_ROW
    canvas = Image.new("RGB", (width, TITLE_HEIGHT + height + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13)
    for column, title in enumerate(("image", "truth", "prediction")):
        draw.text((GAP + column * (SIDE + GAP), 4), title, fill="black", font=font)
    top = TITLE_HEIGHT
    for row in rows:
        for column, picture in enumerate(row):
            canvas.paste(picture, (GAP + column * (SIDE + GAP), top))
        top += row[0].height + GAP
    for number, (name, color) in enumerate(legend):
        x, y = GAP + number % columns * LEGEND_COLUMN, top + number // columns * LEGEND_ROW
        draw.rectangle((x, y + 3, x + 12, y + 15), fill=color)
        draw.text((x + 18, y + 1), name, fill="black", font=font)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def draw_curves(history: Mapping[str, Mapping[int, float]], path: str | Path) -> None:
    """Losses on the left (logarithmic), quality in percent on the right, over global steps; written as PNG.

    ``history`` is {name: {step: value}} as in ``records.metric_history``.
    """
    figure = Figure(figsize=(10, 4), dpi=100)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, gridspec_kw={"left": 0.07, "right": 0.98, "top": 0.91, "bottom": 0.13})
    for name, steps in history.items():
        if name == "loss" or name.startswith("loss_"):
            left.plot([*steps], [*steps.values()], label=name, linewidth=2.2 if name == "loss" else 1.2)
        elif name.startswith("eval_"):
            main = not name.endswith(("_things", "_stuff"))
            right.plot(
                [*steps],
                [*steps.values()],
                label=name,
                marker=".",
                linewidth=1.8 if main else 1,
                linestyle="-" if main else ":",
            )
    left.set(title="training losses", xlabel="global step", yscale="log")
    right.set(title="validation quality (%)", xlabel="global step", ylim=(0, 100))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, ncols=3, framealpha=0.6)
    for axis_formatter in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis_formatter(LogFormatter(labelOnlyBase=False))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _tinted(pixels: np.ndarray, segment_map: np.ndarray, category_of: Mapping[int, int]) -> np.ndarray:
    """uint8 [H, W, 3]: grey pixels in the hue of their segment's class, borders of segments white."""
    ids, place = np.unique(segment_map, return_inverse=True)
    table = np.array([class_color(category_of[i]) if i in category_of else VOID_COLOR for i in ids.tolist()])
    color = table[place.reshape(segment_map.shape)]
    grey = pixels.mean(-1, keepdims=True)
    mixed = grey * (1 - TINT) + color * TINT
    border = np.zeros(segment_map.shape, dtype=bool)
    border[:, 1:] |= segment_map[:, 1:] != segment_map[:, :-1]
    border[1:] |= segment_map[1:] != segment_map[:-1]
    mixed[border] = 255
    return mixed.astype(np.uint8)


def _fitted(pixels: np.ndarray) -> Image.Image:
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    return Image.fromarray(pixels).resize((max(round(width * scale), 1), max(round(height * scale), 1)))
