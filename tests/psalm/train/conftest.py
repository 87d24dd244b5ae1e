"""A model and a data set small enough to train in a second."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from psalm.data.builtin import ensure_builtin
from psalm.train.arguments import Arguments, parse_settings

TOWER = {
    "swin_type": "base",
    "vision_config": {
        "image_size": 96,
        "embed_dim": 16,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
        "mlp_ratio": 1.0,
        "drop_path_rate": 0.0,
    },
    "mm_conv_planes": 16,
    "num_queries": 8,
    "conv_dim": 32,
    "mask_dim": 32,
    "hidden_dim": 32,
    "num_heads": 2,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 32,
    "decoder_layers": 2,
    "decoder_feedforward_dim": 32,
    "num_points": 128,
}


@pytest.fixture(scope="session")
def small_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision tower's folder whose file fills nothing: all weights keep their initial values."""
    folder = tmp_path_factory.mktemp("tower")
    (folder / "config.json").write_text(json.dumps(TOWER))
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_builtin(tmp_path_factory.mktemp("data"), train_images=12, val_images=5)


@pytest.fixture
def settings(tmp_path: Path, small_tower: Path, small_data: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a short run; keywords replace them."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "output_dir": str(tmp_path / "run"),
            "vision_tower": str(small_tower),
            "panoptic_json_path": str(small_data),
            "mm_hidden_dim": 16,
            "mm_n_heads": 2,
            "mm_n_points": 2,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "save_final_model": False,
            "disable_tqdm": True,
            "seed": 3,
        } | changes

    return make


@pytest.fixture
def arguments(settings: Callable[..., dict[str, Any]]) -> Callable[..., Arguments]:
    """Arguments of a short run; keywords replace settings."""
    return lambda **changes: parse_settings(settings(**changes))
