import math

import pytest
import torch
from torch import Tensor

from psalm.model.deformable_attention import compass_rose
from psalm.model.multimodal_projector.deformable_alignment import (
    REFERENCE_POINTS,
    MultiScaleDeformableCrossAttentionAlignment,
)

CHANNELS = (4, 6, 8, 10)
SIZES = ((16, 16), (8, 8), (4, 4), (2, 2))  # an image of 64 x 64 pixels
LLM_DIM, HIDDEN_DIM = 12, 8
IMAGE_SIZES = torch.tensor([[64, 32], [48, 64]])


def aligner(reference_points: str = "center", shaken: bool = True) -> MultiScaleDeformableCrossAttentionAlignment:
    """A projector in float64; ``shaken`` out of its initial state, so that offsets and weights depend on the query."""
    torch.manual_seed(0)
    module = MultiScaleDeformableCrossAttentionAlignment(CHANNELS, LLM_DIM, HIDDEN_DIM, 2, 3, reference_points).double()
    if shaken:
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return module


def random_inputs(queries: int = 3) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    features = {
        f"res{level + 2}": torch.randn(2, channels, *size, generator=generator).double()
        for level, (channels, size) in enumerate(zip(CHANNELS, SIZES, strict=True))
    }
    mask = torch.ones(2, queries, dtype=torch.bool)
    mask[1, -1] = False
    return torch.randn(2, queries, LLM_DIM, generator=generator).double(), mask, features


