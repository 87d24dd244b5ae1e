"""Repeat a run from its MLflow record alone, and prove that it is the same: ``python tune/reproduce.py RUN_ID``."""

import argparse
import dataclasses
import json
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from rich.console import Console

from psalm.train.arguments import check_inputs, with_defaults
from psalm.train.fingerprints import input_fingerprints
from tune.connection import (
    PARAM_LENGTH,
    STORE_ERRORS,
    absolute_uri,
    as_text,
    connect,
    describe,
    find_or_create,
    one_line,
    set_tags,
    sqlite_path,
)
from tune.delivery import SETTINGS_FILE, Delivery
from tune.fingerprint import provenance, source_files
from tune.ledger import TrackingError
from tune.options import new_folder
from tune.resources import TrialResources, this_machine
from tune.tracking import SOURCES_FILE
from tune.verdict import MACHINE, Comparison, Points, as_json, as_table, compare, differences, inconsistencies

EQUAL, DIFFERENT, REFUSED = 0, 1, 2  # exit codes


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
        if self.stopped_at is None:
            return "which ran to its end"
        stopped = self.status == "FINISHED"
        return f"which was {'stopped early' if stopped else self.status.lower()} after step {self.stopped_at}"

    @property
    def resources(self) -> TrialResources:
        """What the run's workers were given."""
        given = self.tags
        return TrialResources(
            int(given.get("workers_per_trial", given.get("world_size", "1"))),
            float(given.get("cpus_per_worker", "1")),
            float(given.get("gpus_per_worker", "0")),
        )


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
    settings = _json_artifact(client, run_id, SETTINGS_FILE)
    if not settings:
        raise RecordError(f"run {run_id!r} has no {SETTINGS_FILE}: it is no run of this project, or ended at its start")
    history = read_history(client, run)
    if not any(not name.startswith(MACHINE) for name in history):
        raise RecordError(f"run {run_id!r} recorded no metrics: there is nothing to compare")
    params = run.data.params
    contradictions = inconsistencies(run.data.metrics, history) + [
        f"{name}: the record shows {params[name]!r}, but its {SETTINGS_FILE} has {value!r}"
        for name, value in settings.items()
        if name in params and params[name] != as_text(value, PARAM_LENGTH) and f"changed.{name}" not in tags
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
        sources=_json_artifact(client, run_id, SOURCES_FILE),
        history=history,
        contradictions=tuple(contradictions),
    )


def read_history(client: MlflowClient, run: Run) -> dict[str, Points]:
    """Every metric of a run, in order of steps."""
    history: dict[str, Points] = {}
    for name in run.data.metrics:
        points = client.get_metric_history(run.info.run_id, name)
        history[name] = sorted(((p.step, p.value) for p in points), key=lambda point: point[0])
    return history


def _json_artifact(client: MlflowClient, run_id: str, name: str) -> dict[str, Any]:
    """A JSON file of a run; empty where the run has none."""
    if name not in [file.path for file in client.list_artifacts(run_id)]:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        content = json.loads(Path(client.download_artifacts(run_id, name, folder)).read_text())
    if not isinstance(content, dict):
        raise RecordError(f"run {run_id!r}: its {name} is not what this project writes")
    return content


