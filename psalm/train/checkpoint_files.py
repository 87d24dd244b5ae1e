"""What a run's checkpoints hold on disk, which of them it goes on from, and what is left of them at its end.

``checkpoint-N`` holds the weights once, as safetensors with configuration, tokenizer and settings, whatever DeepSpeed's
stage: it opens with ``load_model`` at any time. Beside them is what only going on needs: the optimizer's state, which
DeepSpeed writes in files of its own, one per rank, the schedule's, the random generators'. A run that ends drops that.

The last thing written is a manifest, ``{"files": {relative path: {"bytes": size, "crc32": hex}}}``. A folder without
one is unfinished: its writer was killed, or it is being deleted.

DeepSpeed reads its files without restriction, so they could run code. They are trusted where the run itself has written
them, directly below its own folder, and nowhere else.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from psalm.train.fields import SettingError

FINAL_MODEL = "model"
"""Folder of the final weights, below the run's."""
MANIFEST = "manifest.json"
DEEPSPEED_STATE = "global_step*"
DEEPSPEED_LATEST = "latest"
"""The file in which DeepSpeed looks for the name of the folder of its files."""
RESUME_STATE = (
    TRAINER_STATE_NAME,  # first: without it a checkpoint is not gone on from
    OPTIMIZER_NAME,
    SCHEDULER_NAME,
    SCALER_NAME,
    "rng_state*.pth",
    "loss_window_*.json",
    DEEPSPEED_STATE,
    DEEPSPEED_LATEST,
)
"""What a checkpoint holds besides the model, as patterns of names."""

_CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
_CHUNK = 2**24  # bytes

Files = dict[str, dict[str, Any]]
"""Relative path -> ``bytes`` and ``crc32``."""


def checkpoint_folder(output_dir: str | Path, step: int) -> Path:
    """Where a run saves its checkpoint of a global step."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def checkpoints_in(output_dir: str | Path) -> dict[int, Path]:
    """Global step -> folder, in order of steps, of all checkpoints of a run, unfinished ones too; links are none."""
    found = {}
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        named = _CHECKPOINT.fullmatch(path.name)
        if named and path.is_dir() and not path.is_symlink():
            found[int(named[1])] = path
    return dict(sorted(found.items()))


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """Makes a folder complete, with its files on the disk for good; whoever else writes into it must have ended.

    Args:
        folder: of a checkpoint or a model.
        names: its files, relative. They are given because a shared file system may list late what other hosts wrote.
    """
    paths = sorted(set(names))
    with ThreadPoolExecutor() as pool:
        files = dict(zip(paths, pool.map(lambda name: _described(folder / name, flush=True), paths), strict=True))
    for parent in {(folder / name).parent for name in paths} | {folder.parent}:
        _flush_folder(parent)
    _replace_manifest(folder, files)


def is_complete(folder: Path) -> bool:
    """Whether everything was written, and nothing is being deleted."""
    return (folder / MANIFEST).is_file()


def fault_of(folder: Path, *, contents: bool = True) -> str | None:
    """What is wrong with a folder that has, or should have, a manifest; None if nothing is.

    Args:
        folder: of a checkpoint or a model.
        contents: read all files; otherwise their sizes alone are looked at.
    """
    try:
        files = _read_manifest(folder)
    except FileNotFoundError:
        return f"it is unfinished: {MANIFEST} is missing"
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, file in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != file["bytes"]:
            return f"{name} has {size:,} bytes instead of {file['bytes']:,}"
    if not contents:
        return None
    with ThreadPoolExecutor() as pool:
        return next(filter(None, pool.map(lambda name: _fault_of_file(folder, name, files[name]), files)), None)


def last_good_checkpoint(output_dir: str | Path, *, deepspeed: bool) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that a run can go on from, found by reading every byte of it.

    Args:
        output_dir: the run's folder.
        deepspeed: whether the run uses it.

    Returns:
        The folder, None if there is none; and a line for each newer one, which says what is wrong with it.
    """
    rejected: list[str] = []
    for folder in reversed(checkpoints_in(output_dir).values()):
        fault = fault_of(folder) or _fault_of_state(folder, deepspeed)
        if fault is None:
            return folder, rejected
        rejected.append(f"{folder.name} cannot be gone on from: {fault}")
    return None, rejected


def checkpoint_step(checkpoint: str | Path) -> int:
    """The global step at which a checkpoint was saved.

    Raises:
        SettingError: the folder is no checkpoint of a run, or holds nothing but weights.
    """
    folder = Path(checkpoint)
    if any(folder.glob("*.safetensors")) and not any(_optimizer_states(folder).values()):
        raise SettingError(
            f"resume_from_checkpoint must hold the optimizer's state, but {folder} holds weights alone, as after a "
            "run's end; give a checkpoint of a run that was interrupted"
        )
    path = folder / TRAINER_STATE_NAME
    if not path.is_file():
        raise SettingError(f"resume_from_checkpoint must be a checkpoint's folder, but {path} is missing; give another")
    return int(json.loads(path.read_text())["global_step"])


