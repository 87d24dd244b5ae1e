"""What an attempt died of, and its reason in one line."""

import math
import pickle
from pathlib import Path

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from psalm.train.fields import SettingError
from tune.study.board import Outcome
from tune.trials.failures import (
    ERROR_FILE,
    REASON_LENGTH,
    Failure,
    MetricError,
    TrialError,
    cause_of,
    failure_of,
    one_line,
    picklable_errors,
    write_error,
)


class DemandingError(RuntimeError):
    """Its constructor wants more than a message: it pickles, but does not come back."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"loss {loss} at step {step}")


def died(message: str = "The actor died unexpectedly before finishing this task.") -> ActorDiedError:
    error = ActorDiedError()
    error.error_msg = message
    return error


def raised(error: BaseException) -> UserExceptionWithTraceback:
    """As Ray Train tells of what a worker raised."""
    return UserExceptionWithTraceback(error, "Traceback ...")


def test_a_failure_that_cannot_be_unpickled_keeps_its_reason() -> None:
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(DemandingError(2, math.nan)))
    with pytest.raises(TrialError) as caught, picklable_errors():
        raise DemandingError(2, math.nan)
    back = pickle.loads(pickle.dumps(caught.value))
    assert (str(back), back.outcome) == ("DemandingError: loss nan at step 2", Outcome.FAILED)


def test_out_of_memory_is_still_known_when_it_arrives() -> None:
    with pytest.raises(TrialError) as caught, picklable_errors():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert failure_of(pickle.loads(pickle.dumps(caught.value))) == Failure(
        Outcome.OUT_OF_MEMORY, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    )


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), Outcome.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out_of_memory"),
        (MemoryError(), Outcome.OUT_OF_MEMORY),
        (OutOfMemoryError("Task was killed due to the node running low on memory."), Outcome.OUT_OF_MEMORY),
        (died("Memory on the node was running low on memory and the worker was killed"), Outcome.OUT_OF_MEMORY),
        (died(), Outcome.CRASHED),
        (RuntimeError("no memory of that"), Outcome.FAILED),
        (MetricError("eval_pq is nan at step 3"), Outcome.FAILED),
    ],
)
def test_kinds_of_failure(error: Exception, outcome: str) -> None:
    assert failure_of(error).outcome == outcome


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MetricError("eval_pq is nan at step 3"), "eval_pq is nan at step 3"),
        (SettingError("x must be 1"), "x must be 1"),
        (TrialError("ValueError: no"), "ValueError: no"),
        (RuntimeError("two\n  lines"), "RuntimeError: two lines"),
        (KeyError("name"), "KeyError: 'name'"),
    ],
)
def test_a_reason_is_one_line(error: Exception, reason: str) -> None:
    assert one_line(error) == reason


def test_a_long_reason_is_cut() -> None:
    assert len(one_line(RuntimeError("x" * 9999))) == REASON_LENGTH


def test_the_reason_comes_from_the_first_rank_that_failed() -> None:
    failures = {rank: raised(TrialError(f"ValueError: rank {rank}")) for rank in (3, 1)}
    assert cause_of(WorkerGroupError("long text", failures)) == Failure(Outcome.FAILED, "ValueError: rank 1")


def test_what_a_rank_died_of_comes_before_what_the_others_then_raised() -> None:
    lost = raised(TrialError("RuntimeError: connection closed by peer"))
    dead = WorkerHealthCheckFailedError("A worker failed.", died())
    assert cause_of(WorkerGroupError("", {0: lost, 1: dead})).outcome == Outcome.CRASHED
    full = raised(TrialError("OutOfMemoryError: CUDA out of memory", Outcome.OUT_OF_MEMORY))
    assert cause_of(WorkerGroupError("", {0: lost, 1: dead, 2: full})).outcome == Outcome.OUT_OF_MEMORY


def test_a_ranks_own_reason_comes_before_that_another_one_was_lost() -> None:
    failures = {
        0: raised(TrialError("RuntimeError: Connection closed by peer")),
        1: raised(TrialError("OSError: no x")),
    }
    assert cause_of(WorkerGroupError("", failures)).reason == "OSError: no x"


def test_workers_that_hang_and_a_lost_controller_are_no_fault_of_the_trial() -> None:
    hanging = WorkerHealthCheckTimeoutError("no answer for 600 s")
    assert cause_of(WorkerGroupError("", {0: hanging})).outcome == Outcome.CRASHED
    assert cause_of(ControllerError(OSError("no node"))) == Failure(Outcome.CRASHED, "OSError: no node")


def test_all_of_an_error_is_kept_in_the_trials_folder(tmp_path: Path) -> None:
    write_error(tmp_path / "trials" / "0001", RuntimeError("line 1\nline 2"))
    assert (tmp_path / "trials" / "0001" / ERROR_FILE).read_text() == "line 1\nline 2\n"
