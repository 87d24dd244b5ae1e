"""The command line of a search."""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tune.errors import SearchError
from tune.trials.limits import parse_duration

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "experiments" / "search" / "tiny.yaml"
LOCAL = "local"
LONGEST_SERIES = 10_000

FIXED = {
    "config": "--config",
    "output_dir": "--output-dir",
    "storage_path": "--storage-path",
    "seed": "--seed",
    "metric": "--metric",
    "assignments": "--set",
    "resources": "--resources",
    "warm_start": "--warm-start",
}
"""What a resumed search has been asked already."""


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line; None where the search's file decides, or nothing is asked."""

    config: Path
    resume: Path | None
    num_samples: int | None
    max_concurrent: int | None
    confirm: str | None
    warm_start: tuple[str, ...]
    output_dir: Path
    storage_path: str | None
    tracking_uri: str | None
    seed: int | None
    metric: str | None
    address: str
    assignments: tuple[str, ...]
    resources: tuple[str, ...]
    max_failures: int
    time_budget: float | None  # seconds
    gpu_hours: float | None
    cpu_hours: float | None
    checkpoint_budget: float | None  # GB
    keep_best: int
    log_models: bool
    plan: bool
    probe: bool


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
        "--resume",
        type=Path,
        metavar="DIR",
        help="Go on with the search in the folder DIR, however it ended: finished trials are kept, the others go on "
        "from their last checkpoints. What the search was asked to do stays; how it is run may be given anew.",
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
    parser.add_argument(
        "--storage-path",
        metavar="PATH_OR_URI",
        help="Keep the trials' folders there: in a folder that all nodes of a cluster see, or at a URI such as "
        "s3://bucket/prefix. The default is the output folder.",
    )
    parser.add_argument(
        "--max-failures",
        type=_not_negative,
        default=3,
        metavar="N",
        help="Let a trial whose processes died go on from its last checkpoint up to N times; then it has failed, and "
        "the search goes on without it. The default is 3.",
    )
    parser.add_argument(
        "--time-budget",
        type=_duration,
        metavar="TIME",
        help="End the search in order after TIME, for example 90m, 8h or 1d12h: running trials save a checkpoint, and "
        "--resume goes on.",
    )
    for flag, device in (("--gpu-hours", "GPU"), ("--cpu-hours", "CPU")):
        parser.add_argument(
            flag,
            type=_positive,
            metavar="H",
            help=f"End the search in order when its trials have used H {device}-hours, earlier runs of a resumed "
            "search included.",
        )
    parser.add_argument(
        "--checkpoint-budget",
        type=_positive,
        metavar="GB",
        help="Never let checkpoints and models of all trials take more than GB gigabytes together.",
    )
    parser.add_argument(
        "--keep-best",
        type=_not_negative,
        default=3,
        metavar="K",
        help="Keep the final models of the best K trials, and of those on the front of several objectives; none if K "
        "is 0. The default is 3.",
    )
    parser.add_argument(
        "--log-models",
        action="store_true",
        help="At the end, put the kept models among the artifacts of their runs in MLflow. They stay in the search's "
        "folder otherwise: a model may be gigabytes.",
    )
    parser.add_argument(
        "--warm-start",
        nargs="+",
        default=[],
        metavar="EXPERIMENT",
        help="Let the sampler begin with what earlier searches found out: their trials of full length whose values of "
        "the arguments searched now are in this space. One that this search would repeat exactly is not run again.",
    )
    parser.add_argument(
        "--confirm",
        metavar="KxN",
        help="When all trials have ended, run the baseline and the best K settings again at full length, each with N "
        "new seeds, and say whether they differ by more than chance, e.g. 3x3. The default is the search's file's: "
        "nothing, unless it says otherwise.",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="Do not search, but say what the search would take: memory of the space's corners, seconds per step by a "
        "short probe, trials and device-hours, disk. Nothing is recorded, and Ray is not started.",
    )
    parser.add_argument(
        "--no-probe",
        action="store_false",
        dest="probe",
        help="Let --plan measure nothing: it then says nothing of time.",
    )
    found = parser.parse_args(argv)
    if found.plan and found.resume is not None:
        parser.error(f"--plan --resume {found.resume}: only a new search can be planned; leave one of them out")
    if not (found.probe or found.plan):
        parser.error("--no-probe is for --plan; give both, or neither")
    if found.resume is not None:
        for name, flag in FIXED.items():
            if getattr(found, name) != parser.get_default(name):
                parser.error(f"--resume {found.resume}: {flag} cannot be changed; leave it out, or start a new search")
    output_dir = found.output_dir.expanduser().absolute()
    return Options(
        config=found.config,
        resume=None if found.resume is None else found.resume.expanduser().absolute(),
        num_samples=found.num_samples,
        max_concurrent=found.max_concurrent,
        confirm=found.confirm,
        warm_start=tuple(found.warm_start),
        output_dir=output_dir,
        storage_path=found.storage_path,
        tracking_uri=found.tracking_uri,
        seed=found.seed,
        metric=found.metric,
        address=found.address,
        assignments=tuple(found.assignments),
        resources=tuple(found.resources),
        max_failures=found.max_failures,
        time_budget=found.time_budget,
        gpu_hours=found.gpu_hours,
        cpu_hours=found.cpu_hours,
        checkpoint_budget=found.checkpoint_budget,
        keep_best=found.keep_best,
        log_models=found.log_models,
        plan=found.plan,
        probe=found.probe,
    )


def refuse(mistake: Exception) -> int:
    """Tell a user's mistake in one line on stderr; the exit code for it."""
    sys.stderr.write(f"search.py: {' '.join(str(mistake).split())}\n")
    return 2


def new_folder(output_dir: Path, name: str) -> Path:
    """Makes ``output_dir/name``, or with -2, -3, ... added where that exists; two searches never get the same.

    Raises:
        SearchError: the output folder cannot be written.
    """
    for folder in folders_of_name(output_dir, name):
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise SearchError(f"--output-dir {output_dir}: {error.strerror}; choose one that can be written") from error
    raise SearchError(f"--output-dir {output_dir}: has {LONGEST_SERIES} searches named {name}; choose another")


def folders_of_name(output_dir: Path, name: str) -> Iterator[Path]:
    """What the searches of a name are called, one after the other."""
    yield output_dir / name
    yield from (output_dir / f"{name}-{number}" for number in range(2, LONGEST_SERIES))


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except SearchError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, but is {text!r}")
    return value


def _count(text: str) -> int:
    return _whole(text, 1)


def _not_negative(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, low: int) -> int:
    if not text.lstrip("+-").isdecimal() or int(text) < low:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {low}, but is {text!r}")
    return int(text)
