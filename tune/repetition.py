"""Trains a recorded run again as a single run: Ray Train without Tune."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from psalm.train.arguments import parse_settings
from psalm.train.train import train
from tune.cluster import ray_session
from tune.failures import cause_of, picklable_errors
from tune.options import LOCAL
from tune.resources import TrialResources, this_machine
from tune.trial import TrialPlan


class StopAt(TrainerCallback):
    """Ends the training after a step, as if from outside: ``max_steps``, and so the learning rates, stay."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """What is due after this step is still done."""
        if state.global_step >= self.step:
            control.should_training_stop = True
        return control


def repeat(settings: Mapping[str, Any], resources: TrialResources, folder: Path, stop_at: int | None) -> str | None:
    """Trains with ``settings``, in ``folder``, to the end or to a step.

    Returns:
        Why the training failed, in one line; None if it did not.

    Raises:
        Interrupted: on SIGINT or SIGTERM.
    """
    plan = TrialPlan(folder, {}, resources, metric="")
    with ray_session(LOCAL, resources, this_machine()):
        trainer = TorchTrainer(
            repeat_worker,
            train_loop_config={"settings": {**settings, "output_dir": str(folder)}, "stop_at": stop_at},
            torch_config=plan.backend,
            scaling_config=plan.scaling,
            run_config=RunConfig(
                name="train", storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=0)
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            return cause_of(error).reason
    return None


def repeat_worker(config: Mapping[str, Any]) -> None:
    """What every worker runs; any failure leaves as a TrialError with its reason."""
    stop_at = config["stop_at"]
    with picklable_errors():
        train(parse_settings(config["settings"]), callbacks=[] if stop_at is None else [StopAt(stop_at)])
