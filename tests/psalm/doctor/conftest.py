"""A run that is small enough to be examined in a second."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from psalm.data.builtin import ensure_builtin
from psalm.doctor.settings import Request, check_given
from psalm.doctor.surroundings import Device
from psalm.doctor.weights import check_weights
from psalm.train.trainer import PsalmTrainer

PLENTY = Device("cpu", 2**40)

Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory, tiny_tower: dict[str, Any]) -> Path:
    """A vision tower's folder whose file fills one weight."""
    folder = tmp_path_factory.mktemp("tower")
    (folder / "config.json").write_text(json.dumps(tiny_tower))
    weights = {"sem_seg_head.predictor.decoder_norm.bias": torch.zeros(32), "criterion.empty_weight": torch.zeros(3)}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_builtin(tmp_path_factory.mktemp("data"), train_images=12, val_images=5)


@pytest.fixture
def given(tmp_path: Path, tower: Path, data: Path) -> Settings:
    """Settings of a short run as a user gives them; keywords replace them."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "output_dir": str(tmp_path / "run"),
            "vision_tower": str(tower),
            "panoptic_json_path": str(data),
            "mm_hidden_dim": 16,
            "mm_n_heads": 2,
            "mm_n_points": 2,
            "max_steps": 60,
            "per_device_train_batch_size": 2,
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 3,
        } | changes

    return make


@pytest.fixture
def values(given: Settings) -> Settings:
    """All settings of a short run, those not given at their defaults."""

    def make(**changes: Any) -> dict[str, Any]:
        checked, found = check_given(Request(given(**changes)))
        assert checked is not None, found
        return checked

    return make


@pytest.fixture
def build(values: Settings, tmp_path: Path) -> Callable[..., tuple[PsalmTrainer, dict[str, Any]]]:
    """The trainer of a short run, and its settings."""

    def make(tasks: tuple[str, ...] = ("panoptic",), **changes: Any) -> tuple[PsalmTrainer, dict[str, Any]]:
        settings = values(seg_task=",".join(tasks), **changes)
        trainer, found = check_weights(settings, tasks, PLENTY, str(tmp_path / "trainer"))
        assert trainer is not None, found
        return trainer, settings

    return make
