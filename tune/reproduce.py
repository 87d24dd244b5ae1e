"""Repeat a run from its MLflow record alone, and prove that it is the same: ``python tune/reproduce.py RUN_ID``."""

import argparse
import dataclasses
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from rich.console import Console

from psalm.tools.compare_records import add_tolerances, print_reasons
from psalm.train.arguments import check_inputs, with_defaults
from psalm.train.comparison import (
    Comparison,
    Tolerance,
    as_table,
    compare,
    other_arithmetic,
    summary,
    verdict,
)
from psalm.train.fingerprints import device_name, input_fingerprints, processor_kind
from tune.options import new_folder
from tune.reproduction.export import export
from tune.reproduction.recorded import Record, RecordError, read_record
from tune.reproduction.seeds import known_seeds, new_seeds, print_seeds, sweep, tolerance_for
from tune.reproduction.verdict import differences
from tune.tracking.connection import (
    STORE_ERRORS,
    absolute_uri,
    describe,
    find_or_create,
    one_line,
    set_tags,
)
from tune.tracking.delivery import Delivery
from tune.tracking.fingerprint import provenance, source_files
from tune.tracking.ledger import TrackingError
from tune.tracking.store import open_store, read_history
from tune.tracking.tracker import SOURCES_FILE
from tune.trials.resources import TrialResources, this_machine

SAME, DIFFERENT, REFUSED = 0, 1, 2  # exit codes


@dataclass(frozen=True)
class Check:
    """What is not as it was when a run was recorded."""

    different: list[str]
    """Sources, versions, data, weights: not to be gone on with unless that is asked for."""
    reasons: list[str]
    """Why equal bits cannot be expected."""
    resources: TrialResources
    """What each of its workers is given here."""
    on_cpu: bool
    """It is trained without a GPU, whether there is one or not."""


