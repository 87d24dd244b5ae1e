"""Fills a model's tensors from a file's, one after the other, once the shapes of all of them are known to fit."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from psalm.model.key_report import KeyReport, folded
from psalm.model.weight_files import Weights

Rename = Callable[[str, Tensor], Mapping[str, Tensor]]
"""A tensor under its name in the file -> views of it, or itself, under the names of a model; none if it has no use."""

Explain = Callable[[str, Tensor, Tensor], str]
"""A name, the file's tensor, the model's -> what is added to the error that their shapes differ."""

COMPUTED = (".relative_position_index", ".rotary_emb.inv_freq")
"""Ends of the names of what follows from the architecture; older files hold it."""
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def outlines(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same shapes without numbers (meta); of a file, nothing but its header is read."""
    if isinstance(weights, Weights):
        return {name: torch.empty(shape, device="meta") for name, shape in weights.shapes().items()}
    return {name: weights[name].to("meta") for name in weights}


def no_explanation(name: str, theirs: Tensor, ours: Tensor) -> str:
    """Shapes say enough."""
    return ""


@torch.no_grad()
def fill(
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    rename: Rename,
    source: Path,
    *,
    optional: Callable[[str], bool],
    explain: Explain = no_explanation,
) -> KeyReport:
    """Copies a file's tensors into a model's, converted to its type; a model without memory (meta) is only checked.

    Args:
        own: the tensors to fill, by name.
        weights: the file's; of ``Weights`` each is read once, when it is copied.
        rename: see ``Rename``.
        source: where ``weights`` come from.
        optional: whether a name of ``own`` may be missing in the file.
        explain: see ``Explain``.

    Raises:
        ValueError: a shape differs (both are named), two of the file's names mean the same, or one that is not optional
            is missing; nothing has been changed then. Or a weight is not of ``WEIGHT_TYPES``.
    """
    places: dict[str, str] = {}  # the model's name -> the file's
    unused: list[str] = []
    computed: list[str] = []
    for name, outline in outlines(weights).items():
        fitting = {ours: view for ours, view in rename(name, outline).items() if ours in own}
        for ours, view in fitting.items():
            if ours in places:
                raise ValueError(f"{source}: {places[ours]} and {name} are both {ours}; leave one of them out")
            if view.shape != own[ours].shape:
                shapes = f"is {list(view.shape)} there, but {list(own[ours].shape)} in the model"
                raise ValueError(f"{source}: {name} {shapes}{explain(ours, view, own[ours])}")
            places[ours] = name
        if not fitting:
            (computed if name.endswith(COMPUTED) else unused).append(name)
    initial = [name for name in own if name not in places]
    if missing := [name for name in initial if not optional(name)]:
        raise ValueError(f"{source} lacks {len(missing)} weights: {', '.join(folded(missing))}")
    if not any(tensor.is_meta for tensor in own.values()):
        for name in dict.fromkeys(places.values()):
            _copy(name, rename(name, weights[name]), own, source)
    return KeyReport(source, tuple(places), tuple(unused), tuple(sorted(initial)), tuple(computed))


def _copy(name: str, views: Mapping[str, Tensor], own: Mapping[str, Tensor], source: Path) -> None:
    """What is read is gone when this ends, before the next tensor is read."""
    for ours, view in views.items():
        if ours not in own:
            continue
        if own[ours].is_floating_point() and view.dtype not in WEIGHT_TYPES:
            kind = str(view.dtype).removeprefix("torch.")
            raise ValueError(f"{source}: {name} holds {kind}, but weights must be float16, bfloat16 or float32")
        own[ours].copy_(view)
