"""What the predictor says after one of its layers."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """Masks and scores of the seg queries, after one layer of the predictor.

    Legend: B batch, Q seg queries, C classes with background last, K_i regions of image i, H W size of the masks.
    Scores of a kind that was not asked for are None.
    """

    masks: Tensor
    """Mask logits [B, Q, H, W], at stride 4."""
    class_logits: Tensor | None = None
    """[B, Q, C]."""
    seg_logits: Tensor | None = None
    """[B, Q, 1]: does the query match the expression."""
    region_logits: list[Tensor] | None = None
    """Per image [K_i, Q]: does the query match the region."""
