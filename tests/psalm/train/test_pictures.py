"""Pictures hold every panel, caption and colour that they are given, and both kinds of curves."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psalm.train import pictures
from psalm.train.pictures import (
    CAPTION_HEIGHT,
    LEGEND_ROW,
    VOID_COLOR,
    Picture,
    class_color,
    draw_curves,
    draw_predictions,
    stacked,
    tinted,
)


def grey(height: int, width: int, value: int = 0) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_colours_of_many_classes_differ() -> None:
    assert len({class_color(index) for index in range(134)}) == 134


def test_rows_captions_and_legend_add_up(tmp_path: Path) -> None:
    rows = [Picture({"image": grey(40, 60), "truth": grey(80, 60)}, {"cat": (9, 8, 7)})] * 2
    draw_predictions(rows, tmp_path / "new" / "plain.png")
    plain = Image.open(tmp_path / "new" / "plain.png")
    assert plain.width == 2 * (240 + 8) + 8
    captioned = [Picture(row.panels, {}, "the cat") for row in rows]
    draw_predictions(captioned, tmp_path / "captioned.png")
    assert Image.open(tmp_path / "captioned.png").height == plain.height + 2 * CAPTION_HEIGHT - LEGEND_ROW


def test_legend_shows_each_entry_once(tmp_path: Path) -> None:
    legends = [{"cat": (200, 10, 20), "void": VOID_COLOR}, {"cat": (200, 10, 20), "dog": (10, 200, 20)}]
    draw_predictions([Picture({"image": grey(9, 9, 255)}, legend) for legend in legends], tmp_path / "p.png")
    pixels = np.asarray(Image.open(tmp_path / "p.png")).reshape(-1, 3).tolist()
    for color in ((200, 10, 20), (10, 200, 20), VOID_COLOR):
        assert pixels.count(list(color)) == 13 * 13, color


def test_segments_are_tinted_and_bordered() -> None:
    segment_map = np.zeros((6, 9), dtype=np.int32)
    segment_map[:, 3:6] = 70_000
    segment_map[:, 6:] = 4
    drawn = tinted(grey(6, 9, 100), segment_map, {70_000: (200, 0, 0)})
    assert drawn[0, 0].tolist() == [74, 74, 74], "void is dark"
    assert drawn[0, 4].tolist() == [165, 35, 35], "0.35 x 100 + 0.65 x the colour"
    assert drawn[0, 7].tolist() == drawn[0, 0].tolist(), "what has no colour is void"
    assert (drawn[:, [3, 6]] == 255).all(), "where a segment begins"


def test_smaller_masks_lie_on_top() -> None:
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0, 0, 0] = True
    masks[1] = True
    masks[2, :2, :2] = True
    assert stacked(masks).tolist() == [[1, 3, 2, 2], [3, 3, 2, 2], [2, 2, 2, 2], [2, 2, 2, 2]]
    assert not stacked(masks[:0]).any()


def test_curves_are_drawn_with_and_without_quality(tmp_path: Path) -> None:
    draw_curves({"loss": {1: 3.0, 2: 2.0}, "learning_rate": {1: 1e-3}}, tmp_path / "a.png")
    draw_curves({"loss": {1: 3.0}, "loss_mask": {1: 1.0}, "eval_pq": {1: 40.0}}, tmp_path / "b.png")
    sizes = {Image.open(tmp_path / name).size for name in ("a.png", "b.png")}
    assert sizes == {(1000, 400)}


@pytest.mark.parametrize(
    ("main", "left", "right"),
    [
        (("eval_pq",), ["loss", "loss_mask", "region/loss"], ["eval_pq", "eval_sq"]),
        (("eval_mean", "eval_pq"), ["loss", "loss_mask", "region/loss"], ["eval_pq"]),
    ],
)
def test_of_a_mixture_each_task_has_one_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: tuple[str, ...], left: list[str], right: list[str]
) -> None:
    drawn: list[list[str]] = []

    class Kept(pictures.Figure):
        def savefig(self, *args: object, **kwargs: object) -> None:
            drawn.extend([line.get_label() for line in axes.get_lines()] for axes in self.axes)
            super().savefig(*args, **kwargs)

    monkeypatch.setattr(pictures, "Figure", Kept)
    names = ("loss", "loss_mask", "region/loss", "region/loss_mask", "region/steps", "eval_pq", "eval_sq", "epoch")
    draw_curves({name: {1: 1.0} for name in names}, tmp_path / "c.png", main)
    assert drawn == [left, right]
