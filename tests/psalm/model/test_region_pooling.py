"""Region pooling: parity with the original, determinism, and the mean over points as grid_sample gives it."""

import pytest
import torch
import torch.nn.functional as F

from psalm.model.region_pooling import KeyedRegionDraws, pad_regions, pool_regions, region_points, unpad_regions

KEYS = torch.tensor([3, 4])


class Replay:
    """Hands out the choices that the original drew, in its order: only regions with another number of pixels draw."""

    def __init__(self, golden):
        self.draws = [(draw["op"], golden.tensors[draw["key"]]) for draw in golden.meta["draws"]]

    def __call__(self, image, region, num_pixels, num_points):
        everything = torch.arange(num_pixels)
        if num_pixels == num_points:
            return everything
        operation, drawn = self.draws.pop(0)
        if num_pixels > num_points:
            assert operation == "randperm"
            return drawn[:num_points]
        assert operation == "randint"
        return torch.cat([everything, drawn])


@pytest.mark.golden("region_pooling")
def test_golden_region_pooling(golden):
    features = golden.tensors["input.features"]
    masks = [golden.tensors[f"input.masks.{i}"] for i in range(len(features))]
    num_points = golden.config["num_sample_point"]
    points = region_points(masks, num_points, Replay(golden))
    golden.close(points.flip(-1), "intermediate.points_yx")
    pooled = pool_regions(features, masks, num_points=num_points, draws=Replay(golden))
    for i, regions in enumerate(pooled):
        golden.close(regions[:, None], f"output.region_features.{i}")


def regions(counts=(2, 1), seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(counts), 25, 6, generator=generator)
    masks = [torch.rand(n, 12, 16, generator=generator) > 0.7 for n in counts]
    return features, masks


def test_mean_of_bilinear_samples():
    features, masks = regions()
    draws = KeyedRegionDraws(KEYS.tolist())
    points = region_points(masks, 9, draws).split([2, 1])
    pooled = pool_regions(features, masks, KEYS, num_points=9)
    for tokens, where, result in zip(features, points, pooled, strict=True):
        grid_map = tokens.T.reshape(1, 6, 5, 5)
        sampled = F.grid_sample(grid_map, 2 * where[None] - 1, align_corners=True)[0]
        torch.testing.assert_close(result, sampled.mean(-1).T)


def test_points_lie_in_their_region_once_if_there_are_enough_pixels():
    _, masks = regions()
    size = int(masks[0][0].sum())
    for num_points in (size - 5, size, size + 5):
        points = region_points([masks[0][:1]], num_points, KeyedRegionDraws([7]))[0]
        pixels = (points * torch.tensor([16, 12])).round().long()
        assert masks[0][0][pixels[:, 1], pixels[:, 0]].all()
        assert len(pixels.unique(dim=0)) == min(num_points, size)


def test_a_region_depends_on_its_own_key_and_number_only():
    features, masks = regions()
    together = pool_regions(features, masks, KEYS, num_points=8)
    torch.manual_seed(1)
    torch.testing.assert_close(pool_regions(features[1:], masks[1:], KEYS[1:], num_points=8), together[1:])
    torch.testing.assert_close(pool_regions(features, [masks[0][:1], masks[1]], KEYS, num_points=8)[0], together[0][:1])
    assert not torch.equal(pool_regions(features, masks, KEYS + 1, num_points=8)[0], together[0])


def test_image_without_regions_gives_none():
    features, masks = regions((0, 2))
    assert [tuple(pooled.shape) for pooled in pool_regions(features, masks, KEYS)] == [(0, 6), (2, 6)]
    features, masks = regions((0, 0))
    assert [tuple(pooled.shape) for pooled in pool_regions(features, masks, KEYS)] == [(0, 6), (0, 6)]


def test_padding_is_marked_and_taken_off_again():
    regions = [torch.tensor([[1.0, 2.0]]), torch.zeros(0, 2), torch.tensor([[3.0, 4.0], [5.0, 6.0]])]
    padded, mask = pad_regions(regions)
    assert padded.squeeze(2).tolist() == [[[1, 2], [0, 0]], [[0, 0], [0, 0]], [[3, 4], [5, 6]]]
    assert mask.squeeze(2).tolist() == [[True, False], [False, False], [True, True]]
    torch.testing.assert_close(unpad_regions(padded.squeeze(2), regions), regions, atol=0, rtol=0)


def test_type_and_gradient_are_the_features():
    features, masks = regions()
    features = features.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pool_regions(features, masks, KEYS)
    assert pooled[0].dtype == torch.bfloat16
    torch.testing.assert_close(pooled, [p.bfloat16() for p in pool_regions(features.float(), masks, KEYS)])
    sum(p.float().sum() for p in pooled).backward()
    assert features.grad.isfinite().all()
    torch.testing.assert_close(features.grad[0].float().sum(), torch.tensor(2 * 6.0), atol=0.05, rtol=0)


def test_what_cannot_be_pooled_is_refused():
    features, masks = regions()
    masks[0][1] = False
    with pytest.raises(ValueError, match="region 1 of image 0 in the batch is empty"):
        pool_regions(features, masks, KEYS)
    with pytest.raises(ValueError, match="needs a square feature map, but got 24 tokens"):
        pool_regions(features[:, :24], masks, KEYS)
    with pytest.raises(ValueError, match="give random_keys, or draws"):
        pool_regions(features, masks)
