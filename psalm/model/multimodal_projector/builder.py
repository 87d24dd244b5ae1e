"""Name to projector."""

from collections.abc import Sequence
from typing import Any, Literal, get_args, overload

from psalm.model.multimodal_projector.conv import SwinConvProjector
from psalm.model.multimodal_projector.deformable_alignment import (
    REFERENCE_POINTS,
    MultiScaleDeformableCrossAttentionAlignment,
    ReferencePoints,
)

__all__ = ["PROJECTOR_TYPES", "REFERENCE_POINTS", "ProjectorType", "ReferencePoints", "build_projector"]

ProjectorType = Literal["swin_conv", "deformable"]
PROJECTOR_TYPES: tuple[ProjectorType, ...] = get_args(ProjectorType)


@overload
def build_projector(
    mm_projector_type: Literal["swin_conv"], *, input_dim: int, out_dim: int, planes: int
) -> SwinConvProjector: ...


@overload
def build_projector(
    mm_projector_type: Literal["deformable"],
    *,
    feature_channels: Sequence[int],
    llm_dim: int,
    hidden_dim: int,
    n_heads: int,
    n_points: int,
    reference_points: ReferencePoints,
) -> MultiScaleDeformableCrossAttentionAlignment: ...


def build_projector(
    mm_projector_type: str, **arguments: Any
) -> SwinConvProjector | MultiScaleDeformableCrossAttentionAlignment:
    """Build the projector of that name.

    The deformable projector's tokens are added to those of ``swin_conv``: a model that uses it builds both.

    Args:
        mm_projector_type: ``swin_conv`` or ``deformable``.
        **arguments: the arguments of that projector's constructor.

    Raises:
        ValueError: there is no such projector, or a size is impossible.
    """
    if mm_projector_type == "swin_conv":
        return SwinConvProjector(**arguments)
    if mm_projector_type == "deformable":
        return MultiScaleDeformableCrossAttentionAlignment(**arguments)
    raise ValueError(f"mm_projector_type must be one of {PROJECTOR_TYPES}, but got {mm_projector_type!r}")
