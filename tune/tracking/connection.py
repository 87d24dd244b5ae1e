"""MLflow's store: reached within seconds or refused with one line; the few things that every run is told there."""

import json
import logging
import os
import socket
import sqlite3
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import requests
import sqlalchemy.exc

from tune.tracking.ledger import TrackingError, locked

# Before MLflow is imported: a search does not wait minutes for a server, and tells nobody that it runs.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Param, RunTag, ViewType  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

PARAM_LENGTH = 6000
TAG_LENGTH = 5000
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0  # seconds
METRICS_PER_CALL = 1000
_PER_CALL = 100  # parameters or tags

# What a store that is away raises, and what it answers when it is there and refuses.
STORE_ERRORS = (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError)
_REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}

logger = logging.getLogger(__name__)


def refused(error: Exception) -> bool:
    """Whether the store has answered with a no, so that asking again will not help."""
    return isinstance(error, MlflowException) and error.error_code in _REFUSALS


def one_line(error: BaseException) -> str:
    """The gist of an error whose message may be a page: what the operating system said at its bottom, if anything."""
    gist, cause = error, error
    while (below := cause.__cause__ or cause.__context__) is not None:
        cause = below
        if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException):
            gist = cause
    text = str(gist).strip() or type(gist).__name__
    return text.splitlines()[0][:200]


def public_uri(uri: str) -> str:
    """``uri`` without its password."""
    parts = urllib.parse.urlsplit(uri)
    if parts.password is None:
        return uri
    return parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@", 1)).geturl()


def absolute_uri(uri: str) -> str:
    """A SQLite file named relative to the working directory, named from the root: workers change theirs."""
    path = sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a ``sqlite:///`` URI, absolute; None for other stores."""
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix)).absolute() if uri.startswith(prefix) and uri != prefix else None


class Patience:
    """When a store that was away is asked again: after five seconds, then twice as long each time, up to a minute."""

    def __init__(self) -> None:
        self._away_since: float | None = None
        self._pause = FIRST_PAUSE
        self._next = 0.0

    @property
    def over(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next

    def failed(self, error: Exception) -> None:
        """It did not answer; that is told once."""
        if self._away_since is None:
            logger.warning("MLflow is away, records are kept for later: %s", one_line(error))
            self._away_since = time.monotonic()
        self._next = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def answered(self) -> None:
        """It did, and has what was kept."""
        if self._away_since is not None:
            logger.warning("MLflow is back after %.0f s and has what was kept", time.monotonic() - self._away_since)
        self._away_since, self._pause, self._next = None, FIRST_PAUSE, 0.0


def connect(uri: str) -> MlflowClient:
    """A client whose store has answered; a SQLite database is created here, in one process, if it is not there yet.

    Raises:
        TrackingError: within seconds, where the store does not exist, does not answer or is none.
    """
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log a page when a database is created
    scheme = urllib.parse.urlsplit(uri).scheme.partition("+")[0]
    path = sqlite_path(uri)
    if path is None and scheme not in {"http", "https", "databricks", *_DATABASE_PORTS}:
        raise TrackingError(
            f"tracking URI {uri!r}: not a store that MLflow can record into; "
            "give sqlite:////absolute/path/mlflow.db or the server's http://host:port"
        )
    try:
        if path is None:
            _check_port(uri, scheme)
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.parent):
                _check_database(path)
                client = MlflowClient(uri)
                client.search_experiments(max_results=1)
    except (*STORE_ERRORS, sqlite3.Error, ImportError, ValueError) as error:
        advice = "check the path" if scheme == "sqlite" else "start the server or check the address"
        raise TrackingError(f"tracking URI {public_uri(uri)!r}: {one_line(error)}; {advice}") from error
    return client


def _check_port(uri: str, scheme: str) -> None:
    """A database server takes connections at all: MLflow itself would retry for minutes."""
    parts = urllib.parse.urlsplit(uri)
    port = parts.port or _DATABASE_PORTS.get(scheme)
    if scheme in _DATABASE_PORTS and parts.hostname is not None and port is not None:
        socket.create_connection((parts.hostname, port), timeout=5).close()


