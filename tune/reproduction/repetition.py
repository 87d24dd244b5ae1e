"""Trains recorded runs again, each as a single run: Ray Train without Tune."""

import os
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from tune.options import LOCAL
from tune.trials.cluster import ray_session
from tune.trials.failures import cause_of, one_line
from tune.trials.resources import Node, TrialResources, this_machine
from tune.trials.trial import TrialPlan

LOOK_SECONDS = 0.5
"""How often an interruption is looked for."""


@dataclass(frozen=True)
class Repetition:
    """A run to be trained again."""

    folder: Path
    """Where its records and files go, which takes the place of the first run's."""
    settings: Mapping[str, Any]
    stop_at: int | None
    """The step at which it is to end, as if from outside; None: its own end."""


def repeat(
    runs: Iterable[Repetition], resources: TrialResources, *, at_once: int = 1, on_cpu: bool = False
) -> Generator[tuple[Repetition, str | None], None, None]:
    """Trains every run; gives each back as it ends, with why it failed in one line, or None if it did not.

    Args:
        runs: asked for the next one when there is room for it.
        resources: of each.
        at_once: how many are trained at a time.
        on_cpu: GPUs are hidden from all of them, so that they train as on a machine without.

    Raises:
        Interrupted: on SIGINT or SIGTERM; runs that have not ended are gone then.
    """
    machine = this_machine()
    if on_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        machine = Node(machine.cpus, 0)
    waiting = iter(runs)
    running: dict[Any, Repetition] = {}
    # Train has a handler of its own for SIGINT, in the process that waits for the run: a process of Ray's is that here.
    with ray_session(LOCAL, resources, machine, polled=True) as session:
        train = ray.remote(num_cpus=0, max_retries=0)(_train)
        while True:
            while len(running) < at_once and (run := next(waiting, None)) is not None:
                running[train.remote(run, resources)] = run
            if not running:
                return
            ended, _ = ray.wait(list(running), timeout=LOOK_SECONDS)
            if (signal := session.interrupted()) is not None:
                raise signal
            for each in ended:
                yield running.pop(each), _reason(each)


def _reason(ended: Any) -> str | None:
    try:
        reason: str | None = ray.get(ended)
    except RayError as error:  # the process that waited for the run is gone
        return one_line(error)
    return reason


def _train(run: Repetition, resources: TrialResources) -> str | None:
    """One run, to its end; why it failed."""
    plan = TrialPlan(run.folder, {}, resources, metric="")
    trainer = TorchTrainer(
        _work,
        train_loop_config={"settings": {**run.settings, "output_dir": str(run.folder)}, "stop_at": run.stop_at},
        torch_config=plan.backend,
        scaling_config=plan.scaling,
        run_config=RunConfig(
            name="train", storage_path=str(run.folder / "ray"), failure_config=FailureConfig(max_failures=0)
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return cause_of(error).reason
    return None


def _work(config: Mapping[str, Any]) -> None:
    """What every worker runs. Its module is imported there alone, where the libraries of training are needed."""
    from tune.reproduction.repeating import train_until

    train_until(config["settings"], config["stop_at"])
