"""What the workers of a lane do: jobs, that is attempts of trials, one after another."""

import gc
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.train import get_context

from psalm.train.arguments import parse_settings
from psalm.train.checkpoint_files import drop_checkpoints
from psalm.train.train import train
from tune.study.board import Outcome
from tune.trials.failures import TrialError, one_line, picklable_errors
from tune.trials.reporting import SearchCallback

if TYPE_CHECKING:
    from tune.trials.storage import TrialStorage

WRITER_WAIT_SECONDS = 60.0
"""How long a job waits for the process of an earlier attempt, of a killed search for example, to be gone."""

logger = logging.getLogger(__name__)


def do_jobs(desk: ActorHandle[Any], group: str) -> None:
    """Jobs, until there is none.

    Raises:
        TrialError: a job failed.
    """
    agreement = dist.new_group(backend="gloo") if get_context().get_world_size() > 1 else None
    done = 0
    while (job := ray.get(desk.next_job.remote(group, done))) is not None:
        with picklable_errors():
            do(job, desk, agreement)
        gc.freeze()  # what is left are libraries, which every collection to come would go through
        done += 1


def do(job: Mapping[str, Any], desk: ActorHandle[Any], agreement: dist.ProcessGroup | None) -> None:
    """One attempt of a trial. How it ended is told by the first worker, unless it was the search that stopped it."""
    first = get_context().get_world_rank() == 0
    copy = TrialCopy(job["storage"], job["number"]) if job["storage"] is not None else None
    settings = dict(job["settings"])
    if copy is not None:
        settings["output_dir"] = str(copy.folder)
        if first:
            copy.pull()
        if dist.is_initialized():
            dist.barrier()
    arguments = parse_settings(settings)
    training = arguments.training
    push = copy.push if copy is not None and first else None
    callback = SearchCallback(desk, job["id"], job["metric"], agreement, push)
    train(arguments, callbacks=[callback], resume_from_checkpoint=True, wait_seconds=WRITER_WAIT_SECONDS)
    outcome = callback.outcome(training.max_steps)
    if not first:
        return
    if copy is not None:
        copy.finish(ended=outcome != Outcome.INTERRUPTED)
    if outcome is not None:
        ray.get(desk.tell.remote(job["id"], {"done": True, "outcome": outcome}))


class TrialCopy:
    """A trial's folder on a worker's machine, for a storage that is elsewhere."""

    def __init__(self, storage: "TrialStorage", number: int) -> None:
        self.storage = storage
        self.number = number
        mark = hashlib.sha256(f"{storage.uri} {storage.search}".encode()).hexdigest()[:16]
        self.folder = Path(tempfile.gettempdir()) / "psalm-trials" / mark / f"{number:04d}"

    def pull(self) -> None:
        """Makes the folder what the storage has of the trial.

        Raises:
            TrialError: the storage does not answer; the trial is to be tried again.
        """
        with self._needed():
            self.storage.pull(self.number, self.folder)

    def push(self) -> None:
        """Brings there what is new. Where the storage does not answer, the next time will do."""
        try:
            self.storage.push(self.number, self.folder)
        except OSError as error:
            logger.warning("trial %d could not be copied to its storage: %s", self.number, one_line(error))

    def finish(self, *, ended: bool) -> None:
        """Brings there what is new at an attempt's end, and clears the machine.

        Raises:
            TrialError: the storage does not answer; the trial is to be tried again.
        """
        if ended:
            drop_checkpoints(self.folder)
        with self._needed():
            self.storage.push(self.number, self.folder, ended=ended)
        shutil.rmtree(self.folder)

    @contextmanager
    def _needed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrialError(f"its storage does not answer: {one_line(error)}", Outcome.CRASHED) from error
