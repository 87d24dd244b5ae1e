import math
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from transformers import TrainerCallback

from psalm.train.arguments import Arguments
from psalm.train.records import metric_history, read_records
from psalm.train.train import build_trainer, train

Make = Callable[..., Arguments]

RATE = 1e-3
OFFSETS = "model.mm_projector_deformable.attention.sampling_offsets."
POINTS = "model.mm_projector_deformable.reference_proj."
TOWER = "model.vision_tower."


def groups_of(args: Arguments) -> dict[str, tuple[float, float]]:
    """Name of each parameter that is in the optimizer -> its learning rate and its weight decay."""
    trainer = build_trainer(args)
    optimizer = trainer.create_optimizer()
    assert trainer.create_optimizer() is optimizer, "asked again, it is not scaled again"
    assert all(group["params"] for group in optimizer.param_groups), "no group is empty"
    assert optimizer.param_groups[0]["lr"] == RATE, "the first is the one that is logged"
    name_of: dict[nn.Parameter, str] = {parameter: name for name, parameter in trainer.model.named_parameters()}
    found = [
        (name_of[parameter], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(dict(found)) == len(found), "no parameter is in two groups"
    assert dict(found).keys() == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    return dict(found)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
def test_offsets_and_learned_points_have_their_own_rate(arguments: Make, optim: str) -> None:
    """The pixel decoder's offsets have not."""
    groups = groups_of(arguments(offset_lr_multiplier=0.1, mm_reference_points="learned", optim=optim))
    slow = {name for name, (rate, _) in groups.items() if rate == pytest.approx(0.1 * RATE)}
    assert slow == {f"{part}{kind}" for part in (OFFSETS, POINTS) for kind in ("weight", "bias")}
    assert {rate for name, (rate, _) in groups.items() if name not in slow} == {RATE}
    assert any("pixel_decoder" in name and "sampling_offsets" in name for name in groups.keys() - slow)


def test_a_trained_tower_has_its_own_rate(arguments: Make) -> None:
    groups = groups_of(arguments(train_backbone=True, backbone_lr_multiplier=0.25, offset_lr_multiplier=0.1))
    rates = {name: rate / RATE for name, (rate, _) in groups.items()}
    assert {name: rate for name, rate in rates.items() if name.startswith(TOWER)} == pytest.approx(
        dict.fromkeys((name for name in rates if name.startswith(TOWER)), 0.25)
    )
    assert {round(rate, 9) for rate in rates.values()} == {1.0, 0.25, 0.1}


def test_a_frozen_tower_is_in_no_group(arguments: Make) -> None:
    groups = groups_of(arguments(backbone_lr_multiplier=0.25))
    assert {rate for rate, _ in groups.values()} == {RATE}


def test_a_baseline_model_has_no_offsets(arguments: Make) -> None:
    groups = groups_of(arguments(mm_projector_type="swin_conv", offset_lr_multiplier=0.1))
    assert {rate for rate, _ in groups.values()} == {RATE}


def test_weight_decay_is_split_as_transformers_splits_it(arguments: Make) -> None:
    changes = {"train_backbone": True, "weight_decay": 0.1}
    plain = groups_of(arguments(**changes))
    scaled = groups_of(arguments(**changes, offset_lr_multiplier=0.1, backbone_lr_multiplier=0.5))
    assert {name: decay for name, (_, decay) in scaled.items()} == {name: decay for name, (_, decay) in plain.items()}
    assert scaled[f"{OFFSETS}weight"][1] == 0.1
    assert scaled[f"{OFFSETS}bias"][1] == 0.0


def test_the_schedule_scales_every_rate_and_the_main_one_is_logged(arguments: Make) -> None:
    seen: list[list[float]] = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any) -> None:
            seen.append([group["lr"] for group in optimizer.param_groups])

    args = arguments(offset_lr_multiplier=0.1, warmup_ratio=0.0, eval_strategy="no")
    train(args, callbacks=[Watch()])
    cosine = [RATE * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert seen == [pytest.approx([rate, rate, 0.1 * rate, 0.1 * rate]) for rate in cosine]
    history = metric_history(read_records(args.training.output_dir))
    assert list(history["learning_rate"].values()) == pytest.approx(cosine)