def check_record(record: Record, files: Mapping[str, str], on_cpu: bool = False) -> Check:
    """Compares what a run was made with to what is here; before any compute.

    Args:
        record: the run. One that was trained without a GPU is so here.
        files: of ``source_files()``.
        on_cpu: one that was trained on GPUs is, too.

    Raises:
        RecordError: the run cannot be repeated here, whatever is allowed to differ.
    """
    on_cpu = on_cpu or record.tags.get("device") == "cpu"
    resources = dataclasses.replace(record.resources, gpus_per_worker=0) if on_cpu else record.resources
    try:
        check_inputs(record.settings)
        resources.concurrency([this_machine()], 1)
        present = provenance(files) | input_fingerprints(with_defaults(record.settings))
    except ValueError as error:
        raise RecordError(f"run {record.run_id!r} cannot be repeated here: {error}") from error
    present["device"] = device_name(use_cpu=on_cpu)
    present["processor"] = processor_kind()
    present["omp_num_threads"] = str(max(1, int(resources.cpus_per_worker)))  # as a Ray session sets it
    reasons = other_arithmetic(record.tags, present)
    reasons += [
        f"{name} changed while the run was recorded ({text}); it is repeated with the last value from its first step on"
        for name, text in record.changes.items()
    ]
    different = [*record.contradictions, *differences(record.tags, present, record.sources, files)]
    return Check(different, reasons, resources, on_cpu)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="reproduce.py",
        description="Repeat a run from its MLflow record alone, compare every logged value with the record, and record "
        "the repetition as a run that is linked to the first. On the same kind of processor all values must be equal "
        "bit for bit; on another one, or on GPUs, they are compared within tolerances. The exit code is 0 if the "
        "runs are the same, 1 if something differs, 2 if the run cannot be repeated.",
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
        help="Put the repetition into DIR/reproductions, those of a sweep into DIR/seeds. The default is runs.",
    )
    parser.add_argument(
        "--allow-differences",
        action="store_true",
        help="Go on although data, weights, sources or versions are not the ones of the record.",
    )
    parser.add_argument(
        "--on-cpu",
        action="store_true",
        help="Repeat on the CPU a run that was recorded on GPUs. One that was recorded without is repeated without.",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--sweep-seeds",
        type=_count,
        metavar="N",
        help="Instead, train the run again with N new seeds, as many at once as fit, and show how far the results are "
        "apart. Their spread is then what repetitions on other hardware are measured by.",
    )
    instead.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="Instead, write the run into the new folder DIR: a command, its settings, versions, fingerprints, and the "
        "values to expect. It runs without MLflow and Ray; nothing is trained now.",
    )
    add_tolerances(parser)
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, but is {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, check, repeat, compare. Returns the exit code: see ``--help``; 128 + its number after a signal."""
    options = parse_options(arguments)
    output_dir = options.output_dir.expanduser().absolute()
    uri = absolute_uri(options.tracking_uri or f"sqlite:///{output_dir / 'mlflow.db'}")
    console = Console()
    try:
        client = open_store(uri)
        record = read_record(client, options.run_id)
        if options.export is not None:
            known = tolerance_for(client, record).replaced(options.rtol, options.atol)
            export(record, options.export.expanduser().absolute(), known)
            console.print(f"Run {record.name} is in {options.export}; its README.md says how to run it", markup=False)
            return SAME
        files = source_files()
        check = check_record(record, files, options.on_cpu)
        if options.rtol is not None or options.atol is not None:
            check.reasons.append("a tolerance is given")
        tolerance = tolerance_for(client, record).replaced(options.rtol, options.atol) if check.reasons else None
        kind = "reproductions" if options.sweep_seeds is None else "seeds"
        folder = new_folder(output_dir / kind, record.run_id[:8])
    except (TrackingError, ValueError, *STORE_ERRORS) as error:
        sys.stderr.write(f"reproduce.py: {one_line(error)}\n")
        return REFUSED
    console.print(f"Run {record.name} ({record.run_id}), {record.ending}", soft_wrap=True, highlight=False)
    for line in check.different:
        console.print(f"  differs  {line}", style="red", soft_wrap=True, highlight=False, markup=False)
    if check.different and not options.allow_differences:
        sys.stderr.write("reproduce.py: not the same as in the record; to run it all the same: --allow-differences\n")
        return DIFFERENT
    if options.sweep_seeds is not None:
        return sweep_and_show(client, record, options.sweep_seeds, folder, files, console, check)
    if tolerance is not None:
        print_reasons(console, check.reasons, tolerance)
    return repeat_and_compare(client, record, files, folder, console, check, tolerance)


def repeat_and_compare(
    client: MlflowClient,
    record: Record,
    files: Mapping[str, str],
    folder: Path,
    console: Console,
    check: Check,
    tolerance: Tolerance | None,
) -> int:
    """Trains, compares, records the repetition. Returns the exit code."""
    # Ray takes seconds to import: what is refused is told before.
    from tune.reproduction.repetition import Repetition, repeat
    from tune.trials.cluster import Interrupted

    tags = {"kind": "reproduction", "reproduces": record.run_id} | provenance(files)
    tags |= record.tags_of_repetition(check.resources)
    mark = {"run_key": uuid.uuid4().hex}
    run_id = find_or_create(client, record.experiment_id, f"reproduction of {record.name}", time.time(), mark, tags)
    status, result = "FAILED", "failed"
    try:
        hint = "" if record.seconds is None else f"; the first run took {record.seconds:.0f} s"
        run = Repetition(folder, record.settings, record.stopped_at)
        with (
            console.status(f"Training again in {folder}{hint}"),
            closing(repeat([run], check.resources, on_cpu=check.on_cpu)) as ended,
        ):
            ((_, reason),) = ended
        Delivery(client, run_id, folder).deliver()
        history = read_history(client, client.get_run(run_id))
        rows = compare(record.history, history, record.stopped_at, tolerance, record.main_metrics)
        about = {"verdict.json": as_json(rows, tolerance), SOURCES_FILE: dict(files)}
        describe(client, run_id, about, {})
        status = "FINISHED" if reason is None else "FAILED"
        result = verdict(rows) if reason is None or record.status == "FAILED" else "different"
        if reason is not None:
            set_tags(client, run_id, {"reason": reason})
    except Interrupted as interrupt:
        status, result = "KILLED", "interrupted"
        return interrupt.exit_code
    finally:
        set_tags(client, run_id, {"reproduction": result})
        client.set_terminated(run_id, status)
    console.print(as_table(rows))
    if reason is not None:
        console.print(f"The repetition failed: {reason}", markup=False, soft_wrap=True)
    console.print(f"[bold]{result}[/]: {summary(rows)}; recorded as run {run_id}", soft_wrap=True, highlight=False)
    return DIFFERENT if result == "different" else SAME


def as_json(rows: Sequence[Comparison], tolerance: Tolerance | None) -> dict[str, str]:
    """``{metric: how it compares}``, after what was asked for."""
    asked = "every value equal bit for bit" if tolerance is None else str(tolerance)
    return {"asked": asked} | {
        row.name: row.agreement if row.difference is None else f"{row.agreement} at {row.difference}" for row in rows
    }


def sweep_and_show(
    client: MlflowClient,
    record: Record,
    count: int,
    folder: Path,
    files: Mapping[str, str],
    console: Console,
    check: Check,
) -> int:
    """Trains with new seeds and shows what is known of the run's then. Returns the exit code."""
    from tune.trials.cluster import Interrupted

    exit_code = SAME
    seeds = new_seeds(client, record, count)
    console.print(f"Training in {folder} with the seeds {', '.join(map(str, seeds))}", markup=False, soft_wrap=True)
    try:
        runs = sweep(client, record, seeds, folder, files, console, resources=check.resources, on_cpu=check.on_cpu)
        if any(run.reason is not None for run in runs):
            exit_code = DIFFERENT
    except Interrupted as interrupt:
        console.print("The sweep was interrupted; runs that had ended are recorded, and count below")
        exit_code = interrupt.exit_code
    known = known_seeds(client, record)
    if known is not None:
        print_seeds(console, record, known)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
