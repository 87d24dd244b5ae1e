"""The command line of a search."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tune.errors import SearchError

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "experiments" / "search" / "tiny.yaml"
LOCAL = "local"
LONGEST_SERIES = 10_000


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line; None where the search's file decides."""

    config: Path
    num_samples: int | None
    max_concurrent: int | None
    output_dir: Path
    tracking_uri: str
    seed: int | None
    metric: str | None
    address: str
    assignments: tuple[str, ...]
    resources: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """The options of ``python tune/search.py``.

    Raises:
        SystemExit: after ``--help``, or with code 2 and one line on stderr.
    """
    parser = _Parser(
        prog="search.py",
        description="Search training settings: run many trials, stop poor ones early, record all of them in MLflow.",
        epilog="The search ends with a ranking, the best setting, and the commands to compare and to reproduce.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="The YAML file that describes the search: its space, metric, budget and training arguments. "
        "The default is experiments/search/tiny.yaml, which needs no data, GPU, network or server.",
    )
    parser.add_argument(
        "--num-samples",
        type=_count,
        metavar="N",
        help="Run N trials in all, baselines included, instead of the number in the file.",
    )
    parser.add_argument(
        "--max-concurrent",
        type=_count,
        metavar="N",
        help="Run at most N trials at once, instead of the number in the file. Fewer run where resources are short.",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="Put the search into a folder of its name below DIR. The default is runs. If there is one of that name "
        "already, -2 is added to the name, then -3, and so on.",
    )
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="Record the trials in the MLflow store at URI, for example http://localhost:5000. "
        "The default is the SQLite file mlflow.db in the output folder.",
    )
    parser.add_argument(
        "--seed",
        type=_not_negative,
        metavar="N",
        help="Seed the sampler with N, and the training too unless a seed is among its arguments. "
        "The same seed proposes the same settings as long as trials end in the same order.",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="Search for the best value of NAME, instead of the metric in the file: any metric of the trials' tasks, "
        "for example eval_pq, or eval_mean for several tasks.",
    )
    parser.add_argument(
        "--address",
        default=LOCAL,
        metavar="ADDRESS",
        help="Run on the Ray cluster at ADDRESS (auto finds the one of this machine). "
        "The default is local, which starts Ray for this search alone.",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assignments",
        metavar="NAME=VALUE",
        help="Set any training argument for all trials. A searched argument is fixed to the value. "
        "The option may be given many times.",
    )
    parser.add_argument(
        "--resources",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="Give every trial other resources than the file does: workers_per_trial, cpus_per_worker, "
        "gpus_per_worker. With gpus_per_worker=0 a search that is written for GPUs can be tried on a CPU.",
    )
    found = parser.parse_args(argv)
    output_dir = found.output_dir.expanduser().absolute()
    return Options(
        config=found.config,
        num_samples=found.num_samples,
        max_concurrent=found.max_concurrent,
        output_dir=output_dir,
        tracking_uri=found.tracking_uri or f"sqlite:///{output_dir / 'mlflow.db'}",
        seed=found.seed,
        metric=found.metric,
        address=found.address,
        assignments=tuple(found.assignments),
        resources=tuple(found.resources),
    )


def refuse(mistake: Exception) -> int:
    """Tell a user's mistake in one line on stderr; the exit code for it."""
    sys.stderr.write(f"search.py: {' '.join(str(mistake).split())}\n")
    return 2


def free_folder(output_dir: Path, name: str) -> Path:
    """``output_dir/name``, or with -2, -3, ... added, that does not exist yet.

    Raises:
        SearchError: the output folder cannot be written.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SearchError(f"--output-dir {output_dir}: {error.strerror}; choose one that can be written") from error
    names = (name, *(f"{name}-{number}" for number in range(2, LONGEST_SERIES)))
    return next(output_dir / each for each in names if not (output_dir / each).exists())


def _count(text: str) -> int:
    return _whole(text, 1)


def _not_negative(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, low: int) -> int:
    if not text.lstrip("+-").isdecimal() or int(text) < low:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {low}, but is {text!r}")
    return int(text)
