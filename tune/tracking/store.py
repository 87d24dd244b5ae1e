"""What a store of MLflow holds, read back: experiments, runs, their files and values."""

import json
import tempfile
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run

from psalm.train.comparison import Points
from psalm.train.fields import nearest
from tune.tracking.connection import connect, sqlite_path
from tune.tracking.ledger import TrackingError

DEFAULT_STORE = "sqlite:///runs/mlflow.db"
"""Where a search records unless it is told otherwise."""
MOST_RUNS = 10_000
"""Runs of an experiment that are read."""


def open_store(uri: str) -> MlflowClient:
    """The client of a store that is there already.

    Raises:
        TrackingError: its database is not; and see ``connect``.
    """
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        raise TrackingError(f"tracking URI {uri!r}: there is no such file; give the search's --tracking-uri")
    return connect(uri)


def find_experiment(client: MlflowClient, name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        TrackingError: there is none.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        known = sorted(each.name for each in client.search_experiments())
        raise TrackingError(f"there is no experiment {name!r}; there are {', '.join(known)}{nearest(name, known)}")
    return experiment


def runs_of_kind(client: MlflowClient, experiment: Experiment, kind: str) -> list[Run]:
    """The runs of an experiment whose tag ``kind`` is this, oldest first."""
    order = ["attributes.start_time ASC"]
    return list(
        client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'", max_results=MOST_RUNS, order_by=order)
    )


def read_history(client: MlflowClient, run: Run) -> dict[str, Points]:
    """Every metric of a run, in order of steps."""
    return {name: metric_points(client, run.info.run_id, name) for name in run.data.metrics}


def metric_points(client: MlflowClient, run_id: str, name: str) -> Points:
    """One metric of a run, in order of steps."""
    points = client.get_metric_history(run_id, name)
    return sorted(((point.step, point.value) for point in points), key=lambda point: point[0])


def artifact(client: MlflowClient, run_id: str, name: str) -> bytes:
    """The content of a file of a run."""
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, name, folder)).read_bytes()


def json_artifact(client: MlflowClient, run_id: str, name: str) -> dict[str, Any]:
    """A JSON file of a run; empty where the run has none.

    Raises:
        TrackingError: the file is not what this project writes.
    """
    if name not in [file.path for file in client.list_artifacts(run_id)]:
        return {}
    content = json.loads(artifact(client, run_id, name))
    if not isinstance(content, dict):
        raise TrackingError(f"run {run_id!r}: its {name} is not what this project writes")
    return content
