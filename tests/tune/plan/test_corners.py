"""A space's corners are its smallest and largest models; where they do not fit, they climb the ladder as trials do."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from psalm.model.activations import step_activations
from psalm.train.arguments import with_defaults
from psalm.train.fingerprints import count_parameters
from psalm.train.inputs import shapes_of
from tune.config import SearchConfig, load_config
from tune.options import DEFAULT_CONFIG
from tune.plan.corners import DeviceMemory, corners, examine, step_sizes
from tune.space.parameters import Value
from tune.trials.ladder import climb
from tune.trials.room import OPTIMIZER_BYTES

LIBRARIES = 10**9


@pytest.fixture(scope="module")
def tiny() -> SearchConfig:
    return load_config(DEFAULT_CONFIG)


def settings_of(config: SearchConfig, setting: Mapping[str, Value]) -> dict[str, Any]:
    return with_defaults(config.dependents.complete(config.arguments, setting))


def searched(tmp_path: Path, space: dict[str, Any], **arguments: Any) -> SearchConfig:
    content = yaml.safe_load(DEFAULT_CONFIG.read_text())
    content |= {"space": space, "baselines": [], "arguments": content["arguments"] | arguments}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(content))
    return load_config(tmp_path / "search.yaml")


def test_no_valid_setting_has_a_smaller_or_a_larger_model(tiny: SearchConfig) -> None:
    sizes = [
        count_parameters(shapes_of(settings_of(tiny, tiny.baselines[0] | dict(zip(names, values, strict=True)))))
        for names in [("mm_hidden_dim", "mm_n_heads", "mm_n_points", "swin_type")]
        for values in product((32, 64, 128), (2, 8), (2, 8), ("base", "large"))
    ]
    found = [count_parameters(shapes_of(settings_of(tiny, corner))) for corner in corners(tiny.space)]
    assert (min(found), max(found)) == (min(sizes), max(sizes))


def test_the_baseline_comes_first_every_word_is_there_and_none_comes_twice(tiny: SearchConfig) -> None:
    found = corners(tiny.space, tiny.baselines)
    assert found[0] == tiny.baselines[0]
    assert [corner["swin_type"] for corner in found] == ["base", "base", "base", "large"]
    assert corners(tiny.space, [found[1]]) == found[1:], "the smallest is the baseline here"


def test_corners_are_valid_and_train_at_a_moderate_rate(tiny: SearchConfig, tmp_path: Path) -> None:
    """12 heads divide 24 alone: the largest width and the largest head count do not go together."""
    space = {
        "mm_hidden_dim": {"choice": [24, 32]},
        "mm_n_heads": {"choice": [2, 12]},
        "learning_rate": {"loguniform": [1e-6, 1e2]},
        "weight_decay": {"uniform": [0.0, 0.5]},
        "gradient_checkpointing": {"choice": [True, False]},
        "gradient_accumulation_steps": {"int": [2, 7, 2]},
    }
    config = searched(tmp_path, space)
    smallest, largest = corners(config.space)
    assert [config.space.refusal(corner) for corner in (smallest, largest)] == [None, None]
    assert (smallest["mm_hidden_dim"], largest["mm_hidden_dim"]) == (24, 32)
    assert (smallest["gradient_accumulation_steps"], largest["gradient_accumulation_steps"]) == (2, 6)
    assert (smallest["gradient_checkpointing"], largest["gradient_checkpointing"]) == (True, False)
    assert largest["learning_rate"] == pytest.approx(1e-2)
    assert largest["weight_decay"] == 0.25


def test_memory_is_that_of_weights_gradients_optimizer_and_activations(tiny: SearchConfig) -> None:
    """In float32, with DeepSpeed's own copy of the weights: 4 bytes of each number, 4 + 12 of each trained one."""
    setting = tiny.baselines[0]
    settings = settings_of(tiny, setting)
    model = shapes_of(settings)
    trained = sum(p.numel() for name, p in model.named_parameters() if "vision_tower" not in name)
    numbers = sum(p.numel() for p in model.parameters())
    sizes = step_sizes(settings, model)
    assert (sizes.images, sizes.image_size) == (4, 128)
    activations = step_activations(model.config, sizes, dtype=torch.float32)
    corner = examine(tiny, setting, DeviceMemory(2**40, LIBRARIES, ""))
    expected = LIBRARIES + 4 * numbers + (4 + OPTIMIZER_BYTES) * trained + activations
    assert (corner.parameters, corner.rung, corner.changes) == (numbers, 0, {})
    assert corner.need == corner.need_at_rung == pytest.approx(expected, rel=1e-3)


def test_a_corner_that_does_not_fit_climbs_the_ladder_as_a_trial_does(
    tiny: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def activations(model: Any, sizes: Any, *, gradient_checkpointing: bool, dtype: torch.dtype) -> int:
        return 10**8 if gradient_checkpointing else 2 * 10**8

    monkeypatch.setattr("tune.plan.corners.activations_of", activations)
    setting = tiny.baselines[0]
    need = examine(tiny, setting, None).need
    assert need is not None
    state = need - 2 * 10**8
    for rung, taken in ((1, 10**8), (2, 10**8 // 2), (3, 10**8 // 4)):
        corner = examine(tiny, setting, DeviceMemory(state + taken, 0, ""))
        assert (corner.need, corner.rung, corner.need_at_rung) == (need, rung, state + taken)
        assert corner.changes == climb(settings_of(tiny, setting), rung)
    corner = examine(tiny, setting, DeviceMemory(state + 10**8 // 4 - 1, 0, ""))
    assert (corner.need, corner.rung, corner.need_at_rung, corner.changes) == (need, None, None, {})


def test_what_deepspeed_moves_away_is_not_estimated(tmp_path: Path) -> None:
    offload = '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}'
    config = searched(tmp_path, {"mm_n_points": {"choice": [2, 4]}}, deepspeed=offload)
    corner = examine(config, {"mm_n_points": 4}, DeviceMemory(1, 0, ""))
    assert (corner.need, corner.rung) == (None, 0)


def test_every_task_has_its_sizes(tiny: SearchConfig) -> None:
    config = load_config(DEFAULT_CONFIG.with_name("mixed.yaml"))
    settings = settings_of(config, config.baselines[0])
    model = shapes_of(settings)
    mixed = step_sizes(settings, model)
    for task in ("panoptic", "referring", "region", "cross_image"):
        own = step_sizes(settings | {"seg_task": task, "cross_image_seg_task": False}, model)
        assert own.images == settings["per_device_train_batch_size"]
        assert own.masks >= 1
        assert own == replace(own, **{name: min(value, getattr(mixed, name)) for name, value in vars(own).items()})


def test_a_region_search_is_estimated_too() -> None:
    config = load_config(DEFAULT_CONFIG.with_name("region.yaml"))
    corner = examine(config, config.baselines[0], None)
    assert corner.need is not None
    assert corner.need > 16 * 10**6
