"""When a search ends before its trials do: what a user allows it of time and devices."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune.errors import SearchError
from tune.trials.resources import TrialResources

if TYPE_CHECKING:
    from tune.study.state import SearchState  # imports Ray

HOUR = 3600
_UNITS = {"d": 24 * HOUR, "h": HOUR, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _UNITS))


def parse_duration(text: str) -> float:
    """Seconds of a duration in days, hours, minutes and seconds: ``90m``, ``8h``, ``1d12h``, ``1.5h``.

    Raises:
        SearchError: it is none, or not above 0.
    """
    found = _DURATION.fullmatch(text.strip())
    amounts = found.groups(default="0") if found else ()
    seconds = sum(float(amount) * unit for amount, unit in zip(amounts, _UNITS.values(), strict=False))
    if seconds <= 0:
        raise SearchError(f"must be a time above 0 with its units, such as 90m, 8h or 1d12h, but is {text!r}")
    return seconds


def duration(seconds: float) -> str:
    """Seconds as ``parse_duration`` reads them."""
    parts = []
    for unit, size in _UNITS.items():
        amount = seconds / size if unit == "s" else seconds // size
        seconds -= amount * size
        if amount:
            parts.append(f"{amount:g}{unit}")
    return "".join(parts) or "0s"


@dataclass(frozen=True)
class Limits:
    """What a search may use; None is no limit.

    Args:
        time_budget: seconds of this run of the search.
        gpu_hours, cpu_hours: of the trials in all runs of the search: their time, times what each of them holds.
        resources: of a trial.

    Raises:
        SearchError: a limit on GPUs where trials have none.
    """

    time_budget: float | None
    gpu_hours: float | None
    cpu_hours: float | None
    resources: TrialResources

    def __post_init__(self) -> None:
        if self.gpu_hours is not None and self.resources.gpus_per_worker == 0:
            raise SearchError(
                f"--gpu-hours {self.gpu_hours:g} would never be reached, as trials have no GPU (gpus_per_worker is 0); "
                "use --cpu-hours, or give them GPUs"
            )

    def reached(self, state: "SearchState", now: float) -> str | None:
        """Which limit is used up at a Unix time, in words; None if none is."""
        if self.time_budget is not None and now - state.board.started >= self.time_budget:
            return f"--time-budget {duration(self.time_budget)} is used up"
        hours = (
            sum(row.seconds_at(now) for row in state.board.trials.values()) / HOUR * self.resources.workers_per_trial
        )
        for flag, limit, devices in (
            ("--gpu-hours", self.gpu_hours, self.resources.gpus_per_worker),
            ("--cpu-hours", self.cpu_hours, self.resources.cpus_per_worker),
        ):
            if limit is not None and hours * devices >= limit:
                return f"{flag} {limit:g} is used up"
        return None
