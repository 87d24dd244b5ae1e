"""Finished and running searches, found and read in MLflow, which is all that is needed of them."""

import json
import math
import re
import statistics
import time
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from psalm.train.arguments import check_setting
from psalm.train.learning_rates import LEARNING_RATE_CHANGES
from psalm.train.tasks import PER_CLASS_FILE
from tune.costs import STEP_SECONDS
from tune.errors import SearchError
from tune.report.comparison import SIZES, Search, Trial
from tune.space.parameters import Value
from tune.study.board import Board, Fork, Status, TrialRow
from tune.study.objectives import Objective
from tune.tracking.store import MOST_RUNS, artifact, find_experiment, json_artifact, metric_points, runs_of_kind
from tune.tracking.tracker import FORKED_STEP, FORKED_TRIAL
from tune.trials.resources import TrialResources

_PREDICTIONS = re.compile(r"predictions(_\w+)?\.png")
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_STATUS = {"FINISHED": Status.COMPLETED, "FAILED": Status.FAILED, "KILLED": Status.WAITING}


def find_searches(client: MlflowClient, names: Sequence[str]) -> list[Run]:
    """The parent runs that are meant by names of experiments (the newest one of each) or by run ids.

    Raises:
        SearchError, TrackingError: there is none.
    """
    return [_find_by_id(client, name) if _RUN_ID.fullmatch(name) else _find_newest(client, name) for name in names]


def _find_by_id(client: MlflowClient, run_id: str) -> Run:
    run = client.get_run(run_id)
    if run.data.tags.get("kind") != "search":
        parent = run.data.tags.get("mlflow.parentRunId")
        advice = "the name of an experiment" if parent is None else f"{parent}, the search that it belongs to"
        raise SearchError(f"run {run_id} is not a search; give {advice}")
    return run


def _find_newest(client: MlflowClient, name: str) -> Run:
    searches = runs_of_kind(client, find_experiment(client, name), "search")
    if not searches:
        raise SearchError(f"experiment {name!r} has no search; python tune/search.py records one")
    return searches[-1]


def read_search(client: MlflowClient, uri: str, run: Run) -> Search:
    """All that is compared of a search.

    Args:
        client: of the store.
        uri: the store's.
        run: the parent.

    Raises:
        SearchError: the run has not what a search records.
    """
    parent = run.info.run_id
    config = json_artifact(client, parent, "search_config.json")
    if not config:
        raise SearchError(f"search {run.info.run_name} ({parent}) has no search_config.json: it ended at its start")
    summary = json_artifact(client, parent, "search.json")
    told = {each["run_id"]: each for each in (*summary.get("trials", ()), *summary.get("confirmations", ()))}
    metric = config["metric"]
    board = Board(run.info.run_name, metric, config["mode"], config["arguments"]["max_steps"], config["num_samples"])
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=MOST_RUNS
    )
    trials = {}
    for child in sorted(children, key=lambda child: int(child.data.tags["trial_number"])):
        trial = _read_trial(client, child, metric, config["space"], told.get(child.info.run_id, {}))
        trials[trial.number] = trial
    board.trials = {number: trial.row for number, trial in trials.items()}
    board.baseline = 0 if config["baselines"] else None
    board.objectives = tuple(Objective(*item) for each in config.get("objectives", ()) for item in each.items())
    shown = {each.number: each for each in map(board.trials.get, _shown(board)) if each is not None}
    files = {number: [file.path for file in client.list_artifacts(trials[number].run_id)] for number in shown}
    return Search(
        name=client.get_experiment(run.info.experiment_id).name,
        run_id=parent,
        experiment_id=run.info.experiment_id,
        server=server_address(uri),
        status=run.info.status,
        started=run.info.start_time / 1000,
        board=board,
        trials=trials,
        space=config["space"],
        resources=TrialResources(**config["resources"]),
        seconds=summary.get("seconds", {}),
        per_class={
            number: json.loads(artifact(client, trials[number].run_id, PER_CLASS_FILE))
            for number, names in files.items()
            if PER_CLASS_FILE in names
        },
        predictions={
            number: {
                name: artifact(client, trials[number].run_id, name) for name in names if _PREDICTIONS.fullmatch(name)
            }
            for number, names in files.items()
        },
    )


def _shown(board: Board) -> list[int]:
    """The trials whose predictions are compared."""
    best = [] if board.best is None else [board.best.number]
    return best + [number for number in (board.baseline,) if number is not None and number not in best]


def _read_trial(client: MlflowClient, run: Run, metric: str, space: Iterable[str], told: Mapping[str, Any]) -> Trial:
    """``told`` is what ``search.json`` has of it, if anything."""
    tags, params, run_id = run.data.tags, run.data.params, run.info.run_id
    setting: Mapping[str, Value] = told.get("params") or {
        name: check_setting(name, params[name]) for name in space if name in params
    }
    started = run.info.start_time / 1000
    ended = run.info.end_time / 1000 if run.info.end_time else time.time()
    confirms = int(tags["confirms"]) if "confirms" in tags else None
    row = TrialRow(
        number=int(tags["trial_number"]),
        params=setting,
        status=_status(run),
        values=_finite_points(client, run, metric),
        reason=tags.get("reason"),
        spent=told.get("seconds", ended - started),
        confirms=confirms,
        seed=None if confirms is None else int(params["seed"]),
        answered_by=tags.get("answered_by"),
        fork=Fork(int(tags[FORKED_TRIAL]), int(tags[FORKED_STEP])) if FORKED_TRIAL in tags else None,
        learning_rate_changes=check_setting(LEARNING_RATE_CHANGES, params.get(LEARNING_RATE_CHANGES)) or {},
    )
    row.step = told.get("steps", row.evaluated)
    row.objectives = told.get("objectives", {})
    measures = {name: value for name, value in run.data.metrics.items() if math.isfinite(value)}
    measures |= {name: float(tags[name]) for name in SIZES if name in tags}
    if per_step := _finite_points(client, run, STEP_SECONDS):
        measures[STEP_SECONDS] = statistics.median(per_step.values())
    return Trial(row, run_id, run.info.run_name, started, ended, measures)


def _status(run: Run) -> Status:
    if run.data.tags.get("early_stopped") == "true":
        return Status.PRUNED
    return _STATUS.get(run.info.status, Status.RUNNING)


def _finite_points(client: MlflowClient, run: Run, name: str) -> dict[int, float]:
    if name not in run.data.metrics:
        return {}
    points = metric_points(client, run.info.run_id, name)
    return {step: value for step, value in points if math.isfinite(value)}


def server_address(uri: str) -> str | None:
    """Where a server's pages are, without user and password; None for other stores."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
