"""A lane: a Ray Train worker group that stays up and does one job after another; a job is one attempt of a trial.

Ray Tune keeps a lane's actor from trial to trial (``reuse_actors``). Starting processes, importing the libraries and
setting up the process group, most of a short trial's time, is so paid once per lane. A job that fails takes its lane's
workers with it: the next one starts with fresh ones.
"""

import threading
import uuid
from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.tune import Trainable

from tune.trials.failures import cause_of, write_error
from tune.trials.trial import TrialPlan

CLOSING_SECONDS = 10.0
"""How long workers may take to end by themselves."""


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
    """What every worker of a lane runs.

    Its module is imported by the processes that it runs in, and not by the lane's own, where that would take seconds.
    """
    from tune.trials.working import do_jobs

    do_jobs(config["desk"], config["group"])
