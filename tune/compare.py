"""Compare the trials of searches: ``python tune/compare.py EXPERIMENT...``; ``--help`` explains the options."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from rich.console import Console

from psalm.train.fields import SettingError
from tune.report.comparison import Search, better_when
from tune.report.report import write_report
from tune.report.search_runs import find_searches, read_search
from tune.report.view import share_view, view_address
from tune.report.words import describe_in_markdown, summary
from tune.tracking.connection import STORE_ERRORS, absolute_uri, connect, one_line, set_tags
from tune.tracking.ledger import TrackingError
from tune.tracking.store import DEFAULT_STORE, open_store

PAGE, FOLDER = "report.html", "report"
"""In a search's folder: the page, and the folder of its pictures; among a run's artifacts the folder holds both."""
REFUSED = 2


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="compare.py",
        description="Compare the trials of one or more searches, from their MLflow records alone: a page with the "
        "ranking, the best so far over device-hours, learning curves, hyperparameters, quality against cost, the best "
        "against the baseline, failures and costs. It needs no server and no network. Its pictures are also written as "
        "PNG. Of a single search, both are put among the artifacts of its run, below report/.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "experiments",
        metavar="EXPERIMENT",
        nargs="+",
        help="A search's name, which stands for its newest run, or the id of a search's run.",
    )
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        default=DEFAULT_STORE,
        help=f"Read from the MLflow store at URI. The default is {DEFAULT_STORE}, where a search puts it.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(PAGE),
        metavar="FILE",
        help="Write the page to FILE, and its pictures into a folder of that name without its ending. The default is "
        "report.html.",
    )
    options = parser.parse_args(arguments)
    if options.output.suffix != ".html":
        parser.error(f"--output {options.output}: the page is HTML; give a name that ends with .html")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, draw, write, say what came of it. Returns 0, or 2 where there is nothing to compare."""
    options = parse_options(arguments)
    console = Console()
    page, folder = options.output, options.output.with_suffix("")
    uri = absolute_uri(options.tracking_uri)
    try:
        client = open_store(uri)
        with console.status("Reading and drawing"):
            searches = [read_search(client, uri, run) for run in find_searches(client, options.experiments)]
            write_report(searches, page, folder)
            if len(searches) == 1:
                log_report(client, searches[0], page, folder)
    except (TrackingError, ValueError, *STORE_ERRORS) as error:
        sys.stderr.write(f"compare.py: {_reason(error)}\n")
        return REFUSED
    for search in searches:
        console.print(f"{search.board.name}: {summary(search)}", markup=False, soft_wrap=True, highlight=False)
    console.print(f"The report is in {page}, its pictures in {folder}", markup=False, soft_wrap=True, highlight=False)
    return 0


def log_report(client: MlflowClient, search: Search, page: Path, folder: Path) -> None:
    """Puts a report among the artifacts of its search, and the answer on MLflow's page of it.

    MLflow's pages then also know by which metric its runs are compared, and show its trials as a table.
    """
    client.log_text(search.run_id, page.read_text(encoding="utf-8"), f"{FOLDER}/{PAGE}")
    client.log_artifacts(search.run_id, str(folder), FOLDER)
    set_tags(client, search.run_id, {"mlflow.note.content": describe_in_markdown(search)})
    share_view(client, search)
    metric = search.board.metric
    greater = str(better_when(metric) == "max").lower()
    client.set_experiment_tag(search.experiment_id, "mlflow.experiment.primaryMetric.name", metric)
    client.set_experiment_tag(search.experiment_id, "mlflow.experiment.primaryMetric.greaterIsBetter", greater)


def report_search(uri: str, run_id: str | None, folder: Path) -> str:
    """Writes the report of a search that ends, as ``report.html`` and ``report/`` in its folder, and logs it.

    Args:
        uri: of the store.
        run_id: of the search in MLflow; None if the store was away.
        folder: of the search.

    Returns:
        Lines for the user: where it is, or why there is none. A report that fails is no reason for a search to fail.
    """
    if run_id is None:
        return "No report: MLflow does not have the search yet; bring it there, and then: python tune/compare.py NAME"
    try:
        client = connect(uri)
        search = read_search(client, uri, client.get_run(run_id))
        write_report([search], folder / PAGE, folder / FOLDER)
        log_report(client, search, folder / PAGE, folder / FOLDER)
    except Exception as error:  # noqa: BLE001 - the search has ended well, whatever is wrong with its report
        return f"No report: {type(error).__name__}: {_reason(error)}"
    return f"The report is in {folder / PAGE}\nMLflow shows the trials at {view_address(search)}"


def _reason(error: Exception) -> str:
    """In a line; the project's own errors are one already."""
    return str(error) if isinstance(error, (TrackingError, SettingError)) else one_line(error)


if __name__ == "__main__":
    sys.exit(main())
