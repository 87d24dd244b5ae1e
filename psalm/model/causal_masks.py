"""Causal attention masks made beforehand.

A language model of transformers that is given none looks for packed sequences to make its own, which waits for the
device. Its configuration says what its layers attend to: everything before, or a window.
"""

import math

import torch
from torch import Tensor
from transformers import PreTrainedConfig

FULL, SLIDING = "full_attention", "sliding_attention"
"""Names that transformers gives to what a layer attends to."""


class CausalMasks:
    """The masks of one language model, equal to those that it would make for sequences without padding.

    Args:
        config: the language model's.

    Raises:
        ValueError: some of its layers attend in another way than causally to everything or to a window.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        settings = config.to_dict()
        self.window: int | None = settings.get("sliding_window")
        self.kinds = tuple(dict.fromkeys(settings.get("layer_types") or ()))
        """Of models whose layers differ; the others have a window, or have none, in all layers."""
        if other := [kind for kind in self.kinds if kind not in (FULL, SLIDING)]:
            raise ValueError(
                f"the language model's layers must have {FULL} or {SLIDING}, but {config.model_type} has "
                f"{', '.join(other)}; use another one"
            )

    def __call__(self, embeddings: Tensor) -> Tensor | dict[str, Tensor]:
        """The masks of embeddings [B, T, D]: one [B, 1, T, T] of 0 and -inf, or one for each kind of layer."""
        if SLIDING not in self.kinds:
            return _mask(embeddings, None if self.kinds else self.window)
        return {kind: _mask(embeddings, self.window if kind == SLIDING else None) for kind in self.kinds}


def _mask(embeddings: Tensor, window: int | None) -> Tensor:
    B, T, _ = embeddings.shape
    mask = torch.full((T, T), -math.inf, dtype=embeddings.dtype, device=embeddings.device)
    causal = mask.triu(1)
    if window is not None:
        causal += mask.tril(-window)
    return causal.expand(B, 1, T, T)
