"""What tells whether two runs had the same data, weights and software."""

import importlib.metadata
import os
import platform
import socket
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from psalm.data.checks import data_fingerprint
from psalm.model.language_weights import resolve_language_model
from psalm.model.vision_weights import resolve_vision_tower
from psalm.train.task_data import TaskSplits, load_task
from psalm.train.tasks import tasks_of

PACKAGES = ("accelerate", "deepspeed", "numpy", "pillow", "safetensors", "scipy", "tokenizers", "torch", "transformers")
WHOLE_FILE = 64 * 2**20
"""Bytes up to which a file of weights is hashed whole; of larger ones the ends and the size."""
END = 2**20
_DIGITS = 32


def weights_fingerprint(weights: str | Path) -> str:
    """32 hex digits over names, sizes and contents of a file or of a folder's (of large ones: first and last MiB)."""
    digest = sha256()
    paths = [Path(weights)] if Path(weights).is_file() else Path(weights).iterdir()
    for path in sorted(p for p in paths if p.is_file() and not p.name.startswith(".")):
        size = path.stat().st_size
        digest.update(f"\n{path.name}\t{size}\n".encode())
        with path.open("rb") as file:
            if size <= WHOLE_FILE:
                digest.update(file.read())
            else:
                digest.update(file.read(END))
                file.seek(-END, os.SEEK_END)
                digest.update(file.read())
    return digest.hexdigest()[:_DIGITS]


def input_fingerprints(settings: Mapping[str, Any], data: Mapping[str, TaskSplits] | None = None) -> dict[str, str]:
    """Fingerprints of the data and weights that settings name; equal on any machine that has the same.

    ``data`` holds the tasks' data where they have been read already.
    """
    tasks = tasks_of(settings)
    found = {}
    for task in tasks:
        splits = load_task(settings, task) if data is None else data[task]
        of_task = f"{task}_" if len(tasks) > 1 else ""
        found[f"data_fingerprint_{of_task}train"] = data_fingerprint(splits.train)
        found[f"data_fingerprint_{of_task}val"] = data_fingerprint(splits.val)
    tower = resolve_vision_tower(settings["vision_tower"], settings["swin_type"])
    found["weights_fingerprint_vision_tower"] = weights_fingerprint(tower)
    language_model = resolve_language_model(settings["model_name_or_path"])
    found["weights_fingerprint_language_model"] = weights_fingerprint(language_model)
    if settings["pretrain_mm_mlp_adapter"] is not None:
        found["weights_fingerprint_projector"] = weights_fingerprint(settings["pretrain_mm_mlp_adapter"])
    return found


def run_tags(
    settings: Mapping[str, Any], data: Mapping[str, TaskSplits], model: nn.Module, world_size: int
) -> dict[str, Any]:
    """A run's tags: fingerprints, versions, machine, sizes, what it is validated on.

    ``omp_num_threads`` and ``torch_threads`` belong to them because results on a CPU depend on them.
    """
    versions = {f"version.{package}": importlib.metadata.version(package) for package in PACKAGES}
    return {
        **input_fingerprints(settings, data),
        **{f"validation.{task}": splits.chosen for task, splits in data.items()},
        **versions,
        "version.python": platform.python_version(),
        "hostname": socket.gethostname(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "seed": settings["seed"],
        "parameters": count_parameters(model),
        "trainable_parameters": count_parameters(model, trainable=True),
        "world_size": world_size,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        "torch_threads": torch.get_num_threads(),
    }


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Numbers in a model's parameters; whole ones too where ZeRO-3 has sharded them."""
    parameters = [p for p in model.parameters() if p.requires_grad or not trainable]
    return sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
