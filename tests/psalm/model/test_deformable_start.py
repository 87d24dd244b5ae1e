"""A deformable projector that starts with zero tokens: it moves a baseline less than a fresh one, and it learns."""

from typing import Any

import torch
from torch import Tensor

from psalm.constants import CLS_TOKEN_INDEX, IMAGE_TOKEN_INDEX, SEG_TOKEN_INDEX
from psalm.model.configuration import PsalmConfig
from psalm.model.deformable_start import start_with_zero_tokens
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.multimodal_projector.deformable_alignment import MultiScaleDeformableCrossAttentionAlignment

S, CLASSES, WORDS, SEEDS = 96, 8, 3, 4
LANGUAGE_MODEL = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
BRANCH = {"mm_hidden_dim": 16, "mm_n_heads": 4, "mm_n_points": 2}


def projector() -> MultiScaleDeformableCrossAttentionAlignment:
    torch.manual_seed(0)
    return MultiScaleDeformableCrossAttentionAlignment([4, 8, 16, 32], 24, 16, 4, 2, "auto")


def gathered(branch: MultiScaleDeformableCrossAttentionAlignment, queries: Tensor) -> Tensor:
    features = {f"res{level}": torch.randn(2, 2**level, 2 ** (6 - level), 2 ** (6 - level)) for level in (2, 3, 4, 5)}
    return branch(queries, torch.ones(queries.shape[:2], dtype=torch.bool), features, None)


def test_every_token_is_zero_and_nothing_else_has_changed() -> None:
    branch = projector()
    before = {name: tensor.clone() for name, tensor in branch.state_dict().items()}
    start_with_zero_tokens(branch)
    assert not gathered(branch, 9 * torch.randn(2, 5, 24)).any()
    after = branch.state_dict()
    assert {name for name in after if not torch.equal(before[name], after[name])} == {"output_proj.weight"}


def test_gradients_reach_output_proj_first_then_what_samples_then_the_queries() -> None:
    branch = projector()
    start_with_zero_tokens(branch)
    queries, wanted = torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    optimizer = torch.optim.SGD(branch.parameters(), lr=1e-3)
    reached = []
    for _ in range(3):
        optimizer.zero_grad()
        (gathered(branch, queries) - wanted).pow(2).sum().backward()
        reached.append({name for name, each in branch.named_parameters() if each.grad is not None and each.grad.any()})
        optimizer.step()
    every = {name for name, _ in branch.named_parameters()}
    assert reached[0] == {"output_proj.weight", "output_proj.bias"}
    # Deformable DETR lets the queries move the samples only once it has learnt to.
    assert reached[1] == every - {"query_proj.weight", "query_proj.bias"}
    assert reached[2] == every


def model(tower: dict[str, Any], seed: int, **settings: Any) -> PsalmForSegmentation:
    torch.manual_seed(seed)
    return PsalmForSegmentation(PsalmConfig(**{**tower, "text_config": LANGUAGE_MODEL, **BRANCH, **settings}))


def batch(seed: int) -> dict[str, Any]:
    """One image of noise, and a prompt with so many classes."""
    generator = torch.Generator().manual_seed(seed)
    ids = [5, 6, IMAGE_TOKEN_INDEX, 7, *[CLS_TOKEN_INDEX, 8] * CLASSES, 9, SEG_TOKEN_INDEX, 10]
    masks = torch.zeros(2, S, S, dtype=torch.bool)
    masks[0, :50], masks[1, 50:] = True, True
    return {
        "pixel_values": torch.randn(1, 3, S, S, generator=generator),
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.bool),
        "prompt_ids": torch.randint(3, 32, (1, CLASSES, WORDS), generator=generator),
        "prompt_mask": torch.ones(1, CLASSES, WORDS, dtype=torch.bool),
        "mask_labels": [masks],
        "class_labels": [torch.tensor([0, 1])],
        "random_keys": torch.tensor([seed]),
    }


@torch.no_grad()
def seg_states(of: PsalmForSegmentation, seed: int) -> Tensor:
    """What the language model makes of the segmentation queries."""
    heard: list[Tensor] = []
    with_hook = of.seg_query_projector.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    of.eval()(**batch(seed))
    with_hook.remove()
    return heard[0]


def test_zero_tokens_move_the_baseline_less_than_fresh_ones(tiny_tower: dict[str, Any]) -> None:
    moved = {"fresh": 0.0, "zero": 0.0}
    for seed in range(SEEDS):
        baseline = model(tiny_tower, seed, mm_projector_type="swin_conv")
        adapted = model(tiny_tower, SEEDS + seed)
        adapted.load_state_dict(baseline.state_dict(), strict=False)
        before = seg_states(baseline, seed)
        moved["fresh"] += float((seg_states(adapted, seed) - before).abs().mean())
        start_with_zero_tokens(adapted.model.mm_projector_deformable)
        moved["zero"] += float((seg_states(adapted, seed) - before).abs().mean())
    assert 0 < moved["zero"] < 0.6 * moved["fresh"]


def test_it_learns_from_this_start(tiny_tower: dict[str, Any]) -> None:
    trained = model(tiny_tower, 0)
    branch = trained.model.mm_projector_deformable
    start_with_zero_tokens(branch)
    trained.requires_grad_(False)
    branch.requires_grad_(True)
    before = {name: parameter.detach().clone() for name, parameter in branch.named_parameters()}
    optimizer = torch.optim.AdamW(branch.parameters(), lr=1e-2, weight_decay=0)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = trained.eval()(**batch(0)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not [name for name, parameter in branch.named_parameters() if torch.equal(parameter, before[name])]
