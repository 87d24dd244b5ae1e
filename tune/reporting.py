"""A trial's metric on its way up: from the evaluation to Ray."""

import math
from collections.abc import Mapping
from typing import Any

import ray.train
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tune.study import STEP


class MetricError(RuntimeError):
    """The metric that is searched is missing or no number: the trial has failed."""


class RayReportCallback(TrainerCallback):
    """Reports every evaluation to Ray, from every rank, with its global step."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.last_step = -1

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float],
        **_: Any,
    ) -> None:
        """Raise if the searched metric is missing or not finite; else report.

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
        ray.train.report({self.metric: float(value), STEP: state.global_step})
        self.last_step = state.global_step
