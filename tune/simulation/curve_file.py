"""Recorded learning curves: what every setting of a space came to, step by step, and what it cost.

A file of them has one JSON object a line. The first one is about all of them, every other one is a run of full length:

========= ==========================================================================================================
first     ``metric`` and ``mode``, max or min; ``max_steps`` of every run; ``startup_seconds``, from a search's start to
          that of training in a lane, less what every trial takes; ``at_once``, how many ran when the seconds were taken
others    ``params``, the searched arguments; ``seed`` of the training; ``values`` {step: metric}; ``step_seconds`` and
          ``evaluation_seconds``, means over the run; ``overhead_seconds``, what else its trial took: data, model,
          checkpoints, end. It is null where processes had to start first, or where the trial was interrupted
========= ==========================================================================================================
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune.errors import SearchError
from tune.space.parameters import Value

Key = tuple[tuple[str, Value], ...]
"""A setting as something that can be looked up."""

PLACES = 4
"""Decimal places of what is written."""


@dataclass(frozen=True)
class Curve:
    """One run: the metric at every evaluation, and where its seconds went."""

    params: Mapping[str, Value]
    seed: int
    values: Mapping[int, float]
    step_seconds: float
    evaluation_seconds: float
    overhead_seconds: float | None

    @property
    def setting(self) -> Key:
        """What it was run with, but for the seed."""
        return tuple(sorted(self.params.items()))

    @property
    def final(self) -> float:
        """The metric at the last step."""
        return self.values[max(self.values)]

    @property
    def seconds(self) -> float:
        """Training and all evaluations."""
        return self.step_seconds * max(self.values) + self.evaluation_seconds * len(self.values)


@dataclass(frozen=True)
class Curves:
    """Runs of one space that differ in their settings and seeds."""

    metric: str
    mode: str
    max_steps: int
    startup_seconds: float
    at_once: int
    runs: tuple[Curve, ...]

    @property
    def settings(self) -> list[tuple[Curve, ...]]:
        """The runs of each setting, in the order of the first ones."""
        groups: dict[Key, list[Curve]] = {}
        for run in self.runs:
            groups.setdefault(run.setting, []).append(run)
        return [tuple(group) for group in groups.values()]

    @property
    def steps(self) -> list[int]:
        """At which all runs were evaluated."""
        return sorted(set.intersection(*(set(run.values) for run in self.runs)))

    @property
    def overhead_seconds(self) -> float:
        """What a trial takes besides training and evaluations, where processes are up: the median."""
        known = [run.overhead_seconds for run in self.runs if run.overhead_seconds is not None]
        return statistics.median(known) if known else 0.0


def write_curves(curves: Curves, path: Path) -> None:
    """Write a file of curves."""
    first = {field.name: getattr(curves, field.name) for field in dataclasses.fields(curves) if field.name != "runs"}
    lines = [_rounded(each) for each in (first, *map(dataclasses.asdict, curves.runs))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_curves(path: Path) -> Curves:
    """Read a file of curves.

    Raises:
        SearchError: it is none.
    """
    try:
        first, *runs = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        for run in runs:
            run["values"] = {int(step): value for step, value in run["values"].items()}
        return Curves(**first, runs=tuple(Curve(**run) for run in runs))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SearchError(
            f"--curves {path} is no file of recorded curves: {error}; python -m tune.simulation.curves writes one"
        ) from error


def _rounded(content: Any) -> Any:
    """JSON with the metric and seconds as short as they are meant; what a setting is stays exact."""
    if isinstance(content, float):
        return round(content, PLACES)
    if isinstance(content, dict):
        return {key: value if key == "params" else _rounded(value) for key, value in content.items()}
    return content
