"""A trial's talk with its search: its metric on the way up, and whether it goes on on the way down."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch.distributed as dist
from ray.actor import ActorHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tune.study.board import STEP, Outcome
from tune.trials.failures import MetricError


class SearchCallback(TrainerCallback):
    """Reports every evaluation to the search and does what it decides; at every step, looks whether it is interrupted.

    Only the first of a trial's workers talks with the search; the others do as it does.

    Args:
        desk: of the search.
        job: the attempt's id.
        metric: that is searched.
        agreement: the group's processes, over gloo, which needs no sync with a GPU; None where there is one alone.
        push: brings the trial's folder to where the search sees it, on the first worker; None where it is there.
    """

    def __init__(
        self,
        desk: ActorHandle[Any],
        job: str,
        metric: str,
        agreement: dist.ProcessGroup | None = None,
        push: Callable[[], None] | None = None,
    ) -> None:
        self.desk = desk
        self.job = job
        self.metric = metric
        self.push = push
        self.last_step = -1
        self.stopped = False
        self.interrupted = False
        self._interruption = desk.interruption.remote()
        self._agreement = agreement

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float],
        **_: Any,
    ) -> None:
        """Raise if the searched metric is missing or not finite; else report, and stop if the search says so.

        Raises:
            MetricError: with the step and what there is instead.
        """
        value = metrics.get(self.metric)
        if value is None:
            raise MetricError(
                f"{self.metric} is missing from the evaluation at step {state.global_step}, "
                f"which has {', '.join(sorted(metrics)) or 'nothing'}"
            )
        if not math.isfinite(value):
            raise MetricError(f"{self.metric} is {value} at step {state.global_step}")
        self.last_step = state.global_step
        if self.push is not None:
            self.push()
        if not self._agreed(lambda: self._goes_on(state.global_step, float(value))):
            self.stopped = control.should_training_stop = True
            control.should_save = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint is there."""
        if self.push is not None:
            self.push()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A search that is interrupted wants a checkpoint, and the worker's end."""
        if self._agreed(self._is_interrupted):
            self.interrupted = control.should_save = control.should_training_stop = True

    def outcome(self, max_steps: int) -> Outcome | None:
        """How the attempt ended, after the training; None: it was stopped by the search's decision.

        Raises:
            MetricError: there was no evaluation at the full length.
        """
        if self.stopped:
            return None
        if self.last_step >= max_steps:
            return Outcome.COMPLETED
        if self.interrupted:
            return Outcome.INTERRUPTED
        raise MetricError(
            f"{self.metric} is missing at the end: it was last evaluated at step {self.last_step} of {max_steps}"
        )

    def _goes_on(self, step: int, value: float) -> bool:
        return bool(ray.get(self.desk.report.remote(self.job, {STEP: step, self.metric: value})))

    def _is_interrupted(self) -> bool:
        return bool(ray.wait([self._interruption], timeout=0)[0])

    def _agreed(self, question: Callable[[], bool]) -> bool:
        """The first rank's answer, on all ranks."""
        if self._agreement is None:
            return question()
        answer = [question() if dist.get_rank() == 0 else False]
        dist.broadcast_object_list(answer, src=0, group=self._agreement)
        return answer[0]
