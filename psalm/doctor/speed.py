"""Check 9: does loading keep up with the model?"""

import math
import os
import time
from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader

from psalm.data.errors import DataError
from psalm.doctor.findings import Findings, advice, ok, problem
from psalm.doctor.measuring import stopwatch
from psalm.doctor.step import TaskStep, forward_backward
from psalm.train.trainer import PsalmTrainer

TIMED_BATCHES = 4


def check_speed(trainer: PsalmTrainer, steps: Sequence[TaskStep]) -> Findings:
    """Seconds per micro-batch of loading against those of the model."""
    args = trainer.args
    devices = args.train_batch_size // args.per_device_train_batch_size  # several GPUs of one process share a batch
    try:
        loading = loader_seconds(trainer.get_train_dataloader(), args.dataloader_num_workers) / devices
    except DataError as error:
        return [problem(str(error).strip().splitlines()[-1])]  # a worker's error begins with its traceback
    return compare(loading, model_seconds(trainer, steps), args.dataloader_num_workers, os.cpu_count() or 1)


def model_seconds(trainer: PsalmTrainer, steps: Sequence[TaskStep]) -> float:
    """Seconds of forward and backward, averaged over the tasks as often as each is drawn; not a first time."""
    shares = trainer.train_dataset.shares
    total = 0.0
    for step in steps:
        with stopwatch(trainer.args.device) as watch:
            forward_backward(trainer, step.batch)
        total += shares[step.task] * watch.seconds
    return total / sum(shares[step.task] for step in steps)


def loader_seconds(loader: DataLoader[Any], workers: int) -> float:
    """Seconds per batch of a loader that nobody keeps waiting.

    Workers start with some batches each at once, and go on to deliver in bursts of one each: what is timed begins when
    those first ones are through, and is whole bursts.
    """
    ahead = workers * (loader.prefetch_factor or 0)
    warm_up = min(max(ahead, 1), len(loader) - 1)
    timed = min(max(2 * workers, TIMED_BATCHES), len(loader) - warm_up)
    batches = iter(loader)
    for _ in range(warm_up):
        next(batches)
    start = time.perf_counter()
    for _ in range(timed):
        next(batches)
    return (time.perf_counter() - start) / timed


def compare(loading: float, model: float, workers: int, threads: int) -> Findings:
    """Which of the two a training waits for, in seconds per batch, and what helps if it is the loader."""
    seconds = f"loading {loading:.2g} s, forward and backward {model:.2g} s per batch"
    if loading <= model:
        return [ok(f"{seconds}: the model is the bottleneck, as it should be")]
    enough = min(math.ceil(max(workers, 1) * loading / model), threads)
    if enough <= workers:
        return [advice(f"{seconds}: the loader is the bottleneck, and {workers} workers use all {threads} CPU threads")]
    return [advice(f"{seconds}: the loader is the bottleneck: --dataloader_num_workers {enough} (now {workers})")]
