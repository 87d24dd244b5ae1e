"""Files of weights, read without running anything of theirs."""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

BUILTIN = "builtin"
BUILTIN_FOLDER = Path(__file__).resolve().parents[1] / "builtin"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def existing_folder(name: str, value: str) -> Path:
    """The folder that the setting ``name`` names.

    Raises:
        ValueError: there is none.
    """
    if not Path(value).is_dir():
        raise ValueError(f"{name} must be {BUILTIN!r} or a folder, but there is no folder {value}")
    return Path(value)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object, but holds a {type(content).__name__}")
    return content


def open_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name.

    Raises:
        ValueError: the file is missing, or holds anything but tensors.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: a file of weights is expected")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as weights alone: {' '.join(str(error).split())}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} must hold tensors by name, but holds something else")
    return state
