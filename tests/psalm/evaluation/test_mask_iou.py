"""Counts of pairs of masks."""

import numpy as np
import pytest

from psalm.evaluation.mask_iou import MaskCounts, iou_figures, ious

MASK = np.ones((2, 3), dtype=bool)


def test_pixels_are_counted_pair_by_pair():
    counts = MaskCounts()
    counts.update(np.array([[1, 1, 0, 0]], dtype=bool), np.array([[0, 1, 1, 1]], dtype=bool))
    counts.update(np.zeros((1, 4), dtype=bool), np.ones((1, 4), dtype=bool))
    assert counts.state().tolist() == [[1, 2, 3], [0, 0, 4]]
    assert ious(counts.state()).tolist() == [0.25, 0.0]


def test_iou_of_two_empty_masks_is_one():
    assert ious(np.array([[0, 0, 0], [0, 5, 0]])).tolist() == [1.0, 0.0]


def test_figures_that_are_undefined_are_left_out():
    assert iou_figures(np.zeros((0, 3), dtype=np.int64)) == {}
    assert iou_figures(np.array([[0, 0, 0]])) == {"miou": 100.0}


def test_large_counts_are_added_without_rounding():
    assert iou_figures(np.array([[2**53, 2**53, 2**53], [1, 1, 1]])) == {"ciou": 100.0, "miou": 100.0}


@pytest.mark.parametrize(
    ("pred", "truth", "given"),
    [
        (MASK.astype(np.uint8), MASK, r"uint8 \[2, 3\], the truth bool \[2, 3\]"),
        (MASK, MASK.astype(int), r"bool \[2, 3\], the truth int64 \[2, 3\]"),
        (MASK.T, MASK, r"bool \[3, 2\], the truth bool \[2, 3\]"),
        (MASK[None], MASK[None], r"bool \[1, 2, 3\], the truth bool \[1, 2, 3\]"),
    ],
)
def test_wrong_masks_are_refused(pred, truth, given):
    counts = MaskCounts()
    with pytest.raises(ValueError, match=r"masks must be bool \[H, W\] of one size, but the prediction is " + given):
        counts.update(pred, truth)
    assert len(counts.state()) == 0


def test_state_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"the state must have shape \[N, 3\], but got \[2, 4\]"):
        MaskCounts().add_state(np.zeros((2, 4), dtype=np.int64))
