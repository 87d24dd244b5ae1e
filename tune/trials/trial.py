"""What a trial of a search is made of: its settings, its folder, its workers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import ScalingConfig
from ray.train.torch import TorchConfig
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial

from tune.space.dependents import Dependents
from tune.study.board import trial_folder
from tune.trials.resources import TrialResources

if TYPE_CHECKING:
    from tune.trials.storage import TrialStorage  # the storage's own imports take seconds


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a search have in common."""

    folder: Path  # of the search
    arguments: Mapping[str, Any]
    resources: TrialResources
    metric: str
    dependents: Dependents = field(default_factory=Dependents)
    storage: "TrialStorage | None" = None  # where workers and driver share no file system
    checkpoint_budget: float | None = None  # GB that all trials share

    def trial_folder(self, number: int) -> Path:
        """Where a trial has its records and pictures and, unless they are in a storage, its checkpoints."""
        return trial_folder(self.folder, number)

    def settings(self, number: int, params: Mapping[str, Any]) -> dict[str, Any]:
        """Every training argument of a trial that is not left at its default."""
        folder = self.trial_folder(number).resolve()  # the workers' machines may not have the link that leads there
        settings = self.dependents.complete(self.arguments, params) | {"output_dir": str(folder)}
        if self.checkpoint_budget is not None:
            budget = {"checkpoint_budget_gb": self.checkpoint_budget, "checkpoint_budget_dir": str(folder.parent)}
            settings = {"save_total_limit": 1} | settings | budget  # two of one trial may be what another one lacks
        return settings

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
            placement_strategy="PACK" if self.storage is None else "STRICT_PACK",  # what they push lies on one machine
        )

    @property
    def backend(self) -> TorchConfig:
        """NCCL wants a GPU for each process; workers that share one talk over gloo."""
        shared = 0 < self.resources.gpus_per_worker < 1 and self.resources.workers_per_trial > 1
        return TorchConfig(backend="gloo" if shared else None)


def trial_name(trial: Trial) -> str:
    """What Tune calls an attempt of a trial: its job."""
    return str(trial.config["id"])
