"""The parts of the model, and which of them a run should train."""

from collections.abc import Collection, Mapping
from typing import Any

from psalm.constants import CLASS_TASKS, REFERRING, REGION_TASKS

VISION_TOWER, LLM = "vision tower", "LLM"
PROJECTOR, DEFORMABLE = "projector", "deformable projector"

PARTS: dict[str, tuple[str, ...]] = {
    VISION_TOWER: ("model.vision_tower.",),
    PROJECTOR: ("model.mm_projector.",),
    DEFORMABLE: ("model.mm_projector_deformable.",),
    LLM: ("model.",),
    "seg queries": ("seg_query", "seg_query_projector."),
    "pixel decoder": ("pixel_decoder.",),
    "class head": ("class_name_projector.", "predictor.CLASS_proj."),
    "SEG head": ("SEG_token_projector.", "predictor.SEG_proj."),
    "region head": ("region_projector.", "predictor.REGION_proj."),
    "predictor": ("predictor.",),
}
"""Part -> how the names of its parameters begin; the first part that fits has them."""
HEADS: dict[str, tuple[str, ...]] = {
    "class head": CLASS_TASKS,
    "SEG head": (REFERRING,),
    "region head": REGION_TASKS,
}
"""Part -> the tasks that use it."""


def part_of(name: str) -> str:
    """The part that a parameter of this name belongs to."""
    return next(part for part, prefixes in PARTS.items() if name.startswith(prefixes))


def trained_parts(values: Mapping[str, Any], tasks: Collection[str]) -> tuple[str, ...]:
    """The parts that a run with these settings should train in steps of these tasks; see ``set_trainable``."""
    unused = {head for head, users in HEADS.items() if not set(users) & set(tasks)}
    if values["mm_projector_type"] != "deformable":
        unused.add(DEFORMABLE)
    projectors = {PROJECTOR, DEFORMABLE}
    if values["tune_mm_mlp_adapter"]:
        frozen = set(PARTS) - projectors
    else:
        frozen = (projectors if values["freeze_mm_mlp_adapter"] else set()) | (
            {LLM} if values["freeze_backbone"] else set()
        )
    frozen |= set() if values["train_backbone"] else {VISION_TOWER}
    return tuple(part for part in PARTS if part not in unused | frozen)
