"""What tells whether two runs had the same data, weights and software."""

import importlib.metadata
import json
import logging
import os
import platform
import socket
import time
from collections.abc import Mapping
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from psalm.data.checks import data_fingerprint
from psalm.model.language_weights import resolve_language_model
from psalm.model.psalm_weights import is_whole_checkpoint
from psalm.model.vision_weights import resolve_vision_tower
from psalm.train.task_data import TaskSplits, load_task
from psalm.train.tasks import tasks_of

PACKAGES = ("accelerate", "deepspeed", "numpy", "pillow", "safetensors", "scipy", "tokenizers", "torch", "transformers")
CACHED_FROM = 2**20
"""Bytes from which a file's hash is kept; a smaller file is hashed sooner than looked up."""
SETTLED_NS = 2 * 10**9
"""Nanoseconds for which a file must have been left alone before its hash is kept: time stamps may be coarse."""
_DIGITS = 32

logger = logging.getLogger(__name__)


def weights_fingerprint(weights: str | Path) -> str:
    """32 hex digits over the whole contents of a file, or over names and whole contents of a folder's files.

    Those of a file are the first of what ``sha256sum FILE`` says; those of a folder, of what
    ``LC_ALL=C sha256sum * | sha256sum`` says in it: hidden files and what lies in subfolders do not count.

    Raises:
        ValueError: there is neither a file nor a folder.
    """
    path = Path(weights)
    if path.is_file():
        return _file_hash(path)[:_DIGITS]
    if not path.is_dir():
        raise ValueError(f"{path} is missing: a file or folder of weights is expected")
    names = sorted(each.name for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
    listing = "".join(f"{_file_hash(path / name)}  {name}\n" for name in names)
    return sha256(os.fsencode(listing)).hexdigest()[:_DIGITS]


def _file_hash(path: Path) -> str:
    """A file's SHA-256 in hex, computed once for as long as the file stays as it is."""
    with path.open("rb") as file:
        state = _state(file, path)
        if state["size"] < CACHED_FROM:
            return file_digest(file, sha256).hexdigest()
        kept = _kept_hash(state)
        if kept is not None:
            return kept
        settled = time.time_ns() - max(state["mtime_ns"], state["ctime_ns"]) > SETTLED_NS
        found = file_digest(file, sha256).hexdigest()
        if settled and _state(file, path) == state:
            _keep_hash(state, found)
    return found


def _state(file: BinaryIO, path: Path) -> dict[str, Any]:
    """What changes when a file does; ``ctime_ns`` does where another file comes with the same size and time stamp."""
    status = os.fstat(file.fileno())
    return {
        "path": str(path.resolve()),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def _kept_hash(state: Mapping[str, Any]) -> str | None:
    try:
        entry = json.loads(_entry_path(state).read_text())
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, ValueError) as error:
        _warn_once(error)
        return None
    match entry:
        case {"state": kept, "sha256": str(found)} if kept == state and len(found) == sha256().digest_size * 2:
            return found
    return None


def _keep_hash(state: Mapping[str, Any], found: str) -> None:
    try:
        path = _entry_path(state)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.stem}.{socket.gethostname()}.{os.getpid()}")
        try:
            draft.write_text(json.dumps({"state": state, "sha256": found}))
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        _warn_once(error)


def _entry_path(state: Mapping[str, Any]) -> Path:
    """The JSON file that keeps a file's hash: one for each, so that processes never write the same for different files.

    Raises:
        RuntimeError: the user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = (
        Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    )  # the XDG standard: relative ones are ignored
    name = sha256(os.fsencode(state["path"])).hexdigest()
    return folder / "psalm-deformable" / "fingerprints" / f"{name}.json"


def _warn_once(error: Exception) -> None:
    _warn_once_of((error.strerror if isinstance(error, OSError) else None) or str(error))


@cache
def _warn_once_of(problem: str) -> None:
    logger.warning(
        "hashes of weights are not kept, and computed every time (%s): set XDG_CACHE_HOME to a folder of yours", problem
    )


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
    language_model = resolve_language_model(settings["model_name_or_path"])
    found["weights_fingerprint_language_model"] = weights_fingerprint(language_model)
    if not is_whole_checkpoint(language_model):  # which brings its own tower
        tower = resolve_vision_tower(settings["vision_tower"], settings["swin_type"])
        found["weights_fingerprint_vision_tower"] = weights_fingerprint(tower)
    if settings["pretrain_mm_mlp_adapter"] is not None:
        found["weights_fingerprint_projector"] = weights_fingerprint(settings["pretrain_mm_mlp_adapter"])
    return found


def run_tags(
    settings: Mapping[str, Any], data: Mapping[str, TaskSplits], model: nn.Module, world_size: int
) -> dict[str, Any]:
    """A run's tags: fingerprints, versions, machine, sizes, what it is validated on.

    ``processor``, ``omp_num_threads`` and ``torch_threads`` belong to them because results on a CPU depend on them.
    """
    versions = {f"version.{package}": importlib.metadata.version(package) for package in PACKAGES}
    return {
        **input_fingerprints(settings, data),
        **{f"validation.{task}": splits.chosen for task, splits in data.items()},
        **versions,
        "version.python": platform.python_version(),
        "hostname": socket.gethostname(),
        "device": device_name(use_cpu=settings["use_cpu"]),
        "processor": processor_kind(),
        "seed": settings["seed"],
        "parameters": count_parameters(model),
        "trainable_parameters": count_parameters(model, trainable=True),
        "world_size": world_size,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        "torch_threads": torch.get_num_threads(),
    }


def device_name(*, use_cpu: bool = False) -> str:
    """The GPU that this process trains on, by name; ``cpu`` where there is none, or none is to be used."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() and not use_cpu else "cpu"


def processor_kind(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model, and the instructions that torch uses on it: together they tell how sums are rounded.

    For example ``AMD EPYC 7763 64-Core Processor, family 25 model 1, AVX2``. Virtual machines may hide most of the
    name, so the model's numbers are there too.
    """
    known = {}
    for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.is_file() else ():
        name, _, value = line.partition(":")
        known[name.strip()] = value.strip()
    parts = [known.get("model name") or platform.processor() or platform.machine()]
    if "cpu family" in known:
        parts.append(f"family {known['cpu family']} model {known['model']}")
    return ", ".join([*parts, torch.backends.cpu.get_cpu_capability()])


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Numbers in a model's parameters; whole ones too where ZeRO-3 has sharded them."""
    parameters = [p for p in model.parameters() if p.requires_grad or not trainable]
    return sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
