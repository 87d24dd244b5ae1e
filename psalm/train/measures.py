"""Figures of the machine: seconds per step and peak memory."""

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_MB = 2**20
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class StepClock:
    """Mean seconds of an optimizer step, with data loading, without what is done ``apart`` (evaluation, saving)."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._apart = 0.0
        self._steps = 0

    def begin_step(self) -> None:
        """A step begins; the first one starts the clock."""
        if self._since is None:
            self._since = time.perf_counter()
        self._steps += 1

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Time that belongs to no step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._apart += time.perf_counter() - start

    def take(self) -> float:
        """The mean since the last call; call it after a sync with the device, and after at least one step."""
        now = time.perf_counter()
        since = now if self._since is None else self._since
        mean = (now - since - self._apart) / max(self._steps, 1)
        self._since, self._apart, self._steps = now, 0.0, 0
        return mean


def peak_memory_mb() -> float:
    """Largest memory in MiB since ``reset_peak_memory``: that of the GPU where there is one, else of this process.

    Where the system cannot forget a process's peak, as Linux can, it is that of the process's whole life.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / _MB
    status = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    for line in status:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MB if sys.platform == "darwin" else peak / 1024


def reset_peak_memory() -> None:
    """The peak is from now on that of what follows."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif os.access(_CLEAR, os.W_OK):
        _CLEAR.write_text("5")  # proc(5): the peak, VmHWM, becomes what is used now
