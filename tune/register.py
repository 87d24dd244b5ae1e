"""Register a trial's model in MLflow: ``python tune/register.py RUN_ID NAME``; ``--help`` explains the options.

Models stay where they were trained, because they are large: copied to MLflow are the one that is registered, and those
of a search with ``--log-models``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from psalm.train.checkpoint_files import FINAL_MODEL
from tune.errors import SearchError
from tune.study.board import Board, Status, trial_folder
from tune.tracking.connection import STORE_ERRORS, absolute_uri, connect, one_line
from tune.tracking.ledger import TrackingError
from tune.tracking.store import DEFAULT_STORE, open_store
from tune.tracking.tracker import Tracker

REFUSED = 2


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="register.py",
        description="Put a trial's final model among the artifacts of its run, and register it in MLflow's model "
        "registry as a new version. A search keeps the final models of its best --keep-best trials.",
        allow_abbrev=False,
    )
    parser.add_argument("run_id", metavar="RUN_ID", help="The trial's run, see search.json or the report.")
    parser.add_argument("name", metavar="NAME", help="The registered model; it is made where there is none.")
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        default=DEFAULT_STORE,
        help=f"The MLflow store that has the run. The default is {DEFAULT_STORE}, where a search puts it.",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="The model's folder. The default is where the run has written it.",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy, register, say which version it is. Returns 0, or 2 where that cannot be."""
    options = parse_options(arguments)
    uri = absolute_uri(options.tracking_uri)
    try:
        version = register(open_store(uri), options.run_id, options.name, options.model)
    except (TrackingError, SearchError) as error:
        sys.stderr.write(f"register.py: {error}\n")
        return REFUSED
    except STORE_ERRORS as error:
        sys.stderr.write(f"register.py: {one_line(error)}\n")
        return REFUSED
    sys.stdout.write(f"models:/{options.name}/{version} is the model of run {options.run_id}\n")
    return 0


def register(client: MlflowClient, run_id: str, name: str, model: Path | None = None) -> str:
    """Registers the model of a run.

    Args:
        client: of the store.
        run_id: of the trial.
        name: of the registered model.
        model: the model's folder, if it is not where the run has written it.

    Returns:
        The version.

    Raises:
        SearchError: there is no such folder.
    """
    run = client.get_run(run_id)
    output_dir = run.data.params.get("output_dir")
    if model is None and output_dir is None:
        raise SearchError(f"run {run_id} does not say where its model is; give --model DIR")
    folder = Path(output_dir) / FINAL_MODEL if model is None else model
    if not folder.is_dir():
        raise SearchError(
            f"{folder} is no folder: the model was not kept (--keep-best), or is on another machine; give --model DIR"
        )
    log_model(client, run_id, folder)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{run.info.artifact_uri}/{FINAL_MODEL}"
    return str(client.create_model_version(name, source, run_id, description=run.info.run_name).version)


def log_model(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Puts a final model among the artifacts of its run, unless it is there."""
    if FINAL_MODEL not in [each.path for each in client.list_artifacts(run_id)]:
        client.log_artifacts(run_id, str(folder), FINAL_MODEL)


def log_models(tracker: Tracker, board: Board, folder: Path) -> str:
    """Puts the kept models of a search that has ended into MLflow, as far as they are on this machine.

    Args:
        tracker: of the search.
        board: its trials.
        folder: its own.

    Returns:
        A line for the user. What fails here is no reason for a search to fail.
    """
    models = {row.number: trial_folder(folder, row.number) / FINAL_MODEL for row in board.of(Status.COMPLETED)}
    runs = {tracker.run_id(number): model for number, model in models.items() if model.is_dir()}
    try:
        client = connect(tracker.uri)
        for run_id, model in runs.items():
            if run_id is None:
                raise TrackingError("it lacks their runs")
            log_model(client, run_id, model)
    except (TrackingError, *STORE_ERRORS) as error:
        return f"Not all models are in MLflow: {one_line(error)}; python tune/register.py RUN_ID NAME puts one there"
    return f"{len(runs)} models are among the artifacts of their runs in MLflow"


if __name__ == "__main__":
    sys.exit(main())
