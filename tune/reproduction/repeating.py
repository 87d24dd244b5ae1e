"""What the workers of a repetition do: train, up to the step at which the recorded run ended."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from psalm.train.arguments import parse_settings
from psalm.train.train import train
from tune.trials.failures import picklable_errors


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


def train_until(settings: Mapping[str, Any], stop_at: int | None) -> None:
    """Trains to the step ``stop_at``, or to the end if it is None.

    Raises:
        TrialError: any failure, with its reason.
    """
    with picklable_errors():
        train(parse_settings(settings), callbacks=[] if stop_at is None else [StopAt(stop_at)])
