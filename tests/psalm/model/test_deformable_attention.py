import math

import pytest
import torch
from torch import Tensor

from psalm.model.deformable_attention import (
    MultiScaleDeformableAttention,
    compass_rose,
    multi_scale_deformable_attention,
)

SHAPES = [(3, 4), (2, 3), (1, 2)]


def naive_attention(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Equation 3 of Deformable DETR, one number at a time."""
    B, K, M, L, P, _ = locations.shape
    rows = []
    for b, k, m in ((b, k, m) for b in range(B) for k in range(K) for m in range(M)):
        total = value.new_zeros(value.shape[-1])
        for level in range(L):
            height, width = shapes[level]
            start = sum(h * w for h, w in shapes[:level])
            for p in range(P):
                x, y = locations[b, k, m, level, p] * locations.new_tensor([width, height]) - 0.5
                left, top = math.floor(x.item()), math.floor(y.item())
                for row in (top, top + 1):
                    for column in (left, left + 1):
                        if 0 <= row < height and 0 <= column < width:
                            share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * weights[b, k, m, level, p]
                            total = total + share * value[b, start + row * width + column, m]
        rows.append(total)
    return torch.stack(rows).view(B, K, M * value.shape[-1])


def random_inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 values, locations (about a third of them outside the map) and weights that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    positions = sum(height * width for height, width in SHAPES)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.double().requires_grad_()

    value = leaf(torch.randn(2, positions, 2, 3, generator=generator))
    locations = leaf(torch.rand(2, 4, 2, len(SHAPES), 2, 2, generator=generator) * 1.8 - 0.4)
    weights = leaf(torch.rand(2, 4, 2, len(SHAPES), 2, generator=generator))
    return value, locations, weights


@pytest.mark.golden("msda")
def test_golden_msda_with_gradients(golden):
    inputs = golden.under("input.")
    names = ("value", "sampling_locations", "attention_weights")
    leaves = [inputs[name].clone().requires_grad_() for name in names]
    value, locations, weights = leaves
    shapes = [(height, width) for height, width in golden.config["shapes"]]
    assert shapes == [tuple(shape) for shape in inputs["spatial_shapes"].tolist()]
    output = multi_scale_deformable_attention(value, shapes, locations, weights)
    golden.close(output, "output.out")
    output.backward(inputs["grad_out"])
    for name, leaf in zip(names, leaves, strict=True):
        golden.close(leaf.grad, f"output.grad_{name}")


def test_values_and_gradients_equal_a_naive_float64_loop():
    value, locations, weights = random_inputs()
    assert ((locations < 0) | (locations > 1)).any(-1).float().mean() > 0.2
    ours = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    theirs = naive_attention(value, SHAPES, locations, weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name, mine, expected in zip(
        ("value", "locations", "weights"),
        torch.autograd.grad(ours, (value, locations, weights), upstream),
        torch.autograd.grad(theirs, (value, locations, weights), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_equal_finite_differences():
    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attention(value, SHAPES, locations, weights)

    assert torch.autograd.gradcheck(attend, random_inputs(seed=2), eps=1e-6, atol=1e-6)


def test_half_precision_values_are_sampled_at_exact_locations():
    ramp = torch.arange(512.0).view(1, 512, 1, 1).bfloat16()
    locations = torch.tensor([300.5, 301.5, 302.5]).div(512).view(1, 3, 1, 1, 1, 1).repeat(1, 1, 1, 1, 1, 2)
    locations[..., 1] = 0.5
    sampled = multi_scale_deformable_attention(ramp, [(1, 512)], locations, torch.ones(1, 3, 1, 1, 1).bfloat16())
    assert sampled.dtype == torch.bfloat16
    assert torch.equal(sampled.flatten(), ramp.flatten()[300:303])


def test_shapes_that_do_not_cover_the_values_are_refused():
    value, locations, weights = random_inputs()
    with pytest.raises(ValueError, match=r"\[\(3, 4\), \(2, 3\)\] must name 3 levels with 20 positions"):
        multi_scale_deformable_attention(value, SHAPES[:2], locations, weights)


def test_compass_rose_points_each_head_in_its_own_direction():
    rose = compass_rose(n_heads=8, n_levels=2, n_points=3)
    nearest = [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]
    torch.testing.assert_close(rose[:, 0, 0], torch.tensor(nearest, dtype=torch.float32), rtol=0, atol=1e-6)
    torch.testing.assert_close(rose[:, 0, 2], 3 * rose[:, 0, 0])
    assert torch.equal(rose[:, 0], rose[:, 1])


def test_module_starts_as_the_mean_over_the_compass_rose_whatever_the_query():
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(hidden_dim=8, n_levels=3, n_heads=4, n_points=2).double()
    torch.testing.assert_close(module.sampling_offsets.bias.view(4, 3, 2, 2), compass_rose(4, 3, 2).double())
    assert not module.sampling_offsets.weight.any()
    values = torch.randn(1, 20, 8, dtype=torch.float64)
    references = torch.tensor([[[0.3, 0.6]]], dtype=torch.float64)
    offsets = compass_rose(4, 3, 2).double()[None, None]
    sizes = torch.tensor([[width, height] for height, width in SHAPES], dtype=torch.float64)
    locations = references[:, :, None, None, None] + offsets / sizes[:, None]
    uniform = torch.full((1, 1, 4, 3, 2), 1 / 6, dtype=torch.float64)
    sampled = naive_attention(module.value_proj(values).view(1, 20, 4, 2), SHAPES, locations, uniform)
    for query in torch.randn(2, 1, 1, 8, dtype=torch.float64):
        torch.testing.assert_close(module(query, references, values, SHAPES), module.output_proj(sampled))


def test_softmax_runs_over_levels_and_points_together():
    module = MultiScaleDeformableAttention(hidden_dim=4, n_levels=3, n_heads=2, n_points=2)
    torch.nn.init.normal_(module.attention_weights.weight)
    torch.nn.init.zeros_(module.sampling_offsets.bias)
    with torch.no_grad():
        module.value_proj.weight.zero_()
        module.value_proj.bias.fill_(1)
        module.output_proj.weight.copy_(torch.eye(4))
    values, centre = torch.zeros(1, 6 + 6 + 6, 4), torch.full((1, 1, 2), 0.5)
    attended = module(torch.randn(1, 5, 4), centre.expand(1, 5, 2), values, [(2, 3)] * 3)
    torch.testing.assert_close(attended, torch.ones(1, 5, 4))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((100, 4, 8, 4), "hidden_dim 100 is not divisible by n_heads 8; the nearest allowed hidden_dim: 96 and 104"),
        ((5, 4, 8, 4), "hidden_dim 5 is not divisible by n_heads 8; the nearest allowed hidden_dim: 8"),
        ((64, 4, 0, 4), "n_heads must be at least 1, but got 0"),
        ((64, 4, 8, 0), "n_points must be at least 1, but got 0"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        MultiScaleDeformableAttention(*sizes)
