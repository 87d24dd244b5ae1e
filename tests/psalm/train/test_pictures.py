"""Pictures show every class once in the legend's colour, and both kinds of curves."""

from pathlib import Path

import numpy as np
from PIL import Image

from psalm.data.samples import ClassInfo, PanopticRecord, Segment
from psalm.model.postprocess import SegmentPrediction
from psalm.train.pictures import VOID_COLOR, class_color, draw_curves, draw_predictions
from psalm.train.scoring import ScoredImage


def test_predictions_show_classes_in_their_colours(tmp_path: Path) -> None:
    classes = (ClassInfo("cat", True, 7), ClassInfo("grass", False, 90))
    truth = np.ones((40, 60), dtype=np.int32)
    truth[:, 30:] = 5
    record = PanopticRecord(
        1, "a.jpg", np.zeros((40, 60, 3), np.uint8), truth,
        (Segment(1, 0, True, False, 1200), Segment(5, 1, False, False, 1200)),
    )  # fmt: skip
    image = ScoredImage(record, np.zeros((40, 60), np.int32), [SegmentPrediction(1, 1, False, 0.9)])
    draw_predictions([image] * 4, classes, tmp_path / "new" / "p.png")
    pixels = np.asarray(Image.open(tmp_path / "new" / "p.png")).reshape(-1, 3).tolist()
    colors = {tuple(pixel) for pixel in pixels}
    assert {class_color(0), class_color(1), VOID_COLOR} <= colors
    assert pixels.count(list(class_color(0))) == 13 * 13, "once, in the legend"


def test_colours_of_many_classes_differ() -> None:
    assert len({class_color(index) for index in range(134)}) == 134


def test_curves_are_drawn_with_and_without_quality(tmp_path: Path) -> None:
    draw_curves({"loss": {1: 3.0, 2: 2.0}, "learning_rate": {1: 1e-3}}, tmp_path / "a.png")
    draw_curves({"loss": {1: 3.0}, "loss_mask": {1: 1.0}, "eval_pq": {1: 40.0}}, tmp_path / "b.png")
    sizes = {Image.open(tmp_path / name).size for name in ("a.png", "b.png")}
    assert sizes == {(1000, 400)}
