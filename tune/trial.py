"""One trial: a Tune function that runs the training as a Ray Train worker group and passes its reports on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback

from psalm.train.arguments import parse_settings
from psalm.train.fields import SettingError
from psalm.train.train import train
from tune.dependents import Dependents
from tune.reporting import MetricError, RayReportCallback
from tune.resources import TrialResources

ERROR_FILE = "error.txt"
"""In a failed trial's folder: the whole traceback."""

REASON_LENGTH = 500


class TrialError(RuntimeError):
    """Why a trial failed, in one line."""


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a search have in common."""

    folder: Path  # of the search
    arguments: Mapping[str, Any]
    resources: TrialResources
    metric: str
    dependents: Dependents = field(default_factory=Dependents)

    def trial_folder(self, number: int) -> Path:
        """Where a trial keeps its records, checkpoints and pictures."""
        return self.folder / "trials" / f"{number:04d}"

    def settings(self, number: int, params: Mapping[str, Any]) -> dict[str, Any]:
        """Every training argument of a trial that is not left at its default."""
        return self.dependents.complete(self.arguments, params) | {"output_dir": str(self.trial_folder(number))}

    @property
    def own_resources(self) -> PlacementGroupFactory:
        """What the trial's own process holds: a byte of memory, since Tune wants something, and no CPU or GPU.

        A trial that held a CPU while its workers wait for one could wait for ever.
        """
        return PlacementGroupFactory([{"memory": 1}])

    @property
    def scaling(self) -> ScalingConfig:
        """The trial's workers."""
        needs = {"CPU": self.resources.cpus_per_worker, "GPU": self.resources.gpus_per_worker}
        return ScalingConfig(
            num_workers=self.resources.workers_per_trial,
            use_gpu=self.resources.gpus_per_worker > 0,
            resources_per_worker={kind: amount for kind, amount in needs.items() if amount > 0},
        )

    @property
    def backend(self) -> TorchConfig:
        """NCCL wants a GPU for each process; workers that share one talk over gloo."""
        shared = 0 < self.resources.gpus_per_worker < 1 and self.resources.workers_per_trial > 1
        return TorchConfig(backend="gloo" if shared else None)


def run_trial(config: Mapping[str, Any], plan: TrialPlan) -> None:
    """The function that Tune runs for ``{"number": int, "params": {...}}``.

    Raises:
        TrialError: with the reason in one line; ``error.txt`` in the trial's folder has all of it.
    """
    number = config["number"]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"settings": plan.settings(number, config["params"]), "metric": plan.metric},
        torch_config=plan.backend,
        scaling_config=plan.scaling,
        run_config=RunConfig(
            name=f"train-{number:04d}",
            storage_path=str(plan.folder / "ray"),
            callbacks=[TuneReportCallback()],
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        folder = plan.trial_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR_FILE).write_text(f"{error}\n", encoding="utf-8")
        raise TrialError(reason_of(error)) from None


def trial_name(trial: Trial) -> str:
    """What Tune calls a trial: its number in the search."""
    return f"{trial.config['number']:04d}"


def train_worker(config: Mapping[str, Any]) -> None:
    """What every worker of a trial runs.

    Raises:
        TrialError: the training failed, or did not evaluate at its full length.
    """
    reporter = RayReportCallback(config["metric"])
    with picklable_errors():
        arguments = parse_settings(config["settings"])
        train(arguments, callbacks=[reporter])
        if reporter.last_step < arguments.training.max_steps:
            raise MetricError(
                f"{config['metric']} is missing at the end: it was last evaluated at step {reporter.last_step} of "
                f"{arguments.training.max_steps}"
            )


@contextmanager
def picklable_errors() -> Iterator[None]:
    """Any failure leaves as a ``TrialError`` with its reason.

    An exception whose constructor wants more than a message cannot be unpickled, and Ray would tell of that instead.
    """
    try:
        yield
    except Exception as error:
        raise TrialError(one_line(error)) from error


def reason_of(error: TrainingFailedError) -> str:
    """Why a training failed, in one line: the cause in the worker of the lowest rank that has one."""
    cause: BaseException = error
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        cause = error.worker_failures[min(error.worker_failures)]
    elif isinstance(error, ControllerError):
        cause = error.controller_failure
    return one_line(getattr(cause, "_base_exc", cause))  # Train wraps what a worker raised, to carry its traceback


def one_line(error: BaseException | None) -> str:
    """An error's own words if it is one of ours, else with its kind before them."""
    words = " ".join(str(error).split())
    reason = words if isinstance(error, (TrialError, MetricError, SettingError)) else f"{type(error).__name__}: {words}"
    return reason if len(reason) <= REASON_LENGTH else reason[: REASON_LENGTH - 3] + "..."