def bilinear(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Value of [C, H, W] at (x, y) in [0, 1], zero outside."""
    channels, height, width = image.shape
    x, y = x * width - 0.5, y * height - 0.5
    total = image.new_zeros(channels)
    for row in (math.floor(y.item()), math.floor(y.item()) + 1):
        for column in (math.floor(x.item()), math.floor(x.item()) + 1):
            if 0 <= row < height and 0 <= column < width:
                total = total + (1 - (x - column).abs()) * (1 - (y - row).abs()) * image[:, row, column]
    return total


def naive_tokens(module, queries, mask, features, image_sizes) -> Tensor:
    """The projector as its description reads, one query, head, level and point at a time."""
    attention, heads = module.attention, module.n_heads
    tokens = torch.zeros_like(queries)
    for b, k in mask.nonzero().tolist():
        hidden = module.query_proj(queries[b, k])
        maps = []
        for level, name in enumerate(features):
            projected = module.level_proj[level](features[name][b].movedim(0, -1))
            maps.append(attention.value_proj(projected + module.level_embed[level]).movedim(-1, 0))
        height, width = (image_sizes[b] / 64).tolist()
        share = hidden.new_tensor([width, height])
        learned = module.reference_points == "learned"
        point = module.reference_proj(hidden).sigmoid() * share if learned else share / 2
        offsets = attention.sampling_offsets(hidden).view(heads, 4, module.n_points, 2)
        weights = attention.attention_weights(hidden).view(heads, -1).softmax(-1).view(heads, 4, module.n_points)
        parts = []
        for head in range(heads):
            part = slice(head * HIDDEN_DIM // heads, (head + 1) * HIDDEN_DIM // heads)
            total = hidden.new_zeros(HIDDEN_DIM // heads)
            for level, (rows, columns) in enumerate(SIZES):
                for p in range(module.n_points):
                    x = point[0] + offsets[head, level, p, 0] / columns
                    y = point[1] + offsets[head, level, p, 1] / rows
                    total = total + weights[head, level, p] * bilinear(maps[level][part], x, y)
            parts.append(total)
        token = module.output_proj(attention.output_proj(torch.cat(parts)))
        tokens = tokens.index_put((torch.tensor(b), torch.tensor(k)), token)
    return tokens


@pytest.mark.parametrize("reference_points", ["center", "learned"])
def test_tokens_and_gradients_equal_a_naive_float64_loop(reference_points):
    module = aligner(reference_points)
    queries, mask, features = random_inputs()
    leaves = {"queries": queries, **features, **dict(module.named_parameters())}
    for leaf in leaves.values():
        leaf.requires_grad_()
    ours = module(queries, mask, features, IMAGE_SIZES)
    theirs = naive_tokens(module, queries, mask, features, IMAGE_SIZES)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.autograd.grad(theirs, list(leaves.values()), upstream)
    actual = torch.autograd.grad(ours, list(leaves.values()), upstream)
    for name, mine, other in zip(leaves, actual, expected, strict=True):
        assert other.any(), f"{name} has no gradient"
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_equal_finite_differences_with_points_outside():
    module = aligner()
    torch.nn.init.normal_(module.attention.sampling_offsets.bias, std=8.0)
    queries, mask, features = random_inputs(queries=2)

    def tokens(queries: Tensor, res4: Tensor) -> Tensor:
        return module(queries, mask, {**features, "res4": res4}, IMAGE_SIZES)

    inputs = (queries.requires_grad_(), features["res4"].requires_grad_())
    assert torch.autograd.gradcheck(tokens, inputs, eps=1e-6, atol=1e-6)


def test_every_query_starts_at_the_compass_rose():
    module = aligner(shaken=False)
    offsets = module.attention.sampling_offsets
    torch.testing.assert_close(offsets.bias.view(2, 4, 3, 2), compass_rose(2, 4, 3).double())
    assert not offsets.weight.any()


@pytest.mark.parametrize("reference_points", REFERENCE_POINTS)
def test_padded_queries_are_zero_whatever_they_hold(reference_points):
    module = aligner(reference_points)
    queries, mask, features = random_inputs()
    queries[1, -1] = float("nan")
    tokens = module(queries, mask, features, IMAGE_SIZES)
    assert not tokens[1, -1].any()
    assert tokens[mask].isfinite().all()
    tokens.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters() if parameter.grad is not None)


def looked_at(module, features: dict[str, Tensor], queries: Tensor, image_sizes: Tensor | None, **choice) -> Tensor:
    """Mean (x, y) of the res2 pixels that the tokens of the first image depend on, in [0, 1]."""
    res2 = features["res2"].clone().requires_grad_()
    mask = torch.ones(queries.shape[:2], dtype=torch.bool)
    module(queries, mask, {**features, "res2": res2}, image_sizes, **choice)[0].sum().backward()
    rows, columns = res2.grad[0].abs().sum(0).nonzero().double().add(0.5).div(16).mean(0)
    return torch.stack((columns, rows))


def straight_ahead(reference_points: str) -> MultiScaleDeformableCrossAttentionAlignment:
    """A projector that samples at its reference points."""
    module = aligner(reference_points)
    torch.nn.init.zeros_(module.attention.sampling_offsets.weight)
    torch.nn.init.zeros_(module.attention.sampling_offsets.bias)
    return module


def test_center_is_the_middle_of_the_valid_area():
    queries, _, features = random_inputs()
    module = straight_ahead("center")
    assert looked_at(module, features, queries, IMAGE_SIZES).tolist() == [0.25, 0.5]
    assert looked_at(module, features, queries, None).tolist() == [0.5, 0.5]


def test_proposal_is_the_most_similar_pixel_of_res5_outside_the_padding():
    module = straight_ahead("proposal")
    _, _, features = random_inputs()
    hidden = torch.randn(HIDDEN_DIM, dtype=torch.float64)
    with torch.no_grad():
        module.level_embed.normal_(std=100)  # must not matter
        for projection in (module.level_proj[3], module.query_proj):
            projection.weight.zero_()
            projection.bias.zero_()
        module.level_proj[3].weight[:, 0] = hidden
        module.query_proj.bias.copy_(3 * hidden)
    features["res5"][0, 0] = torch.tensor([[-2.0, 5.0], [0.5, -3.0]])
    queries = torch.zeros(2, 1, LLM_DIM, dtype=torch.float64)
    assert looked_at(module, features, queries, None).tolist() == [0.75, 0.25]
    assert looked_at(module, features, queries, IMAGE_SIZES).tolist() == [0.25, 0.75]


@pytest.mark.parametrize("reference_points", REFERENCE_POINTS)
@pytest.mark.parametrize("from_other_image", [False, True])
def test_only_auto_asks_where_queries_come_from(reference_points, from_other_image):
    queries, mask, features = random_inputs()
    expected = reference_points if reference_points != "auto" else "proposal" if from_other_image else "center"
    module, plain = straight_ahead(reference_points), straight_ahead(expected)
    tokens = module(queries, mask, features, IMAGE_SIZES, from_other_image=from_other_image)
    assert torch.equal(tokens, plain(queries, mask, features, IMAGE_SIZES))


def test_learned_is_a_sigmoid_of_the_query_over_the_valid_area():
    module = straight_ahead("learned")
    queries, _, features = random_inputs()
    with torch.no_grad():
        module.reference_proj.weight.zero_()
        module.reference_proj.bias.copy_(torch.tensor([0.75, 0.25]).logit())
    torch.testing.assert_close(looked_at(module, features, queries, None), torch.tensor([0.75, 0.25]).double())
    torch.testing.assert_close(looked_at(module, features, queries, IMAGE_SIZES), torch.tensor([0.375, 0.25]).double())


def test_learned_starts_around_the_centre():
    module = aligner("learned", shaken=False)
    queries, _, _ = random_inputs(queries=50)
    points = module.reference_proj(module.query_proj(queries)).sigmoid()
    assert (points.mean(dim=(0, 1)) - 0.5).abs().max() < 0.1


def test_bfloat16_follows_its_weights_and_stays_close():
    module = aligner()
    queries, mask, features = random_inputs()
    expected = module(queries, mask, features, IMAGE_SIZES)
    tokens = module.bfloat16()(queries.float(), mask, {name: f.float() for name, f in features.items()}, IMAGE_SIZES)
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.double(), expected, rtol=0.1, atol=0.3)


@pytest.mark.parametrize("reference_points", REFERENCE_POINTS)
@pytest.mark.parametrize("from_other_image", [False, True])
def test_nothing_waits_for_the_device(reference_points, from_other_image):
    # Tensors without data cannot be read back: whatever would wait for a GPU raises here.
    queries, mask, features = random_inputs()
    features = {name: feature.to("meta") for name, feature in features.items()}
    given = (queries.to("meta"), mask.to("meta"), features, IMAGE_SIZES.to("meta"))
    tokens = aligner(reference_points).to("meta")(*given, from_other_image=from_other_image)
    assert tokens.shape == (2, 3, LLM_DIM)
