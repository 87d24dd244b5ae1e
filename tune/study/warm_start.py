"""What earlier searches found out, for a new one's sampler: trials of full length, read from MLflow.

Their searches may have had other spaces, fewer or more arguments, another length. A trial is of use where its values of
the arguments that are searched now are in today's space. Its value may be on another level (more steps, other data):
what a sampler learns from is which settings are better than which, so values are shifted, all of a source alike, to
where the settings that both have come to now.
"""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from psalm.train.arguments import argument_fields, with_defaults
from psalm.train.fingerprints import input_fingerprints
from psalm.train.learning_rates import LEARNING_RATE_CHANGES
from tune.config import OWNED, SearchConfig
from tune.reproduction.recorded import WITHOUT_EFFECT
from tune.space.parameters import Value
from tune.study.board import Status, TrialRow
from tune.tracking.delivery import SETTINGS_FILE
from tune.tracking.store import find_experiment, json_artifact, read_history, runs_of_kind

OF_THE_MACHINE = ("use_cpu", "dataloader_pin_memory", "debug", "disable_tqdm")
"""Arguments that a run's record has as its machine made them."""
ENOUGH = 4
"""Completed trials from which medians tell a level."""

Key = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Earlier:
    """A trial of full length of an earlier search, with its setting in the present space."""

    run_id: str
    source: str
    """What it has in common with those whose values can be compared with its own: experiment and length."""
    params: Mapping[str, Value]
    value: float
    values: Mapping[int, float] | None = None
    """By step, if it is the very run that this setting would be now: then it need not be run again."""

    def as_record(self) -> dict[str, Any]:
        """As JSON holds it."""
        values = None if self.values is None else {str(step): value for step, value in self.values.items()}
        return {
            "run_id": self.run_id,
            "source": self.source,
            "params": dict(self.params),
            "value": self.value,
            "values": values,
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Earlier":
        """From what ``as_record`` gave."""
        values = record["values"]
        return cls(
            record["run_id"],
            record["source"],
            record["params"],
            record["value"],
            None if values is None else {int(step): value for step, value in values.items()},
        )


class _Unfit(Exception):  # noqa: N818
    """Why a trial is of no use."""


def read_earlier(client: MlflowClient, names: Sequence[str], config: SearchConfig) -> tuple[list[Earlier], list[str]]:
    """The trials of earlier searches that a search can learn from, oldest first.

    Args:
        client: of the MLflow store that has them.
        names: of the experiments.
        config: the search that begins.

    Returns:
        The trials; and, in lines for the user, how many there are and why others are left out.

    Raises:
        TrackingError: there is no such experiment.
    """
    found: list[Earlier] = []
    unfit = Counter[str]()
    prints: dict[Key, dict[str, str]] = {}
    for name in names:
        for run in runs_of_kind(client, find_experiment(client, name), "trial"):
            try:
                each = _earlier(client, name, run, config, prints)
                if any((each.source, each.params) == (other.source, other.params) for other in found):
                    raise _Unfit("their settings are those of earlier ones")
                found.append(each)
            except _Unfit as reason:
                unfit[str(reason)] += 1
    if not names:
        return [], []
    lines = [f"warm start: {len(found)} of {len(found) + unfit.total()} trials of {', '.join(names)}"]
    lines += [f"  left out, {count}: {reason}" for reason, count in unfit.most_common()]
    return found, lines


def _earlier(
    client: MlflowClient, experiment: str, run: Run, config: SearchConfig, prints: dict[Key, dict[str, str]]
) -> Earlier:
    """One trial. Raises _Unfit if it is of no use."""
    if run.info.status != "FINISHED":
        raise _Unfit("they did not complete")
    if run.data.tags.get("early_stopped") == "true":
        raise _Unfit("they were stopped early")
    if config.metric not in run.data.metrics:
        raise _Unfit(f"they have no {config.metric}")
    settings = json_artifact(client, run.info.run_id, SETTINGS_FILE)
    if not settings:
        raise _Unfit(f"they have no {SETTINGS_FILE}")
    settings = with_defaults({name: value for name, value in settings.items() if name in argument_fields()})
    if settings[LEARNING_RATE_CHANGES] != config.arguments.get(LEARNING_RATE_CHANGES):
        raise _Unfit("their learning rate was changed midway")
    params = config.space.applicable(settings)
    refusal = config.space.refusal(params)
    if refusal is not None:
        raise _Unfit(refusal)
    history = read_history(client, run)[config.metric]
    values = dict(history) if _is_same(run, settings, params, config, prints) else None
    length = settings["max_steps"]
    return Earlier(run.info.run_id, f"{experiment}, {length} steps", params, history[-1][1], values)


def _is_same(
    run: Run,
    settings: Mapping[str, Any],
    params: Mapping[str, Value],
    config: SearchConfig,
    prints: dict[Key, dict[str, str]],
) -> bool:
    """Whether a run is what this setting would be run as now: by all that has an effect, data and weights included."""
    fields = argument_fields()
    now = with_defaults(config.dependents.complete(config.arguments, params))
    for name, value in now.items():
        if name == "deepspeed" and isinstance(value, str):
            value = json.loads(Path(value).read_text())
        counts = not (name in WITHOUT_EFFECT or name in OWNED or name in OF_THE_MACHINE or fields[name].path)
        if counts and value is not None and settings[name] != value:
            return False
    words: Key = tuple(sorted((name, value) for name, value in now.items() if isinstance(value, str)))
    if words not in prints:
        prints[words] = input_fingerprints(now)
    return all(run.data.tags.get(name) == value for name, value in prints[words].items())


def aligned(earlier: Iterable[Earlier], rows: Iterable[TrialRow]) -> list[tuple[Mapping[str, Value], float]]:
    """Earlier settings with the values that they would have now, as far as that can be told.

    A source is shifted by the median difference of the settings that have completed both there and here; if there are
    none, by that of the medians as soon as ``ENOUGH`` have completed here; until then it stays where it is.
    """
    completed = [row for row in rows if row.status == Status.COMPLETED and row.last is not None]
    here = {_key(row.params): row.values[row.evaluated] for row in completed}
    sources: dict[str, list[Earlier]] = {}
    for each in earlier:
        sources.setdefault(each.source, []).append(each)
    found = []
    for trials in sources.values():
        common = [here[_key(each.params)] - each.value for each in trials if _key(each.params) in here]
        shift = 0.0
        if common:
            shift = statistics.median(common)
        elif len(here) >= ENOUGH:
            shift = statistics.median(here.values()) - statistics.median(each.value for each in trials)
        found += [(each.params, each.value + shift) for each in trials]
    return found


def answer(earlier: Iterable[Earlier], params: Mapping[str, Value]) -> Earlier | None:
    """The run that this setting would be, if it was made already."""
    return next((each for each in earlier if each.values is not None and _key(each.params) == _key(params)), None)


def _key(params: Mapping[str, Value]) -> Key:
    return tuple(sorted(params.items()))
