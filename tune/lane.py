"""A lane: a Ray Train worker group that stays up and does one job after another; a job is one attempt of a trial.

Ray Tune keeps a lane's actor from trial to trial (``reuse_actors``). Starting processes, importing the libraries and
setting up the process group, most of a short trial's time, is so paid once per lane. A job that fails takes its lane's
workers with it: the next one starts with fresh ones.
"""

import gc
import hashlib
import logging
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig, get_context
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.tune import Trainable

from psalm.train.arguments import parse_settings
from psalm.train.checkpoint_files import drop_checkpoints
from psalm.train.train import train
from tune.failures import TrialError, cause_of, one_line, picklable_errors, write_error
from tune.reporting import SearchCallback
from tune.state import Outcome
from tune.storage import TrialStorage
from tune.trial import TrialPlan

WRITER_WAIT_SECONDS = 60.0
"""How long a job waits for the process of an earlier attempt, of a killed search for example, to be gone."""
CLOSING_SECONDS = 10.0
"""How long workers may take to end by themselves."""

logger = logging.getLogger(__name__)


class Lane(Trainable):
    """Tune's side of a lane; its config is a job's: ``id``, ``number``, ``params`` and ``changes``.

    Every result is a message of the workers: an evaluation, or with ``done`` how the job ended.
    """

    def setup(self, config: dict[str, Any], plan: TrialPlan, desk: ActorHandle[Any]) -> None:
        """The actor is up: its first job."""
        self.plan = plan
        self.desk = desk
        self.group: str | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next job, for the workers that are there if they still are."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """What the workers tell next."""
        message: dict[str, Any] = ray.get(self.desk.next_message.remote(self.job["id"]))
        return message

    def cleanup(self) -> None:
        """The lane is not needed any more: its workers end."""
        if self.group is not None:
            ray.get(self.desk.close.remote(self.group))
            self._thread.join(CLOSING_SECONDS)

    def _begin(self, config: Mapping[str, Any]) -> None:
        self.job = {
            "id": config["id"],
            "number": config["number"],
            "settings": self.plan.settings(config["number"], config["params"]) | config["changes"],
            "metric": self.plan.metric,
            "storage": self.plan.storage,
        }
        if self.group is None or not ray.get(self.desk.assign.remote(self.group, self.job)):
            self.group = uuid.uuid4().hex
            ray.get(self.desk.assign.remote(self.group, self.job))
            self._thread = threading.Thread(target=self._run_group, args=(self.group,), daemon=True)
            self._thread.start()

    def _run_group(self, group: str) -> None:
        """Holds the workers until they end. If they fail, so does their job."""
        trainer = TorchTrainer(
            work,
            train_loop_config={"desk": self.desk, "group": group},
            torch_config=self.plan.backend,
            scaling_config=self.plan.scaling,
            run_config=RunConfig(
                name=f"lane-{group}",
                storage_path=str(self.plan.folder / "ray"),
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            ray.get(self.desk.close.remote(group))  # first: a job assigned later goes to others
            failure = cause_of(error)
            write_error(self.plan.trial_folder(self.job["number"]), error)
            message = {"done": True, "outcome": failure.outcome, "reason": failure.reason}
            ray.get(self.desk.tell.remote(self.job["id"], message))


def work(config: Mapping[str, Any]) -> None:
    """What every worker of a lane runs: jobs, until there is none.

    Raises:
        TrialError: a job failed.
    """
    desk, group = config["desk"], config["group"]
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

    def __init__(self, storage: TrialStorage, number: int) -> None:
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
