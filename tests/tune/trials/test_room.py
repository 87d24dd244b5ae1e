"""Room for checkpoints is found out before a search starts, and is enough for what is then saved."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import yaml

from psalm.model.checkpoints import build_model
from psalm.train.disk import GB, SMALL_FILES
from tune.config import SearchConfig, load_config
from tune.errors import SearchError
from tune.options import DEFAULT_CONFIG
from tune.trials.room import OPTIMIZER_BYTES, Room, room_for

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def tiny() -> SearchConfig:
    return load_config(DEFAULT_CONFIG)


def test_the_largest_trial_counts(tiny: SearchConfig) -> None:
    """Of a real model: every weight in four bytes, and the optimizer's state of what is trained."""
    largest = {"mm_hidden_dim": 128, "mm_n_heads": 8, "mm_n_points": 8}
    model, _ = build_model("builtin", "builtin", "large", mm_projector_type="deformable", **largest)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    trained = sum(p.numel() for n, p in model.named_parameters() if "vision_tower" not in n)
    room = room_for(tiny, trials=2, keep_best=3)
    assert weights < room.model - SMALL_FILES < 1.1 * weights + 2**20
    assert room.checkpoint - room.model == pytest.approx(OPTIMIZER_BYTES * trained, rel=1e-3)
    assert (room.trials, room.models) == (2, 3)
    assert room.needed == 4 * room.checkpoint + 3 * room.model


def test_what_is_not_saved_needs_no_room(tmp_path: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(DEFAULT_CONFIG.read_text())
    content["arguments"] |= {"save_strategy": "no", "save_final_model": False}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(content))
    assert room_for(load_config(tmp_path / "search.yaml"), trials=2, keep_best=3).needed == 0


def test_of_conditional_and_restricted_spaces_the_largest_valid_model_counts(tmp_path: Path) -> None:
    """Here the one with most points, which is not that with the greatest width, or one that a condition opens."""
    content: dict[str, Any] = yaml.safe_load(DEFAULT_CONFIG.read_text())
    space = {
        "mm_projector_type": {"choice": ["swin_conv", "deformable"]},
        "mm_hidden_dim": {"choice": [32, 64], "when": "mm_projector_type == 'deformable'"},
        "mm_n_points": {"choice": [1, 64], "when": "mm_projector_type == 'deformable'"},
        "tune_mm_mlp_adapter": {"choice": [True, False]},
    }
    del content["arguments"]["mm_projector_type"]
    content |= {"space": space, "require": ["mm_hidden_dim + mm_n_points <= 96"], "baselines": []}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(content))
    config = load_config(tmp_path / "search.yaml")
    room = room_for(config, trials=1, keep_best=1)
    every = []
    for setting in config.space.combinations():
        (tmp_path / "one.yaml").write_text(yaml.safe_dump(content | {"require": []}))
        one = load_config(tmp_path / "one.yaml", [f"{name}={value}" for name, value in setting.items()])
        every.append(room_for(one, trials=1, keep_best=1))
    assert (room.checkpoint, room.model) == (max(r.checkpoint for r in every), max(r.model for r in every))
    assert len({each.checkpoint for each in every}) > 3


def test_a_budget_that_is_too_small_is_refused(tmp_path: Path) -> None:
    room = Room(trials=2, checkpoint=GB, models=1, model=GB // 2)
    room.check(tmp_path, 4.5)
    with pytest.raises(SearchError, match=r"--checkpoint-budget 4: the search needs about 4.5 GB .*2 trials at a time"):
        room.check(tmp_path, 4)


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the search's own trials have there already may be used again."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9 * GB, 5 * GB, 4 * GB))
    room = Room(trials=2, checkpoint=GB, models=0, model=GB)
    with pytest.raises(
        SearchError, match=r"needs about 4 GB .*has 3.9 GB free; free some, give another --storage-path"
    ):
        room.check(tmp_path, None)
    kept = tmp_path / "trials" / "0000" / "checkpoint-5"
    kept.mkdir(parents=True)
    with (kept / "model.safetensors").open("wb") as file:
        file.truncate(GB // 2)  # a sparse file
    room.check(tmp_path, None)
