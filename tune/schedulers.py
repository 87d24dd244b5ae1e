"""Who stops trials early."""

from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from tune.config import SchedulerConfig
from tune.study import STEP


class SuccessiveHalving(AsyncHyperBandScheduler):
    """ASHA (Li et al. 2018, arXiv 1810.05934) over global steps, in one bracket.

    A trial that has reached its full length is left to end by itself, also if that is a rung where it would be
    stopped: it has nothing more to spend, but its last pictures and records to write.
    """

    def __init__(self, config: SchedulerConfig, metric: str, mode: str, full_length: int) -> None:
        super().__init__(
            time_attr=STEP,
            metric=metric,
            mode=mode,
            max_t=full_length + 1,
            grace_period=min(config.grace_period, full_length),
            reduction_factor=config.reduction_factor,
        )
        self.full_length = full_length

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Tune's question after every result: go on or stop?"""
        decision = super().on_trial_result(tune_controller, trial, dict(result))
        return TrialScheduler.CONTINUE if result.get(STEP, 0) >= self.full_length else decision


def create_scheduler(config: SchedulerConfig, metric: str, mode: str, full_length: int) -> TrialScheduler:
    """The scheduler of a name."""
    if config.name == "none":
        return FIFOScheduler()
    return SuccessiveHalving(config, metric, mode, full_length)
