"""Compares a run's records with what an exported run (``python tune/reproduce.py RUN_ID --export DIR``) is to give.

    python -m psalm.tools.compare_records run expected.json

Exit code 0 if they are the same, bit for bit or, where the arithmetic is another one, within the tolerance; 1 if they
differ, 2 if they cannot be compared.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from psalm.train.comparison import (
    INPUTS,
    Comparison,
    Points,
    Tolerance,
    as_table,
    compare,
    other_arithmetic,
    summary,
    verdict,
)
from psalm.train.fields import SettingError
from psalm.train.records import FILE_NAME, metric_history, read_records

SAME, DIFFERENT, REFUSED = 0, 1, 2  # exit codes


@dataclass(frozen=True)
class Expected:
    """What a run is to give: what ``expected.json`` holds."""

    run_id: str
    name: str
    stopped_at: int | None
    changes: Mapping[str, str]
    tags: Mapping[str, str]
    main_metrics: Sequence[str]
    tolerance: Tolerance
    metrics: Mapping[str, Points]

    @classmethod
    def read(cls, path: Path) -> "Expected":
        """Reads the file. Raises SettingError if there is none, or it is another one."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            metrics = {
                name: [(int(step), float(value)) for step, value in points]
                for name, points in content.pop("metrics").items()
            }
            return cls(**content | {"tolerance": Tolerance(**content["tolerance"]), "metrics": metrics})
        except OSError as error:
            raise SettingError(f"{path}: {error.strerror}; give the expected.json of an exported run") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SettingError(f"{path} is not what --export writes ({error}); give its expected.json") from error


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Points]]:
    """A run's tags and metrics, from its own records.

    Raises:
        SettingError: there are none, or they hold no metric.
    """
    if not (folder / FILE_NAME).is_file():
        raise SettingError(f"{folder} has no {FILE_NAME}; give the folder that the run was trained in (its output_dir)")
    try:
        records = list(read_records(folder))
    except ValueError as error:
        raise SettingError(f"{error}; train the run again") from error
    tags: dict[str, Any] = {}
    for record in records:
        if record["kind"] == "tags":
            tags |= record["values"]
    history: dict[str, Points] = {name: list(steps.items()) for name, steps in metric_history(records).items()}
    if not history:
        raise SettingError(f"{folder} has recorded no metrics yet; train the run to its end first")
    return tags, history


def other_inputs(expected: Mapping[str, str], present: Mapping[str, Any]) -> list[str]:
    """Data and weights that are not those of the recorded run, a line each."""
    names = sorted(name for name in {*expected, *present} if name.startswith(INPUTS))
    return [
        f"{name.replace('_', ' ')} differs: recorded {expected.get(name, 'none')}, here {present.get(name, 'none')}"
        for name in names
        if expected.get(name) != present.get(name)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m psalm.tools.compare_records",
        description="Compare a run's records with those of an exported run.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="The run's folder, its output_dir.")
    parser.add_argument("expected", type=Path, metavar="EXPECTED", help="The expected.json of the exported run.")
    add_tolerances(parser)
    options = parser.parse_args(arguments)
    try:
        expected = Expected.read(options.expected)
        tags, history = read_run(options.run)
    except SettingError as error:
        sys.stderr.write(f"compare_records: {error}\n")
        return REFUSED
    console = Console()
    for line in other_inputs(expected.tags, tags):
        console.print(f"  differs  {line}", style="red", markup=False, soft_wrap=True, highlight=False)
    reasons = other_arithmetic(expected.tags, tags)
    reasons += [f"{name} changed while the run was recorded: {text}" for name, text in expected.changes.items()]
    tolerance = expected.tolerance.replaced(options.rtol, options.atol)
    if tolerance != expected.tolerance:
        reasons.append("a tolerance is given")
    if reasons:
        print_reasons(console, reasons, tolerance)
    rows = compare(
        expected.metrics, history, expected.stopped_at, tolerance if reasons else None, expected.main_metrics
    )
    return print_verdict(console, rows)


def add_tolerances(parser: argparse.ArgumentParser) -> None:
    """The options that replace the tolerances."""
    parser.add_argument(
        "--rtol",
        type=_not_negative,
        metavar="R",
        help="Let the total loss at the first logged step differ by this share of it, instead of the default: 0.01 in "
        "float32, 0.05 in bf16 and fp16. With --rtol or --atol equal bits are not asked for, on any machine.",
    )
    parser.add_argument(
        "--atol",
        type=_not_negative,
        metavar="A",
        help="Let main metrics at the last evaluation differ by this many points (of percent), instead of by what the "
        "spread over recorded seeds allows or, where that is not known, 4.",
    )


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, but is {text!r}")
    return value


def print_reasons(console: Console, reasons: Sequence[str], tolerance: Tolerance) -> None:
    """Why equal bits are not asked for, and what is."""
    for line in reasons:
        console.print(f"  note  {line}", markup=False, soft_wrap=True, highlight=False)
    console.print(f"  so not every bit is compared, but {tolerance}", markup=False, soft_wrap=True, highlight=False)


def print_verdict(console: Console, rows: Sequence[Comparison]) -> int:
    """The table, then the verdict; returns the exit code."""
    console.print(as_table(rows))
    console.print(f"[bold]{verdict(rows)}[/]: {summary(rows)}", soft_wrap=True, highlight=False)
    return DIFFERENT if verdict(rows) == "different" else SAME


if __name__ == "__main__":
    sys.exit(main())
