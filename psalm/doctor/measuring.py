"""Memory and time of what runs on a device."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import psutil
import torch

LOOK_SECONDS = 0.005


class PeakMemory:
    """The most memory that was taken for a while inside a ``with`` block: bytes above what was taken at its start.

    On a GPU it is what torch has allocated. Elsewhere it is the resident memory of this process: a thread looks at it
    all the time, since the system's own record of the largest value goes back to the start of the process.
    """

    growth: int = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._before = self._peak = 0

    def __enter__(self) -> Self:
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._before = self._peak = _resident()
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._on_gpu:
            self._peak = torch.cuda.max_memory_allocated(self._device)
        else:
            self._ended.set()
            self._watcher.join()
            self._peak = max(self._peak, _resident())
        self.growth = self._peak - self._before

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self._peak = max(self._peak, _resident())


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


class Stopwatch:
    """Seconds, once the block has ended."""

    seconds: float


@contextmanager
def stopwatch(device: torch.device) -> Iterator[Stopwatch]:
    """Measures a block, with what it has started on the device."""
    watch = Stopwatch()
    _wait_for(device)
    start = time.perf_counter()
    yield watch
    _wait_for(device)
    watch.seconds = time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
