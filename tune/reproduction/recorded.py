"""What MLflow holds of one run, read back: enough to make the run again, and to compare with."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from psalm.train.arguments import with_defaults
from psalm.train.comparison import MACHINE, Points
from psalm.train.tasks import main_metric_names
from tune.reproduction.verdict import inconsistencies
from tune.tracking.connection import PARAM_LENGTH, as_text, one_line
from tune.tracking.delivery import SETTINGS_FILE
from tune.tracking.store import json_artifact, read_history
from tune.tracking.tracker import SOURCES_FILE
from tune.trials.resources import TrialResources

CHANGED = "changed."
"""What tags begin with that tell of a setting which a resumed run had another value of before."""
WITHOUT_EFFECT = (
    "gradient_checkpointing",
    "output_dir",
    "save_final_model",
    "save_only_model",
    "save_predictions",
    "save_steps",
    "save_strategy",
    "save_total_limit",
)
"""Settings that change no value of a run: where and what it writes, and whether activations are computed again, which
gives the same bits on a CPU."""


class RecordError(ValueError):
    """A run's record is not enough to repeat it, or there is none; one line."""


@dataclass(frozen=True)
class Record:
    """What MLflow holds of a run, as far as it is needed to repeat it."""

    run_id: str
    name: str
    experiment_id: str
    status: str
    seconds: float | None
    tags: Mapping[str, str]
    settings: Mapping[str, Any]
    sources: Mapping[str, str]
    history: Mapping[str, Points]
    contradictions: tuple[str, ...]

    @property
    def stopped_at(self) -> int | None:
        """The last step of a run that did not reach its end: stopped early, failed or killed."""
        if self.status == "FINISHED" and self.tags.get("early_stopped") != "true":
            return None
        steps = [points[-1][0] for name, points in self.history.items() if not name.startswith(MACHINE)]
        return max(steps, default=0)

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        resumed = self.tags.get("resumed_after_step")
        way = "" if resumed is None else f"was resumed after step {resumed} and "
        if self.stopped_at is None:
            return f"which {way}ran to its end"
        stopped = self.status == "FINISHED"
        return f"which {way}was {'stopped early' if stopped else self.status.lower()} after step {self.stopped_at}"

    @property
    def changes(self) -> dict[str, str]:
        """Settings that had another value when the run began, as ``{name: "first -> last"}``."""
        return changed_settings(self.tags)

    @property
    def main_metrics(self) -> tuple[str, ...]:
        """What it is judged by, the first before all others."""
        return main_metric_names(with_defaults(self.settings))

    @property
    def resources(self) -> TrialResources:
        """What the run's workers were given."""
        given = self.tags
        return TrialResources(
            int(given.get("workers_per_trial", given.get("world_size", "1"))),
            float(given.get("cpus_per_worker", "1")),
            float(given.get("gpus_per_worker", "0")),
        )

    def tags_of_repetition(self, resources: TrialResources) -> dict[str, str]:
        """Tags of a run that repeats this one to the same end: what it is repeated by in its turn."""
        tags = {name: str(value) for name, value in dataclasses.asdict(resources).items()}
        return tags if self.stopped_at is None else tags | {"early_stopped": "true"}


def changed_settings(tags: Mapping[str, str]) -> dict[str, str]:
    """Settings with an effect that changed when a run was resumed, by its tags: ``{name: "first -> last"}``."""
    changed = {name.removeprefix(CHANGED): text for name, text in tags.items() if name.startswith(CHANGED)}
    return {name: text for name, text in changed.items() if name not in WITHOUT_EFFECT}


def read_record(client: MlflowClient, run_id: str) -> Record:
    """The record of a run.

    Raises:
        RecordError: there is no such run, or it is none that can be repeated.
    """
    try:
        run: Run = client.get_run(run_id)
    except MlflowException as error:
        raise RecordError(
            f"run {run_id!r}: {one_line(error)}; take the id from MLflow's page or search.json, and give --tracking-uri"
        ) from error
    tags = run.data.tags
    if tags.get("kind") == "search":
        best = tags.get("best_run_id", "one of its trials")
        raise RecordError(f"run {run_id!r} is a search, not a training run; give {best}")
    if "answered_by" in tags:
        raise RecordError(f"run {run_id!r} was not trained: its values are those of {tags['answered_by']}; give that")
    settings = json_artifact(client, run_id, SETTINGS_FILE)
    if not settings:
        raise RecordError(f"run {run_id!r} has no {SETTINGS_FILE}: it is no run of this project, or ended at its start")
    history = read_history(client, run)
    if not any(not name.startswith(MACHINE) for name in history):
        raise RecordError(f"run {run_id!r} recorded no metrics: there is nothing to compare")
    params = run.data.params
    contradictions = inconsistencies(run.data.metrics, history) + [
        f"{name}: the record shows {params[name]!r}, but its {SETTINGS_FILE} has {value!r}"
        for name, value in settings.items()
        if name in params and params[name] != as_text(value, PARAM_LENGTH) and f"{CHANGED}{name}" not in tags
    ]
    ended = run.info.end_time
    return Record(
        run_id=run_id,
        name=run.info.run_name,
        experiment_id=run.info.experiment_id,
        status=run.info.status,
        seconds=(ended - run.info.start_time) / 1000 if ended else None,
        tags=tags,
        settings=settings,
        sources=json_artifact(client, run_id, SOURCES_FILE),
        history=history,
        contradictions=tuple(contradictions),
    )
