"""Who stops trials early.

Every rule is a function of the results that it was told, and of their order: a search that is resumed tells it all of
them again. Ray's own schedulers decide, asked without Ray Tune. A trial that has reached its full length is left to end
by itself, also where a rule would stop it: it has nothing more to spend, but its last pictures and records to write.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from tune.config import SchedulerConfig
from tune.study.population import StopLowest

FEWEST_OTHERS = 3
"""Trials that must have come as far as another one before it is compared with their median."""
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
    """What Ray's schedulers want to know of a trial."""

    trial_id: str


class SuccessiveHalving:
    """ASHA (Li et al. 2018, arXiv 1810.05934) over global steps, in one bracket.

    Rungs are at the grace period times the powers of the reduction factor. At its first result on or after a rung a
    trial goes on if it is in the upper part, of one over the reduction factor, of all that were there before. One that
    passes several rungs between two results is judged on the highest: those below are behind it.
    """

    def __init__(self, config: SchedulerConfig, mode: str, full_length: int) -> None:
        self.full_length = full_length
        self._asha = AsyncHyperBandScheduler(
            time_attr=_STEP,
            metric=_VALUE,
            mode=mode,
            max_t=full_length,
            grace_period=min(config.grace_period, full_length),
            reduction_factor=config.reduction_factor,
            stop_last_trials=False,  # else it judges a trial that has passed rungs on the lower ones later
        )
        self._entrants: dict[int, _Entrant] = {}

    def goes_on(self, number: int, step: int, value: float) -> bool:
        """Whether a trial is among the best of those that have come as far."""
        if number not in self._entrants:
            self._entrants[number] = _Entrant(str(number))
            self._asha.on_trial_add(None, self._entrants[number])
        decision = self._asha.on_trial_result(None, self._entrants[number], {_STEP: step, _VALUE: value})
        return bool(step >= self.full_length or decision == TrialScheduler.CONTINUE)


class Hyperband:
    """Asynchronous Hyperband (Li et al. 2018, arXiv 1810.05934): ASHA in several brackets, each a rung later.

    A bracket's share of the trials is that of Hyperband (Li et al. 2017, arXiv 1603.06560, algorithm 1): with ``m``
    rungs below the full length and reduction factor ``r``, the bracket with ``s`` rungs gets
    ``ceil((m + 1) / (s + 1) * r**s)``. The last bracket has none: its trials run to their end. Trials are dealt by
    number, so that after any number of them the shares are as nearly kept as they can be.
    """

    def __init__(self, config: SchedulerConfig, mode: str, full_length: int) -> None:
        graces = [config.grace_period]
        while graces[-1] < full_length:
            graces.append(math.ceil(config.grace_period * config.reduction_factor ** len(graces)))
        rungs = len(graces) - 1
        self.shares = [math.ceil((rungs + 1) / (s + 1) * config.reduction_factor**s) for s in range(rungs, -1, -1)]
        self._brackets = [
            SuccessiveHalving(SchedulerConfig(config.name, grace, config.reduction_factor), mode, full_length)
            for grace in graces
        ]
        self._dealt: list[int] = []

    def bracket(self, number: int) -> int:
        """A trial's bracket, from 0; the number of rungs that it skips."""
        while len(self._dealt) <= number:
            dealt = len(self._dealt) + 1
            owed = [
                share * dealt - sum(self.shares) * self._dealt.count(bracket)
                for bracket, share in enumerate(self.shares)
            ]
            self._dealt.append(owed.index(max(owed)))
        return self._dealt[number]

    def goes_on(self, number: int, step: int, value: float) -> bool:
        """Whether a trial is among the best of those of its bracket that have come as far."""
        return self._brackets[self.bracket(number)].goes_on(number, step, value)


class Median:
    """Vizier's median stopping rule (Golovin et al. 2017, KDD, section 3.2.2) over global steps.

    After the grace period, a trial is stopped if its best value so far is worse than the median, over the others that
    have come as far, of the means of their values between the grace period and this step. It stops nobody before
    ``FEWEST_OTHERS`` have.
    """

    def __init__(self, config: SchedulerConfig, mode: str, full_length: int) -> None:
        self.full_length = full_length
        self._median = MedianStoppingRule(
            time_attr=_STEP,
            metric=_VALUE,
            mode=mode,
            grace_period=config.grace_period,
            min_samples_required=FEWEST_OTHERS,
            min_time_slice=math.inf,  # no trial is paused
        )

    def goes_on(self, number: int, step: int, value: float) -> bool:
        """Whether a trial is not worse than half of those that have come as far."""
        decision = self._median.on_trial_result(None, _Entrant(str(number)), {_STEP: step, _VALUE: value})
        return bool(step >= self.full_length or decision == TrialScheduler.CONTINUE)


def create_stopping_rule(config: SchedulerConfig, mode: str, full_length: int) -> StoppingRule:
    """The rule of a name.

    Args:
        config: which rule, and its settings.
        mode: which way the values are better, max or min.
        full_length: of a trial, in global steps.
    """
    match config.name:
        case "asha":
            return SuccessiveHalving(config, mode, full_length)
        case "hyperband":
            return Hyperband(config, mode, full_length)
        case "median":
            return Median(config, mode, full_length)
        case "pbt":
            return StopLowest(config, mode, full_length)
        case _:
            return NeverStop()
