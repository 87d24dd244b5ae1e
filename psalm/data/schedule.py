"""Which sample is trained on at which step: a pure function of (seed, step, slot).

The schedule is a map-style data set that is read in order, so that sharding over ranks, gradient accumulation and
skipping to the step of a resumed run need nothing but an index.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from psalm.data.errors import BadImageError, DataError
from psalm.data.random import draw_key, generator
from psalm.data.samples import Example

TASK_BLOCK = 60
"""Steps whose tasks are drawn together, so that each task has its share of every block, give or take one step."""


class ExampleSource(Protocol):
    """The training samples of one task."""

    @property
    def skip_bad_images(self) -> bool:
        """Whether a sample whose image cannot be read is replaced instead of ending the training."""
        ...

    def __len__(self) -> int: ...

    def example(self, index: int, random_key: int) -> Example:
        """The sample with its random draws made from ``random_key``; raises BadImageError if it cannot be read."""
        ...


class TrainingSchedule(Dataset[Example]):
    """``total_steps * samples_per_step`` examples, in the order of training.

    Index k belongs to step k // samples_per_step and, within it, to slot k % samples_per_step. All slots of a step have
    the same task, drawn for each step with the tasks' ratios as probabilities, and evenly spread. A task's samples are
    dealt in seeded permutations: each appears exactly once per epoch of that task, and every epoch has an order of its
    own. A sample whose image cannot be read ends the training with BadImageError, or, where its source skips bad
    images, is replaced by the next good one of its epoch.

    Args:
        datasets: task name -> its samples.
        seed: the run's data seed.
        total_steps: global (optimizer) steps of the whole run, not what is left of it.
        samples_per_step: samples of one global step over all ranks and accumulation steps.
        ratios: task name -> its weight; a task that is not named weighs 1.

    Raises:
        ValueError: a count below 1, no samples, no task, or a ratio for a task that is not there or of no positive
            number.
    """

    def __init__(
        self,
        datasets: Mapping[str, ExampleSource],
        seed: int,
        total_steps: int,
        samples_per_step: int,
        ratios: Mapping[str, float] | None = None,
    ) -> None:
        if not datasets:
            raise ValueError("a schedule needs at least one task, but got none")
        for name, value in {"total_steps": total_steps, "samples_per_step": samples_per_step}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but got {value}")
        for task, source in datasets.items():
            if len(source) < 1:
                raise ValueError(f"the training data of task {task!r} has no samples")
        self.datasets = dict(datasets)
        self.seed = seed
        self.total_steps = total_steps
        self.samples_per_step = samples_per_step
        self.shares = _shares(tuple(datasets), ratios or {})
        """Task name -> its probability at a step."""
        self._tasks = tuple(datasets)
        self._task_of_step = _draw_tasks(seed, total_steps, list(self.shares.values()))
        self._earlier = _count_earlier(self._task_of_step, len(self._tasks))

    def __len__(self) -> int:
        return self.total_steps * self.samples_per_step

    def task(self, step: int) -> tuple[str, int]:
        """The task of a step, and how many steps of that task came before it."""
        return self._tasks[self._task_of_step[step]], int(self._earlier[step])

    def steps_per_task(self, before: int | None = None) -> dict[str, int]:
        """How many steps each task has in the whole run, or among the first ``before`` steps."""
        counts = np.bincount(self._task_of_step[:before], minlength=len(self._tasks))
        return dict(zip(self._tasks, counts.tolist(), strict=True))

    def sample(self, index: int) -> tuple[str, int]:
        """The (task, sample index) that belongs to an index of the schedule, before bad images are passed over."""
        return self._candidate(index, 0)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside the schedule's {len(self)} samples")
        step, slot = divmod(index, self.samples_per_step)
        task, _ = self.task(step)
        source = self.datasets[task]
        for offset in range(len(source)):
            _, sample = self._candidate(index, offset)
            try:
                return source.example(sample, draw_key(self.seed, step, slot))
            except BadImageError:
                if not source.skip_bad_images:
                    raise
        raise DataError(f"no sample of the task {task} is left to train on: every image is missing or truncated")

    def _candidate(self, index: int, offset: int) -> tuple[str, int]:
        """The sample ``offset`` places further on in the same epoch (round to its start)."""
        step, slot = divmod(index, self.samples_per_step)
        task, earlier = self.task(step)
        size = len(self.datasets[task])
        epoch, place = divmod(earlier * self.samples_per_step + slot, size)
        order = epoch_order(self.seed, task, epoch, size)
        return task, int(order[(place + offset) % size])


def _shares(tasks: tuple[str, ...], ratios: Mapping[str, float]) -> dict[str, float]:
    for task, ratio in ratios.items():
        if task not in tasks:
            raise ValueError(f"a ratio is given for {task!r}, but the tasks are {', '.join(tasks)}")
        if not 0 < ratio < float("inf"):
            raise ValueError(f"the ratio of {task!r} must be a number above 0, but got {ratio}")
    weights = {task: ratios.get(task, 1.0) for task in tasks}
    return {task: weight / sum(weights.values()) for task, weight in weights.items()}


def _draw_tasks(seed: int, total_steps: int, shares: list[float]) -> np.ndarray:
    """The number of each step's task, int8 [total_steps]; a longer run begins with a shorter one's."""
    if len(shares) == 1:
        return np.zeros(total_steps, dtype=np.int8)
    edges = np.cumsum(shares)[:-1]
    blocks = [
        _even_draws(generator(draw_key(seed, block, 0), "tasks")) for block in range(-(-total_steps // TASK_BLOCK))
    ]
    return np.searchsorted(edges, np.concatenate(blocks)[:total_steps], side="right").astype(np.int8)


def _even_draws(source: torch.Generator) -> np.ndarray:
    """Numbers of [0, 1) in random order, float64 [TASK_BLOCK]: one in each of as many equal parts."""
    offset = torch.rand(1, generator=source, dtype=torch.float64)
    draws: np.ndarray = ((torch.randperm(TASK_BLOCK, generator=source) + offset) / TASK_BLOCK).numpy()
    return draws


def _count_earlier(task_of_step: np.ndarray, tasks: int) -> np.ndarray:
    """For every step, how many steps before it have the same task; int64 [total_steps]."""
    earlier = np.zeros(len(task_of_step), dtype=np.int64)
    for task in range(tasks):
        steps = np.flatnonzero(task_of_step == task)
        earlier[steps] = np.arange(len(steps))
    return earlier


@lru_cache(maxsize=16)
def epoch_order(seed: int, task: str, epoch: int, size: int) -> Tensor:
    """A permutation of range(size), int64 [size], that depends on nothing but the arguments."""
    return torch.randperm(size, generator=generator(draw_key(seed, epoch, 0), f"epoch_order/{task}"))
