"""Room for what a run saves: on the disk, and within a budget that several runs share.

A checkpoint for which there is none is left out. Older ones are deleted once a new one is whole; before, only where
they leave no room beside them, and never the newest.

A checkpoint needs at most (see ``weights_bytes`` and ``optimizer_bytes``)

    weights + buffers + optimizer state + 1 KiB per tensor + 16 MiB + twice the log of the Trainer's state

The 16 MiB are for the tokenizer, the settings and the state of every rank's random generators. With DeepSpeed the
optimizer's state has, besides its moments, its own copy of what is trained, on each rank for its part.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from psalm.train.checkpoint_files import (
    FINAL_MODEL,
    checkpoint_folder,
    checkpoints_in,
    drop_checkpoint,
    is_complete,
    keep_weights,
)

MARGIN = 100 * 2**20
"""Bytes that a checkpoint leaves free on the disk, for records and pictures."""
SMALL_FILES = 16 * 2**20
"""Bytes, at most, of everything in a checkpoint that does not grow with the model or the length of the run."""
GB = 10**9

_PER_TENSOR = 2**10  # its entry in a file: name, shape, alignment
_COUNTED = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+|{FINAL_MODEL}")
_LOCK = ".checkpoints.lock"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class Budget:
    """What all checkpoints and final models below a folder may take together.

    Runs that share it write while they hold it, one after another: so it is never passed. They may delete at any time.
    """

    folder: Path
    limit: int  # bytes

    @contextmanager
    def held(self) -> Iterator[None]:
        """Waits until no other process holds it; it ends with the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)  # NFS locks only what may be written
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def used(self) -> int:
        """Bytes that are taken."""
        total = 0
        for parent, folders, _ in os.walk(self.folder):
            for name in [name for name in folders if _COUNTED.fullmatch(name)]:
                total += bytes_below(Path(parent, name))
                folders.remove(name)
        return total


class RunCheckpoints:
    """The checkpoints in a run's folder: what goes to make room for the next one, and what after it; for rank 0.

    Args:
        output_dir: the run's folder.
        budget: what its checkpoints count for.
    """

    def __init__(self, output_dir: Path, budget: Budget | None) -> None:
        self.output_dir = output_dir
        self.budget = budget
        self._steps: set[int] = set()  # of the run's own; an earlier start may have left others

    def begin(self, step: int) -> None:
        """The run starts, or goes on after a step: unfinished checkpoints go, and whole ones of earlier steps count."""
        for at, folder in checkpoints_in(self.output_dir).items():
            if not is_complete(folder):
                drop_checkpoint(folder)
            elif at <= step:
                self._steps.add(at)

    def make_room(self, folder: Path, needed: int, best: int | None = None) -> str | None:
        """Why ``needed`` bytes find no room in a folder; None if they do, and then it is there, and empty.

        If that helps, all checkpoints are deleted but the newest of the run, and the one of the step ``best``.
        """
        if folder.exists():
            drop_checkpoint(folder)
        reason = self._shortage(needed, best)
        if reason is None:
            folder.mkdir(parents=True)
        return reason

    def _shortage(self, needed: int, best: int | None) -> str | None:
        if shortage(needed, self.output_dir, self.budget) is None:
            return None
        kept = self._kept(best)
        spare = [spare for step, spare in checkpoints_in(self.output_dir).items() if step not in kept]
        freed = sum(map(bytes_below, spare))
        if (reason := shortage(needed, self.output_dir, self.budget, freed)) is not None:
            return reason
        for checkpoint in spare:
            drop_checkpoint(checkpoint)
        return shortage(needed, self.output_dir, self.budget)

    def add(self, step: int, limit: int | None, best: int | None = None) -> None:
        """A checkpoint is complete. Deletes what is not of this run, and its oldest above ``limit`` checkpoints."""
        self._steps.add(step)
        kept = self._kept(best)
        own = []
        for at, folder in checkpoints_in(self.output_dir).items():
            if at in self._steps:
                own.append((at, folder))
            else:
                drop_checkpoint(folder)
        excess = 0 if limit is None else len(own) - max(limit, len(kept))
        for _, folder in [(at, folder) for at, folder in own if at not in kept][: max(excess, 0)]:
            drop_checkpoint(folder)

    def make_final(self, step: int, folder: Path) -> bool:
        """Makes the run's checkpoint of a step its final model, which says the same; False if there is none."""
        checkpoint = checkpoint_folder(self.output_dir, step)
        if step not in self._steps or not is_complete(checkpoint):
            return False
        if folder.exists():
            drop_checkpoint(folder)
        checkpoint.rename(folder)
        keep_weights(folder)
        return True

    def _kept(self, best: int | None) -> set[int]:
        newest = max(self._steps, default=0)
        return self._steps & ({newest} if best is None else {newest, best})


def bytes_below(folder: Path) -> int:
    """The sizes of all files below a folder, which others may be deleting."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


def shortage(needed: int, folder: Path, budget: Budget | None, freed: int = 0) -> str | None:
    """What is missing to write into a folder, in words; None if there is room.

    Args:
        needed: bytes to write.
        folder: where to; it exists.
        budget: what they count for.
        freed: bytes to suppose deleted.
    """
    free = shutil.disk_usage(folder).free
    if needed + MARGIN > free + freed:
        return f"{_shown(needed)} needed, {_shown(free)} free in {folder} ({_shown(MARGIN)} of it are kept free)"
    if budget is not None and needed + (used := budget.used()) > budget.limit + freed:
        return f"{_shown(needed)} needed, {_shown(used)} of the {_shown(budget.limit)} for {budget.folder} are taken"
    return None


def is_full(error: BaseException) -> bool:
    """Whether an error of writing says that there is no room; torch and safetensors have their own words for it."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    text = str(error)
    # torch's writer of archives says where it failed, and not why.
    return "inline_container.cc" in text or any(os.strerror(code) in text for code in _FULL)


def weights_bytes(model: nn.Module) -> int:
    """At most what the model's weights take in a file, wherever they are sharded."""
    total = 0
    for parameter in model.parameters():
        count = parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()
        total += count * parameter.element_size() + _PER_TENSOR
    return total + sum(buffer.nbytes + _PER_TENSOR for buffer in model.buffers())


def optimizer_bytes(optimizer: Optimizer, parts: int | None) -> int:
    """At most what an optimizer's state takes in files.

    Args:
        optimizer: on this rank.
        parts: with DeepSpeed, the ranks that each save as much as this one, weights that it steps included; else None.
    """
    total = 0
    for parameter, state in optimizer.state.items():
        tensors = [value for value in state.values() if isinstance(value, Tensor)]
        if parts is not None:
            tensors.append(parameter)
        total += sum(tensor.nbytes + _PER_TENSOR for tensor in tensors)
    return total * (parts or 1)


def small_bytes(log_history: Sequence[Mapping[str, Any]]) -> int:
    """At most what the other files of a checkpoint take."""
    return SMALL_FILES + 2 * len(json.dumps(log_history))


def _shown(size: int) -> str:
    return f"{size / GB:.3g} GB"