def _check_database(path: Path) -> None:
    """Opens the file for writing: MLflow itself would retry for minutes where it cannot."""
    with closing(sqlite3.connect(path, timeout=2)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.rollback()


def as_text(value: Any, length: int) -> str:
    """As it is read on MLflow's pages: strings plain, containers as JSON; cut to what the store takes."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | tuple) else str(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def milliseconds(seconds: float) -> int:
    """Unix time as MLflow counts it."""
    return int(seconds * 1000)


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, Any]) -> None:
    """Adds or replaces tags of a run."""
    entities = [RunTag(name, as_text(value, TAG_LENGTH)) for name, value in tags.items()]
    for start in range(0, len(entities), _PER_CALL):
        client.log_batch(run_id, tags=entities[start : start + _PER_CALL])


def add_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    """Adds parameters to a run; one that is there with the same value stays as it is."""
    entities = [Param(name, as_text(value, PARAM_LENGTH)) for name, value in params.items()]
    for start in range(0, len(entities), _PER_CALL):
        client.log_batch(run_id, params=entities[start : start + _PER_CALL])


def add_missing_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    """Adds the parameters whose names are not there: MLflow never changes one."""
    known = client.get_run(run_id).data.params
    add_params(client, run_id, {name: value for name, value in params.items() if name not in known})


def describe(client: MlflowClient, run_id: str, files: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Puts JSON files and final values on a run; doing it again changes nothing."""
    for name, content in files.items():
        client.log_dict(run_id, content, name)
    known = client.get_run(run_id).data.metrics if metrics else {}
    for name, value in metrics.items():
        if known.get(name) != value:
            client.log_metric(run_id, name, value, step=0)


def set_running(client: MlflowClient, run_id: str, stale_tags: Sequence[str]) -> None:
    """A run that had ended runs again: the tags of its end go."""
    client.update_run(run_id, status="RUNNING")
    present = client.get_run(run_id).data.tags
    for name in stale_tags:
        if name in present:
            client.delete_tag(run_id, name)


MODEL_TRAINING = "custom_model_development"
"""MLflow's pages show an experiment of this kind with charts of its runs, not as traces of an application."""


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment of that name, made if need be; beside a SQLite database it keeps its files in ``mlartifacts``."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    path = sqlite_path(uri)
    location = None if path is None else (path.parent / "mlartifacts" / name).as_uri()
    return client.create_experiment(name, location, tags={"mlflow.experimentKind": MODEL_TRAINING})


def check_experiment(client: MlflowClient, uri: str, name: str) -> None:
    """An experiment that was deleted takes no runs. Raises TrackingError if this one was, or the store is away."""
    try:
        found = client.get_experiment_by_name(name)
    except STORE_ERRORS as error:
        raise TrackingError(f"tracking URI {public_uri(uri)!r}: {one_line(error)}") from error
    if found is not None and found.lifecycle_stage != "active":
        raise TrackingError(
            f"tracking URI {public_uri(uri)!r}: its experiment {name!r} was deleted; give the search another name or "
            f"bring it back: mlflow experiments restore --experiment-id {found.experiment_id}"
        )


def find_or_create(
    client: MlflowClient, experiment: str, name: str, started: float, mark: Mapping[str, str], tags: Mapping[str, str]
) -> str:
    """The id of the run that carries the tags of ``mark``, made with ``mark | tags`` if there is none.

    An earlier process, or a call whose answer was lost, may have made it.
    """
    query = " and ".join(f"tags.{key} = '{value}'" for key, value in mark.items())
    found: Sequence[Any] = client.search_runs([experiment], query, ViewType.ALL, max_results=1)
    run = found[0] if found else client.create_run(experiment, milliseconds(started), {**tags, **mark}, name)
    return run.info.run_id
