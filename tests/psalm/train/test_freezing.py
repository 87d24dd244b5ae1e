"""The flags that freeze: what a run of theirs has moved. ZeRO's are in ``test_zero``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from psalm.train.arguments import parse_settings
from psalm.train.train import build_trainer, train

Settings = Callable[..., dict[str, Any]]

LLM = ("model.embed_tokens.", "model.layers.", "model.final_layernorm.")
TOWER = ("model.vision_tower.",)
PROJECTORS = ("model.mm_projector.", "model.mm_projector_deformable.")
DECODER = ("seg_query", "class_name_projector.", "pixel_decoder.", "predictor.")
NOT_OF_PANOPTIC = ("SEG_token_projector.", "region_projector.", "predictor.SEG_proj.", "predictor.REGION_proj.")
"""Trained, but no gradient reaches them."""


def moved(settings: dict[str, Any]) -> tuple[set[str], set[str]]:
    """All names of weights and statistics of a run, and those whose values it has changed."""
    initial = build_trainer(parse_settings(settings)).model.state_dict()
    train(parse_settings(settings))
    final = load_file(Path(settings["output_dir"]) / "model" / "model.safetensors")
    assert final.keys() == initial.keys()
    return set(final), {name for name, value in final.items() if not torch.equal(value, initial[name])}


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("", (*LLM, *PROJECTORS, *DECODER)),
        ("train_backbone", (*LLM, *TOWER, *PROJECTORS, *DECODER)),
        ("freeze_backbone", (*PROJECTORS, *DECODER)),
        ("freeze_mm_mlp_adapter", (*LLM, *DECODER)),
        ("freeze_backbone freeze_mm_mlp_adapter", DECODER),
        ("freeze_backbone train_backbone", (*TOWER, *PROJECTORS, *DECODER)),
        ("tune_mm_mlp_adapter", PROJECTORS),
        ("tune_mm_mlp_adapter freeze_backbone", PROJECTORS),
    ],
)
def test_what_moves(settings: Settings, flags: str, parts: tuple[str, ...]) -> None:
    """Weight decay would move a frozen weight too, and training mode the statistics of a frozen batch norm."""
    of_run = settings(max_steps=3, weight_decay=0.1, eval_strategy="no", save_final_model=True)
    names, changed = moved(of_run | {"mm_reference_points": "learned"} | dict.fromkeys(flags.split(), True))
    known = (*LLM, *TOWER, *PROJECTORS, *DECODER, *NOT_OF_PANOPTIC)
    assert [name for name in names if not name.startswith(known)] == []
    assert changed == {name for name in names if name.startswith(parts) and not name.startswith(NOT_OF_PANOPTIC)}


def test_a_frozen_tower_keeps_its_features(settings: Settings) -> None:
    """Stochastic depth would change them from step to step."""
    trainer = build_trainer(parse_settings(settings()))
    trainer.model.train()
    assert not any(module.training for module in trainer.model.model.vision_tower.modules())
    assert trainer.model.model.mm_projector.training
    assert trainer.model.predictor.training


def test_the_baseline_projector_is_trained_again_after_it_was_frozen(settings: Settings) -> None:
    projector = build_trainer(parse_settings(settings(freeze_mm_mlp_adapter=True))).model.model.mm_projector
    assert not projector.train().layer1[0].bn1.training
    projector.requires_grad_(True)
    assert projector.train().layer1[0].bn1.training
