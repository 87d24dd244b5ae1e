"""Goldens: what the original PSALM computes, one test case per file found."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads of parallel tests only get in each other's way

import pytest
import torch
from safetensors.torch import load_file

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDENS = Path(os.environ.get("PSALM_GOLDENS", SHARED / "goldens"))
COCO_REAL = SHARED / "data" / "coco_real"


@dataclass(frozen=True)
class Golden:
    """One golden: ``<stem>.json`` says how it was made, ``<stem>.safetensors`` holds weights, inputs and outputs."""

    path: Path  # without suffix

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads(self.path.with_suffix(".json").read_text())

    @property
    def config(self) -> dict[str, Any]:
        return self.meta["config"]

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors below ``prefix``, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def close(self, actual: torch.Tensor, name: str) -> None:
        """Within the tolerance that the goldens' README states."""
        torch.testing.assert_close(actual, self.tensors[name], atol=1e-4, rtol=1e-4, msg=lambda m: f"{name}: {m}")


def goldens_of(module: str) -> list[Golden]:
    """Every golden of a module, e.g. swin_a and swin_b for ``swin``; a stem may have any suffix."""
    stems = sorted({p.stem for p in GOLDENS.glob(f"{module}_*") if p.suffix in {".json", ".safetensors"}})
    return [Golden(GOLDENS / stem) for stem in stems]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is not None:
        metafunc.parametrize("golden", goldens_of(marker.args[0]), ids=lambda golden: golden.name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A module without a golden is not collected (pytest would report an empty parametrisation as skipped)."""
    empty = [item for item in items if item.name.endswith("[NOTSET]") and item.get_closest_marker("golden")]
    if empty:
        config.hook.pytest_deselected(items=empty)
        items[:] = [item for item in items if item not in empty]


LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher() -> Iterator[None]:
    """A run with DeepSpeed in this process describes its group in the environment; programs that tests start
    are others."""
    for name in LAUNCHER:
        os.environ.pop(name, None)
    yield
    for name in LAUNCHER:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def coco_real() -> Path:
    if not COCO_REAL.is_dir():
        pytest.skip("real COCO images are not beside this checkout")
    return COCO_REAL


@pytest.fixture(scope="session")
def tiny_tower() -> dict[str, Any]:
    """What ``config.json`` says of a vision tower that trains in a second."""
    return {
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
