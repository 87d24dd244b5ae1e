"""Register a trial's model in MLflow: ``python tune/register.py RUN_ID NAME``; ``--help`` explains the options.

Models stay where they were trained, because they are large: only the one that is registered is copied to MLflow.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from psalm.train.checkpoint_files import FINAL_MODEL
from tune.errors import SearchError
from tune.tracking.connection import STORE_ERRORS, absolute_uri, one_line
from tune.tracking.ledger import TrackingError
from tune.tracking.store import DEFAULT_STORE, open_store

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
    client.log_artifacts(run_id, str(folder), FINAL_MODEL)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{run.info.artifact_uri}/{FINAL_MODEL}"
    return str(client.create_model_version(name, source, run_id, description=run.info.run_name).version)


if __name__ == "__main__":
    sys.exit(main())
