"""Who stops trials early."""

from dataclasses import dataclass
from typing import Protocol

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from tune.config import SchedulerConfig

_STEP = "step"
_VALUE = "value"


class StoppingRule(Protocol):
    """Decides after every result of a trial; what it decides follows from the results before, and their order."""

    def goes_on(self, number: int, step: int, value: float) -> bool:
        """Notes a trial's result at a global step, and says whether the trial goes on after it."""
        ...


class NeverStop:
    """Every trial runs to its full length."""

    def goes_on(self, number: int, step: int, value: float) -> bool:
        """True."""
        return True


@dataclass(frozen=True)
class _Entrant:
    """What Ray's scheduler wants to know of a trial."""

    trial_id: str


class SuccessiveHalving:
    """ASHA (Li et al. 2018, arXiv 1810.05934) over global steps, in one bracket.

    Ray's scheduler decides, asked without Ray Tune, so that a search that is resumed can tell it all results again.
    A trial that has reached its full length is left to end by itself, also if that is a rung where it would be
    stopped: it has nothing more to spend, but its last pictures and records to write.
    """

    def __init__(self, config: SchedulerConfig, mode: str, full_length: int) -> None:
        self.full_length = full_length
        self._asha = AsyncHyperBandScheduler(
            time_attr=_STEP,
            metric=_VALUE,
            mode=mode,
            max_t=full_length + 1,
            grace_period=min(config.grace_period, full_length),
            reduction_factor=config.reduction_factor,
        )
        self._entrants: dict[int, _Entrant] = {}

    def goes_on(self, number: int, step: int, value: float) -> bool:
        """Whether a trial is among the best of those that have come as far."""
        if number not in self._entrants:
            self._entrants[number] = _Entrant(str(number))
            self._asha.on_trial_add(None, self._entrants[number])
        decision = self._asha.on_trial_result(None, self._entrants[number], {_STEP: step, _VALUE: value})
        return bool(step >= self.full_length or decision == TrialScheduler.CONTINUE)


def create_stopping_rule(config: SchedulerConfig, mode: str, full_length: int) -> StoppingRule:
    """The rule of a name."""
    if config.name == "none":
        return NeverStop()
    return SuccessiveHalving(config, mode, full_length)
