"""What is counted on fake tensors against the same step on real ones."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from psalm.model.activations import LiveMemory, StepSizes, measured_step, step_activations
from psalm.model.configuration import PsalmConfig
from psalm.model.freezing import set_trainable
from psalm.model.language_model.llava_phi import PsalmForSegmentation

PHI = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 64,
}
SIZES = StepSizes(
    images=2, image_size=96, prompt_tokens=40, classes=5, name_tokens=3, prompt_length=33 + 5 * 3, masks=4
)


def tiny(tower: dict[str, Any], **changes: Any) -> PsalmConfig:
    return PsalmConfig(**tower, text_config=PHI, mm_n_heads=2, mm_n_points=2, **{"mm_hidden_dim": 16, **changes})


def test_memory_is_counted_while_it_is_alive() -> None:
    with LiveMemory() as memory:
        first = torch.zeros(100)
        view = first[10:]
        second = torch.zeros(50)
        assert memory.live == 600
        del first
        assert memory.live == 600, "a view keeps its storage"
        del view
        third = torch.zeros(20)
    assert (memory.live, memory.peak) == (280, 600)
    del second, third
    assert memory.live == 0


def test_what_was_there_before_does_not_count() -> None:
    weight = torch.zeros(100)
    with LiveMemory([weight]) as memory:
        rows = [weight.view(10, 10), weight + 1]
    assert memory.live == 400
    assert len(rows) == 2


def test_saved_tensors_and_gradients_of_a_step() -> None:
    """Worked out by hand: an 8 x 8 layer, its ReLU, 4 rows, float32; the peak is in the backward pass."""
    layer = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU())
    rows = torch.ones(4, 8)
    weight = layer[0].weight
    weight.grad = torch.zeros_like(weight)
    with LiveMemory([weight, weight.grad, rows]) as memory:
        result = layer(rows)
        # The linear layer's result dies: ReLU keeps its own.
        assert memory.live == 4 * 8 * 4
        result.sum().backward()
    # ReLU's result, the sum, gradients of both (one number, expanded), of ReLU's input, and of the weight.
    assert memory.peak == 4 * 8 * 4 + 4 + 4 + 4 * 8 * 4 + 8 * 8 * 4


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("projectors_only", [False, True])
def test_fake_tensors_take_what_real_ones_take(
    tiny_tower: dict[str, Any], projectors_only: bool, gradient_checkpointing: bool
) -> None:
    config = tiny(tiny_tower)
    model = PsalmForSegmentation(config)
    set_trainable(model, tune_mm_mlp_adapter=projectors_only)
    model.train()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    if gradient_checkpointing:
        model.activation_checkpointing_enable()
    real = measured_step(model, SIZES.batch(torch.bfloat16))
    fake = step_activations(
        config, SIZES, projectors_only=projectors_only, gradient_checkpointing=gradient_checkpointing
    )
    assert fake == pytest.approx(real, rel=0.001)  # matching alone is not the same


def test_a_crowded_image_has_more_masks_than_queries(tiny_tower: dict[str, Any]) -> None:
    config = tiny(tiny_tower)
    few, many = (step_activations(config, replace(SIZES, masks=masks)) for masks in (4, config.num_queries + 5))
    assert many > few


def test_sizes_are_those_of_a_batch() -> None:
    batch = SIZES.batch(torch.float32)
    assert batch["pixel_values"].shape == (2, 3, 96, 96)
    assert [masks.shape for masks in batch["mask_labels"]] == [(4, 96, 96)] * 2
    assert StepSizes.of(batch) == SIZES


def test_a_region_counts_as_a_class_of_one_token() -> None:
    batch = SIZES.batch(torch.float32)
    batch["region_masks"] = [torch.zeros(regions, 96, 96, dtype=torch.bool) for regions in (2, 3)]
    del batch["prompt_ids"], batch["prompt_mask"]
    assert StepSizes.of(batch) == replace(SIZES, classes=3, name_tokens=1)
