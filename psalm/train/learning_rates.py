"""Peak learning rates that change at given global steps, while the schedule goes on as it was.

From step ``s`` on, the rate of a step is what the schedule (warm-up and decay) says of it times the peak of the last
change at or before ``s``. Each parameter group keeps its share of it.
"""

import bisect
import contextlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from psalm.train.fields import SettingError

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LambdaLR

LEARNING_RATE_CHANGES = "learning_rate_changes"

RateChanges = dict[str, float]
"""Global step, as text since JSON has no other keys, -> peak learning rate from there on; by step."""


def parse_changes(value: Any) -> RateChanges | None:
    """A mapping of global steps to peak learning rates, or its text in YAML or JSON; None where it is empty.

    Raises:
        SettingError: it is no such mapping, a step is no whole number from 1 on, or a rate is not above 0.
    """
    if isinstance(value, str):
        with contextlib.suppress(yaml.YAMLError):  # what is left is text, which is refused
            value = yaml.safe_load(value)
    if not isinstance(value, Mapping):
        raise SettingError(
            f"{LEARNING_RATE_CHANGES} must map global steps to learning rates, as in {{50: 3.0e-4}}, but got "
            f"{value!r}; write it so"
        )
    changes: dict[int, float] = {}
    for given, rate in value.items():
        step = _whole(given)
        if step is None or step < 1 or step in changes:
            raise SettingError(
                f"{LEARNING_RATE_CHANGES} must name each global step once, as a whole number of at least 1, but got "
                f"{given!r}; choose another step"
            )
        changes[step] = _positive(step, rate)
    return {str(step): changes[step] for step in sorted(changes)} or None


def check_changes(values: Mapping[str, Any]) -> None:
    """Whether the changes of a run fit its other settings.

    Raises:
        SettingError: they do not.
    """
    changes: RateChanges | None = values[LEARNING_RATE_CHANGES]
    if changes is None:
        return
    if values["max_steps"] < 1:
        raise SettingError(
            f"{LEARNING_RATE_CHANGES} needs max_steps, but got {values['max_steps']}; give the run's length in steps"
        )
    late = [step for step in changes if int(step) >= values["max_steps"]]
    if late:
        raise SettingError(
            f"{LEARNING_RATE_CHANGES} must name steps from 1 to {values['max_steps'] - 1}, which is before the run's "
            f"end, but got {late[0]}; drop it, or raise max_steps"
        )
    if values["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy"):
        raise SettingError(
            f"{LEARNING_RATE_CHANGES} needs a schedule that depends on the step alone, but lr_scheduler_type is "
            f"{values['lr_scheduler_type']}; choose another, such as cosine"
        )


def with_changes(
    schedule: Callable[[int], float], learning_rate: float, changes: RateChanges
) -> Callable[[int], float]:
    """A schedule, as factors of the peak ``learning_rate`` by step, whose peak changes.

    It is a plain function: PyTorch would save the state of any other callable in checkpoints, and load the changes of
    the run that has saved them.
    """
    steps = [int(step) for step in changes]
    ratios = [1.0, *(rate / learning_rate for rate in changes.values())]

    def changed(step: int) -> float:
        return schedule(step) * ratios[bisect.bisect_right(steps, step)]

    return changed


def set_rates(scheduler: "LambdaLR") -> None:
    """Gives the optimizer the rates of the scheduler's present step.

    After a checkpoint has been loaded they are those of the run that has saved it, whose changes may have been others.
    """
    rates = [
        base * schedule(scheduler.last_epoch)
        for base, schedule in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _positive(step: int, value: Any) -> float:
    try:
        rate = math.nan if isinstance(value, bool) else float(value)  # YAML takes 3e-4 for text
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 < rate < math.inf:
        raise SettingError(
            f"{LEARNING_RATE_CHANGES} must be learning rates above 0, but got {value!r} at step {step}; choose another"
        )
    return rate
