"""Splices image, query and prompt embeddings into the LLM's input: pure functions on tensors, no loop over tokens.

A sentinel in ``input_ids`` stands for a run of embeddings. ``plan`` computes where every token of the spliced sequence
comes to stand; ``splice`` puts embeddings there; ``take`` reads hidden states from there. Sequences are padded at their
end, so a causal LLM needs no padding mask: what is valid never sees what is not.

Letters: B batch, L prompt length, J sentinels of one kind in a prompt, W tokens that stand at one sentinel at most,
T spliced length, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from psalm.constants import SENTINELS

_NAMES = {index: name for name, index in SENTINELS.items()}


@dataclass(frozen=True)
class Layout:
    """Where tokens stand in the spliced sequence; a token that stands nowhere (padding) has position ``length``."""

    length: int  # T
    lengths: Tensor  # int64 [B], valid tokens of each sequence
    text: Tensor  # int64 [B, L]
    inserted: dict[int, Tensor]  # sentinel -> int64 [B, J, W]


def plan(
    input_ids: Tensor, attention_mask: Tensor, inserted: Mapping[int, Tensor], length: int | None = None
) -> Layout:
    """Positions of all tokens once every sentinel is replaced by its run of embeddings.

    Args:
        input_ids: int64 [B, L], text ids and sentinels (negative).
        attention_mask: bool [B, L], False at padding.
        inserted: for each sentinel bool [B, J, W]: the j-th one of a prompt becomes the marked ones of W embeddings.
        length: T, at least the longest sequence; None reads it from the tensors, which costs a GPU one sync.

    Raises:
        RuntimeError: a prompt's sentinels are others, or not as many, as what is to be inserted (on a GPU the assertion
            fails on the device).
    """
    found = {sentinel: (input_ids == sentinel) & attention_mask for sentinel in inserted}
    rank = {s: (found[s].cumsum(1) - 1).clamp(0, mask.shape[1] - 1) for s, mask in inserted.items()}
    width = (attention_mask & (input_ids >= 0)).long()
    known = sum(found.values(), start=torch.zeros_like(attention_mask))
    _require((known == (attention_mask & (input_ids < 0))).all(), "a prompt has a sentinel that nothing is put at")
    for sentinel, mask in inserted.items():
        equal = (found[sentinel].sum(1) == mask.any(-1).sum(1)).all()
        _require(equal, f"a prompt needs one {_NAMES[sentinel]} for each of what is put there, but the numbers differ")
        width = torch.where(found[sentinel], mask.sum(-1).gather(1, rank[sentinel]), width)
    ends = width.cumsum(1)
    starts = ends - width
    T = int(ends[:, -1].max()) if length is None else length

    positions = {}
    for sentinel, mask in inserted.items():
        B, J, _ = mask.shape
        column = rank[sentinel].masked_fill(~found[sentinel], J)
        begin = starts.new_zeros(B, J + 1).scatter(1, column, starts)[:, :J]
        positions[sentinel] = (begin[..., None] + mask.cumsum(-1) - 1).masked_fill(~mask, T)
    text = starts.masked_fill(~attention_mask | (input_ids < 0), T)
    return Layout(T, ends[:, -1], text, positions)


def _require(condition: Tensor, message: str) -> None:
    """Raises unless the bool scalar holds; on a GPU later, without waiting for it."""
    torch._assert_async(condition, message)


def splice(layout: Layout, text: Tensor, inserted: Mapping[int, Tensor]) -> Tensor:
    """The LLM's input embeddings [B, T, D] from the text's [B, L, D] and each sentinel's [B, J, W, D]; padding is 0."""
    sources = [text, *(inserted[sentinel].flatten(1, 2) for sentinel in layout.inserted)]
    targets = [layout.text, *(positions.flatten(1) for positions in layout.inserted.values())]
    source = torch.cat(sources, 1)
    target = torch.cat(targets, 1)[..., None].expand_as(source)
    B, _, D = source.shape
    # One column more than T takes what stands nowhere.
    return source.new_zeros(B, layout.length + 1, D).scatter(1, target, source)[:, : layout.length]


def take(hidden: Tensor, positions: Tensor) -> Tensor:
    """Hidden states at ``positions``: [B, T, D], int64 [B, ...] -> [B, ..., D]; 0 where a position is nowhere."""
    B, T, D = hidden.shape
    nowhere = (positions >= T)[..., None]
    index = positions.clamp(max=T - 1).flatten(1)[..., None].expand(B, -1, D)
    return hidden.gather(1, index).view(*positions.shape, D).masked_fill(nowhere, 0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the marked of W values: [..., W, D], bool [..., W] -> [..., D]; 0 where none is marked."""
    total = values.masked_fill(~mask[..., None], 0).sum(-2)
    return total / mask.sum(-1, keepdim=True).clamp(min=1)
