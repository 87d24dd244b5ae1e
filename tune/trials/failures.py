"""Why an attempt of a trial ended: which kind of failure it was, and its reason in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from psalm.train.fields import SettingError
from tune.study.board import Outcome

ERROR_FILE = "error.txt"
"""In the folder of a trial that failed: the whole traceback."""
REASON_LENGTH = 500

ALLOCATOR_MESSAGES = ("CUDA out of memory", "DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says without raising ``OutOfMemoryError``."""
LOST_PEER = "closed by peer"
"""What gloo says in a worker whose fellow is gone."""
MEMORY_MONITOR = "running low on memory"
"""What Ray says of a process that its memory monitor has killed."""


class MetricError(RuntimeError):
    """The metric that is searched is missing or no number: the trial has failed."""


class TrialError(RuntimeError):
    """Why an attempt failed, in one line, and of which kind that failure is."""

    def __init__(self, reason: str, outcome: Outcome = Outcome.FAILED) -> None:
        super().__init__(reason, outcome)
        self.reason = reason
        self.outcome = outcome

    def __str__(self) -> str:
        """The reason alone."""
        return self.reason


@dataclass(frozen=True)
class Failure:
    """How an attempt ended, and why."""

    outcome: Outcome
    reason: str


@contextmanager
def picklable_errors() -> Iterator[None]:
    """Any failure leaves as a ``TrialError`` with its reason.

    An exception whose constructor wants more than a message cannot be unpickled, and Ray would tell of that instead.
    """
    try:
        yield
    except Exception as error:
        failure = failure_of(error)
        raise TrialError(failure.reason, failure.outcome) from error


def failure_of(error: BaseException) -> Failure:
    """The failure behind an exception, of a worker or of Ray."""
    reason = one_line(error)
    if isinstance(error, TrialError):
        return Failure(error.outcome, reason)
    if (
        isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemoryError)
        or any(message in str(error) for message in ALLOCATOR_MESSAGES)
        or (isinstance(error, RayActorError) and MEMORY_MONITOR in str(error))
    ):
        return Failure(Outcome.OUT_OF_MEMORY, reason)
    return Failure(Outcome.CRASHED if isinstance(error, RayActorError) else Outcome.FAILED, reason)


def cause_of(error: TrainingFailedError) -> Failure:
    """Why a worker group failed: what its workers died of, before what those raised that then missed them."""
    if isinstance(error, ControllerError):
        return Failure(Outcome.CRASHED, one_line(error.controller_failure))
    if not isinstance(error, WorkerGroupError) or not error.worker_failures:
        return Failure(Outcome.CRASHED, one_line(error))
    failures = [_worker_failure(error.worker_failures[rank]) for rank in sorted(error.worker_failures)]
    order = (Outcome.OUT_OF_MEMORY, Outcome.CRASHED, Outcome.FAILED)
    return min(failures, key=lambda failure: (order.index(failure.outcome), LOST_PEER in failure.reason))


def _worker_failure(error: BaseException) -> Failure:
    if isinstance(error, WorkerHealthCheckFailedError):
        return failure_of(error.health_check_failure)
    if isinstance(error, WorkerHealthCheckTimeoutError):
        return Failure(Outcome.CRASHED, one_line(error))
    return failure_of(getattr(error, "_base_exc", error))  # Train wraps what a worker raised, to carry its traceback


def one_line(error: BaseException | None) -> str:
    """An error's own words if it is one of ours, else with its kind before them."""
    words = " ".join(str(error).split())
    reason = words if isinstance(error, (TrialError, MetricError, SettingError)) else f"{type(error).__name__}: {words}"
    return reason if len(reason) <= REASON_LENGTH else reason[: REASON_LENGTH - 3] + "..."


def write_error(folder: Path, error: BaseException) -> None:
    """All that is known of a trial's failure, into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR_FILE).write_text(f"{error}\n", encoding="utf-8")
