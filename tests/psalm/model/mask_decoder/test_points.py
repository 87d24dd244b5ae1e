"""Random points: where they come from and what is read at them."""

import torch
import torch.nn.functional as F

from psalm.model.mask_decoder.points import KeyedPoints, add_border, sample_masks, uncertain_points


def test_points_of_an_image_do_not_depend_on_the_batch():
    together = KeyedPoints([11, 2**62 + 1])("candidates", 3, [2, 4], 5)
    first = KeyedPoints([11])("candidates", 3, [2], 5)
    second = KeyedPoints([2**62 + 1])("candidates", 3, [4], 5)
    torch.testing.assert_close(together, torch.cat([first, second]), atol=0, rtol=0)


def test_every_key_purpose_and_layer_has_its_own_stream():
    draws = [
        KeyedPoints([key])(purpose, layer, [1], 4)
        for key in (0, 1)
        for purpose in ("matching", "candidates", "uniform")
        for layer in (0, 1)
    ]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws)
    assert all(((draw >= 0) & (draw < 1)).all() for draw in draws)


def test_masks_are_read_as_grid_sample_reads_them():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 7, 10, generator=generator) > 0.5
    index = torch.tensor([2, 0, 2, 1])
    points = torch.rand(4, 200, 2, generator=generator)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.999, 0.001]])
    expected = F.grid_sample(masks[index][:, None].float(), 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]
    torch.testing.assert_close(sample_masks(add_border(masks), index, points), expected, atol=1e-5, rtol=0)


def test_no_masks_no_values():
    points = torch.rand(0, 5, 2)
    assert sample_masks(
        add_border(torch.zeros(0, 4, 4, dtype=torch.bool)), torch.zeros(0, dtype=torch.int64), points
    ).shape == (
        0,
        5,
    )


def test_candidates_nearest_to_the_boundary_are_kept():
    ramp = torch.linspace(-4, 4, 9).expand(1, 9, 9)  # zero at x = 0.5
    x = torch.tensor([0.1, 0.9, 0.45, 0.5, 0.7])
    candidates = torch.stack([x, torch.full_like(x, 0.5)], dim=1)[None]
    kept = uncertain_points(ramp, candidates, 2)
    torch.testing.assert_close(kept[0, :, 0].sort().values, torch.tensor([0.45, 0.5]))
