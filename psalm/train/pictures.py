"""Pictures of a run: predictions beside the truth, and learning curves.

Letters: H W size of an image.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from PIL import Image, ImageDraw, ImageFont

SIDE = 240
"""Longer side of every image in a picture of predictions, in pixels."""
GAP = 8
TITLE_HEIGHT = 22
CAPTION_HEIGHT = 20
CAPTION_COLOR = (70, 70, 70)
LEGEND_ROW = 20
LEGEND_COLUMN = 150
TINT = 0.65
"""How much of a pixel's colour is its class's."""
VOID_COLOR = (60, 60, 60)
_GOLDEN_RATIO = 0.618033988749895


def class_color(index: int) -> "RGB":
    """RGB of a class: neighbouring indices have hues that are far apart."""
    value = (0.95, 0.7, 0.85)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb((index * _GOLDEN_RATIO) % 1, 0.8, value)
    return round(red * 255), round(green * 255), round(blue * 255)


RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """One row of a picture of predictions."""

    panels: dict[str, np.ndarray]
    """Title -> uint8 [H, W, 3]; sizes may differ."""
    legend: dict[str, RGB]
    """What the colours mean."""
    caption: str = ""
    """What was asked, if it was asked in words."""


def draw_predictions(pictures: Sequence[Picture], path: str | Path) -> None:
    """Rows of panels under common titles, with captions and a legend of the colours that occur, written as PNG."""
    titles = list(pictures[0].panels)
    rows = [[_fitted(panel) for panel in picture.panels.values()] for picture in pictures]
    legend = dict(sorted({entry: color for picture in pictures for entry, color in picture.legend.items()}.items()))
    width = len(titles) * (SIDE + GAP) + GAP
    columns = width // LEGEND_COLUMN
    captions = [CAPTION_HEIGHT if picture.caption else 0 for picture in pictures]
    heights = [max(panel.height for panel in row) + GAP for row in rows]
    below = -(-len(legend) // columns) * LEGEND_ROW
    canvas = Image.new("RGB", (width, TITLE_HEIGHT + sum(captions) + sum(heights) + below + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (SIDE + GAP), 4), title, fill="black", font=font)
    top = TITLE_HEIGHT
    for picture, row, caption, height in zip(pictures, rows, captions, heights, strict=True):
        draw.text((GAP, top), picture.caption, fill=CAPTION_COLOR, font=font)
        for column, panel in enumerate(row):
            canvas.paste(panel, (GAP + column * (SIDE + GAP), top + caption))
        top += caption + height
    for number, (name, color) in enumerate(legend.items()):
        x, y = GAP + number % columns * LEGEND_COLUMN, top + number // columns * LEGEND_ROW
        draw.rectangle((x, y + 3, x + 12, y + 15), fill=color)
        draw.text((x + 18, y + 1), name, fill="black", font=font)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def tinted(pixels: np.ndarray, segment_map: np.ndarray, color_of: Mapping[int, RGB]) -> np.ndarray:
    """uint8 [H, W, 3]: grey pixels in the colour of their segment, dark where it has none, borders of segments white.

    ``segment_map`` int [H, W]; ``color_of`` says the colour of its ids.
    """
    ids, place = np.unique(segment_map, return_inverse=True)
    table = np.array([color_of.get(i, VOID_COLOR) for i in ids.tolist()])
    color = table[place.reshape(segment_map.shape)]
    grey = pixels.mean(-1, keepdims=True)
    mixed = grey * (1 - TINT) + color * TINT
    border = np.zeros(segment_map.shape, dtype=bool)
    border[:, 1:] |= segment_map[:, 1:] != segment_map[:, :-1]
    border[1:] |= segment_map[1:] != segment_map[:-1]
    mixed[border] = 255
    return mixed.astype(np.uint8)


def stacked(masks: np.ndarray) -> np.ndarray:
    """Masks bool [N, H, W] as one map int [H, W] of their numbers from 1, smaller ones on top; 0 is none."""
    result = np.zeros(masks.shape[1:], dtype=np.int32)
    for number in np.argsort(-masks.sum(axis=(1, 2)), kind="stable").tolist():
        result[masks[number]] = number + 1
    return result


def draw_curves(
    history: Mapping[str, Mapping[int, float]], path: str | Path, main: Sequence[str] = ("eval_pq",)
) -> None:
    """Losses on the left (logarithmic), quality in percent on the right, over global steps; written as PNG.

    Of a mixture, each task's total loss and main metric are drawn, and not its parts.

    Args:
        history: {name: {step: value}} as in ``records.metric_history``.
        path: of the PNG.
        main: names of the metrics that the run is judged by.
    """
    figure = Figure(figsize=(10, 4), dpi=100)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, gridspec_kw={"left": 0.07, "right": 0.98, "top": 0.91, "bottom": 0.13})
    for name, steps in history.items():
        if name == "loss" or name.startswith("loss_") or name.endswith("/loss"):
            left.plot([*steps], [*steps.values()], label=name, linewidth=2.2 if name == "loss" else 1.2)
        elif name in main or (name.startswith("eval_") and len(main) == 1):
            right.plot(
                [*steps],
                [*steps.values()],
                label=name,
                marker=".",
                linewidth=1.8 if name in main else 1,
                linestyle="-" if name in main else ":",
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


def _fitted(pixels: np.ndarray) -> Image.Image:
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    return Image.fromarray(pixels).resize((max(round(width * scale), 1), max(round(height * scale), 1)))