def resumed_step(checkpoint: str | Path, output_dir: str | Path, *, deepspeed: bool) -> int:
    """The global step after which a run goes on from a checkpoint of its own.

    Args:
        checkpoint: the checkpoint's folder.
        output_dir: the run's.
        deepspeed: whether the run uses it.

    Raises:
        SettingError: the checkpoint is not directly below the run's folder, is not complete (files are not read), or
            was saved with DeepSpeed and the run is without it, or the other way round; or see ``checkpoint_step``.
    """
    folder = Path(checkpoint)
    if folder.resolve().parent != Path(output_dir).resolve():
        raise SettingError(
            f"resume_from_checkpoint must be a {PREFIX_CHECKPOINT_DIR}-N in output_dir, which is {output_dir}, but got "
            f"{checkpoint}: reading an optimizer's state can run code, so only the run's own is trusted; "
            "give the output_dir of the run that goes on"
        )
    step = checkpoint_step(checkpoint)
    if not _optimizer_states(folder)[deepspeed]:
        saved, given = ("without", "with") if deepspeed else ("with", "without")
        raise SettingError(
            f"resume_from_checkpoint must be of a run {given} DeepSpeed, as this one is, but {checkpoint} was saved "
            f"{saved} it; give the deepspeed setting that the run was begun with"
        )
    fault = fault_of(folder, contents=False)
    if fault is not None:
        raise SettingError(
            f"resume_from_checkpoint must be whole, but {checkpoint} is not: {fault}; give an earlier one, or true for "
            "the last good one"
        )
    return step


def finish_checkpoints(output_dir: str | Path) -> None:
    """Drops what only going on needs from every checkpoint of a run that has ended; their weights are kept."""
    for checkpoint in checkpoints_in(output_dir).values():
        if is_complete(checkpoint):
            keep_weights(checkpoint)
        else:
            drop_checkpoint(checkpoint)


def keep_weights(checkpoint: Path) -> None:
    """Drops what only going on needs from a complete checkpoint."""
    for path in [path for pattern in RESUME_STATE for path in checkpoint.glob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    files = _read_manifest(checkpoint)
    # Last, when even a full disk has room for it.
    _replace_manifest(checkpoint, {name: file for name, file in files.items() if not _only_to_resume(name)})


def drop_checkpoint(folder: Path) -> None:
    """Deletes a checkpoint or a model; interrupted, it leaves an unfinished one."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def drop_checkpoints(output_dir: str | Path) -> None:
    """Deletes all checkpoints of a run; its final model stays."""
    for checkpoint in checkpoints_in(output_dir).values():
        drop_checkpoint(checkpoint)


def _optimizer_states(folder: Path) -> dict[bool, bool]:
    """Whether a checkpoint has an optimizer's state, with DeepSpeed (True) and without (False)."""
    return {True: any(folder.glob(DEEPSPEED_STATE)), False: (folder / OPTIMIZER_NAME).is_file()}


def _fault_of_state(folder: Path, deepspeed: bool) -> str | None:
    states = _optimizer_states(folder)
    if states[deepspeed]:
        return None
    if not states[not deepspeed]:
        return "it holds weights alone, as after a run's end"
    return f"it was saved {'without' if deepspeed else 'with'} DeepSpeed"


def _only_to_resume(name: str) -> bool:
    return any(fnmatch(name.split("/")[0], pattern) for pattern in RESUME_STATE)


def _fault_of_file(folder: Path, name: str, file: dict[str, Any]) -> str | None:
    try:
        found = _described(folder / name)["crc32"]
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None if found == file["crc32"] else f"{name} is damaged: its checksum is {found} instead of {file['crc32']}"


def _described(path: Path, *, flush: bool = False) -> dict[str, Any]:
    size = checksum = 0
    with path.open("rb", buffering=0) as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
        if flush:
            os.fsync(file.fileno())
    return {"bytes": size, "crc32": f"{checksum:08x}"}


def _read_manifest(folder: Path) -> Files:
    """Raises ValueError where it is not what ``_replace_manifest`` writes."""
    content = json.loads((folder / MANIFEST).read_text())
    try:
        return {name: {"bytes": file["bytes"], "crc32": file["crc32"]} for name, file in content["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no manifest: {error}") from error


def _replace_manifest(folder: Path, files: Files) -> None:
    """At every moment it is the old one or the new one, or there is none."""
    draft = folder / f".{MANIFEST}"
    with draft.open("w") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / MANIFEST)
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    """Brings a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
