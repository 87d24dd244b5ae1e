"""Splicing against a loop over tokens that is as plain as can be."""

import pytest
import torch
from torch import Tensor

from psalm.constants import CLS_TOKEN_INDEX as CLS
from psalm.constants import IMAGE_TOKEN_INDEX as IMAGE
from psalm.constants import REGION_TOKEN_INDEX as REGION
from psalm.constants import SEG_TOKEN_INDEX as SEG
from psalm.model.multimodal_inputs import Layout, masked_mean, plan, splice, take

D = 5
PROMPTS = [
    [3, 4, IMAGE, 5, CLS, 6, CLS, 7, CLS, SEG, 8],
    [IMAGE, CLS, CLS, 9, 9, 9, CLS, 2, 2, 2, 2, SEG],
    [SEG, CLS, 1, CLS, IMAGE, CLS],
]
CLASS_LENGTHS = [[2, 1, 3], [1, 1, 1], [3, 2, 1]]
IMAGE_LENGTHS = [4, 3, 2]  # e.g. a shorter run of deformable tokens after the same number of image tokens


def make(padding_side: str = "right") -> tuple[Tensor, Tensor, dict[int, Tensor], Tensor, dict[int, Tensor]]:
    B, L = len(PROMPTS), max(map(len, PROMPTS))
    ids, attended = torch.zeros(B, L, dtype=torch.long), torch.zeros(B, L, dtype=torch.bool)
    for row, prompt in enumerate(PROMPTS):
        places = slice(0, len(prompt)) if padding_side == "right" else slice(L - len(prompt), L)
        ids[row, places] = torch.tensor(prompt)
        attended[row, places] = True
    masks = {
        IMAGE: torch.arange(4) < torch.tensor(IMAGE_LENGTHS)[:, None, None],
        CLS: torch.arange(3) < torch.tensor(CLASS_LENGTHS)[..., None],
        SEG: torch.ones(B, 1, 2, dtype=torch.bool),
    }
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(B, L, D, generator=generator)
    embeddings = {sentinel: torch.randn(*mask.shape, D, generator=generator) for sentinel, mask in masks.items()}
    return ids, attended, masks, text, embeddings


def naive(
    ids: Tensor, attended: Tensor, masks: dict[int, Tensor], text: Tensor, embeddings: dict[int, Tensor]
) -> list[tuple[Tensor, dict[int, list[list[int]]]]]:
    """Per prompt: the sequence of embeddings, and for each sentinel's occurrences the positions of their tokens."""
    results = []
    for row in range(len(ids)):
        sequence: list[Tensor] = []
        positions: dict[int, list[list[int]]] = {sentinel: [] for sentinel in masks}
        for column in range(ids.shape[1]):
            if not attended[row, column]:
                continue
            index = int(ids[row, column])
            if index >= 0:
                sequence.append(text[row, column])
                continue
            occurrence = len(positions[index])
            positions[index].append([])
            for token in range(masks[index].shape[2]):
                if masks[index][row, occurrence, token]:
                    positions[index][-1].append(len(sequence))
                    sequence.append(embeddings[index][row, occurrence, token])
        results.append((torch.stack(sequence), positions))
    return results


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("slack", [None, 3])
def test_equals_a_loop_over_tokens(padding_side: str, slack: int | None) -> None:
    ids, attended, masks, text, embeddings = make(padding_side)
    expected = naive(ids, attended, masks, text, embeddings)
    longest = max(len(sequence) for sequence, _ in expected)
    layout = plan(ids, attended, masks, None if slack is None else longest + slack)
    spliced = splice(layout, text, embeddings)
    assert layout.length == spliced.shape[1] == longest + (slack or 0)
    for row, (sequence, positions) in enumerate(expected):
        assert int(layout.lengths[row]) == len(sequence)
        assert torch.equal(spliced[row, : len(sequence)], sequence)
        assert not spliced[row, len(sequence) :].any()
        for sentinel, runs in positions.items():
            for occurrence, run in enumerate(runs):
                found = layout.inserted[sentinel][row, occurrence]
                assert found[masks[sentinel][row, occurrence]].tolist() == run
                assert (found[~masks[sentinel][row, occurrence]] == layout.length).all()


def test_take_reads_back_what_was_spliced() -> None:
    ids, attended, masks, text, embeddings = make()
    layout = plan(ids, attended, masks)
    spliced = splice(layout, text, embeddings)
    for sentinel, mask in masks.items():
        expected = embeddings[sentinel].masked_fill(~mask[..., None], 0)
        assert torch.equal(take(spliced, layout.inserted[sentinel]), expected)


def test_padding_reaches_neither_values_nor_gradients() -> None:
    ids, attended, masks, text, embeddings = make()
    clean = splice(plan(ids, attended, masks), text, embeddings)
    text[~attended] = torch.nan
    for sentinel, mask in masks.items():
        embeddings[sentinel][~mask] = torch.nan
    text.requires_grad_()
    layout = plan(ids, attended, masks)
    spliced = splice(layout, text, embeddings)
    assert torch.equal(spliced, clean)
    take(spliced, layout.inserted[CLS]).sum().backward()
    assert text.grad is not None
    assert not text.grad.any()


def test_masked_mean_ignores_padding_and_gives_zero_for_nothing() -> None:
    values = torch.tensor([[[1.0], [3.0], [torch.nan]], [[torch.nan], [torch.nan], [torch.nan]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(values, mask).tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize("change", [("more sentinels", CLS), ("fewer sentinels", 1)])
def test_as_many_sentinels_as_class_names(change: tuple[str, int]) -> None:
    ids, attended, masks, _, _ = make()
    ids[0, 4 if change[0] == "fewer sentinels" else 0] = change[1]
    with pytest.raises(RuntimeError, match="one <cls> for each of what is put there, but the numbers differ"):
        plan(ids, attended, masks)


def test_refuses_a_sentinel_that_nothing_is_put_at() -> None:
    ids, attended, masks, _, _ = make()
    ids[0, 0] = REGION
    with pytest.raises(RuntimeError, match="a prompt has a sentinel that nothing is put at"):
        plan(ids, attended, masks)


def test_a_layout_knows_where_text_stands() -> None:
    ids, attended, masks, text, embeddings = make()
    layout: Layout = plan(ids, attended, masks)
    spliced = splice(layout, text, embeddings)
    is_text = attended & (ids >= 0)
    assert torch.equal(take(spliced, layout.text)[is_text], text[is_text])
    assert (layout.text[~is_text] == layout.length).all()