def check_record(record: Record, files: Mapping[str, str]) -> list[str]:
    """What is not as it was when the run was recorded; found out before any compute.

    Raises:
        RecordError: the run cannot be repeated here, whatever is allowed to differ.
    """
    resources = record.resources
    try:
        check_inputs(record.settings)
        resources.concurrency([this_machine()], 1)
        present = provenance(files) | input_fingerprints(with_defaults(record.settings))
    except ValueError as error:
        raise RecordError(f"run {record.run_id!r} cannot be repeated here: {error}") from error
    present["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    present["omp_num_threads"] = str(max(1, int(resources.cpus_per_worker)))  # as a Ray session sets it
    return [*record.contradictions, *differences(record.tags, present, record.sources, files)]


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="reproduce.py",
        description="Repeat a run from its MLflow record alone, compare every logged value with the record bit for "
        "bit, and record the repetition as a run that is linked to the first. The exit code is 0 only if all values "
        "are equal, 1 if something differs, 2 if the run cannot be repeated.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run_id", metavar="RUN_ID", help="The run's id: on MLflow's page, or in a search's search.json."
    )
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="Read the record from the MLflow store at URI. The default is the SQLite file mlflow.db in the output "
        "folder, where a search puts it.",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="Put the repetition into DIR/reproductions. The default is runs.",
    )
    parser.add_argument(
        "--allow-differences",
        action="store_true",
        help="Go on although data, weights, sources or versions are not the ones of the record.",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, check, repeat, compare. Returns the exit code: see ``--help``; 128 + its number after a signal."""
    options = parse_options(arguments)
    output_dir = options.output_dir.expanduser().absolute()
    uri = absolute_uri(options.tracking_uri or f"sqlite:///{output_dir / 'mlflow.db'}")
    console = Console()
    try:
        database = sqlite_path(uri)
        if database is not None and not database.exists():
            raise RecordError(f"tracking URI {uri!r}: there is no such file; give the search's --tracking-uri")
        client = connect(uri)
        record = read_record(client, options.run_id)
        files = source_files()
        found = check_record(record, files)
        folder = new_folder(output_dir / "reproductions", record.run_id[:8])
    except (TrackingError, ValueError, *STORE_ERRORS) as error:
        sys.stderr.write(f"reproduce.py: {one_line(error)}\n")
        return REFUSED
    console.print(f"Run {record.name} ({record.run_id}), {record.ending}", soft_wrap=True, highlight=False)
    if record.tags.get("hostname") != socket.gethostname():
        console.print(f"  note: recorded on {record.tags.get('hostname')}; another processor may round differently")
    for line in found:
        console.print(f"  differs  {line}", style="red", soft_wrap=True, highlight=False, markup=False)
    if found and not options.allow_differences:
        sys.stderr.write("reproduce.py: not the same as in the record; to run it all the same: --allow-differences\n")
        return DIFFERENT
    return repeat_and_compare(client, record, files, folder, console)


def repeat_and_compare(
    client: MlflowClient, record: Record, files: Mapping[str, str], folder: Path, console: Console
) -> int:
    """Trains, compares, records the repetition. Returns the exit code."""
    # Ray takes seconds to import: what is refused is told before.
    from tune.cluster import Interrupted
    from tune.repetition import repeat

    tags = {"kind": "reproduction", "reproduces": record.run_id} | provenance(files)
    tags |= {name: str(value) for name, value in dataclasses.asdict(record.resources).items()}
    if record.stopped_at is not None:
        tags["early_stopped"] = "true"
    mark = {"run_key": uuid.uuid4().hex}
    run_id = find_or_create(client, record.experiment_id, f"reproduction of {record.name}", time.time(), mark, tags)
    status, verdict = "FAILED", "failed"
    try:
        hint = "" if record.seconds is None else f"; the first run took {record.seconds:.0f} s"
        with console.status(f"Training again in {folder}{hint}"):
            reason = repeat(record.settings, record.resources, folder, record.stopped_at)
        Delivery(client, run_id, folder).deliver()
        history = read_history(client, client.get_run(run_id))
        comparisons = compare(record.history, history, record.stopped_at)
        describe(client, run_id, {SOURCES_FILE: dict(files), "verdict.json": as_json(comparisons)}, {})
        status = "FINISHED" if reason is None else "FAILED"
        equal = all(row.difference is None for row in comparisons) and (reason is None or record.status == "FAILED")
        verdict = "identical" if equal else "different"
        if reason is not None:
            set_tags(client, run_id, {"reason": reason})
    except Interrupted as interrupt:
        status, verdict = "KILLED", "interrupted"
        return interrupt.exit_code
    finally:
        set_tags(client, run_id, {"reproduction": verdict})
        client.set_terminated(run_id, status)
    print_verdict(console, comparisons, verdict, reason, run_id)
    return EQUAL if equal else DIFFERENT


def print_verdict(
    console: Console, comparisons: Sequence[Comparison], verdict: str, reason: str | None, run_id: str
) -> None:
    """A line per metric, then the verdict."""
    console.print(as_table(comparisons))
    if reason is not None:
        console.print(f"The repetition failed: {reason}", markup=False, soft_wrap=True)
    unequal = sum(row.difference is not None for row in comparisons)
    points = sum(row.points for row in comparisons)
    text = (
        f"{len(comparisons)} metrics, {points} values, equal bit for bit"
        if not unequal
        else f"{unequal} of {len(comparisons)} metrics differ"
    )
    console.print(f"[bold]{verdict}[/]: {text}; recorded as run {run_id}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
