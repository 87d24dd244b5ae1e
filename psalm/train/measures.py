"""Figures of the machine: seconds per step and peak memory."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_MB = 2**20


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
    """Largest memory so far in MiB: that of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / _MB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MB if sys.platform == "darwin" else peak / 1024
