"""What a search costs besides its trials, and whether it leaks: runs one, and looks at its processes every second.

    python experiments/scripts/measure_search.py --output runs/measured -- --num-samples 50 --set max_steps=6

What follows ``--`` goes to ``tune/search.py``. Prints two tables: the search's processes as its trials end (their
number, and for the driver and the training workers open files and memory), and where the time went, from
``search.json``. The first one is also drawn, as ``search_processes.png`` in the output folder. Its exit code is the
search's.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import psutil
from rich.console import Console
from rich.table import Table

from psalm.train.records import read_records

SEARCH = Path(__file__).resolve().parents[2] / "tune" / "search.py"
SHARED_MEMORY = Path("/dev/shm")
MB = 2**20


@dataclass(frozen=True)
class Sample:
    """What a search holds at a moment; memory in MiB."""

    seconds: float
    ended: int
    """Trials that have."""
    processes: int
    driver_files: int
    driver_memory: float
    workers: int
    worker_files: int
    """Of all workers, as their memory."""
    worker_memory: float
    shared_memory: float
    """In use on the machine, by whomever."""


COLUMNS = {
    "ended": "trials ended",
    "seconds": "seconds",
    "processes": "processes",
    "driver_files": "driver: open files",
    "driver_memory": "driver: MiB",
    "workers": "workers",
    "worker_files": "workers: open files",
    "worker_memory": "workers: MiB",
    "shared_memory": "/dev/shm: MiB",
}


def main(argv: Sequence[str]) -> int:
    """Run, sample, show."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/measured"), help="Output folder of the search.")
    parser.add_argument(
        "--every", type=int, default=5, metavar="N", help="A row of the table for every N ended trials."
    )
    parser.add_argument("search", nargs="*", help="Options of tune/search.py, after --.")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True)

    command = [sys.executable, str(SEARCH), "--output-dir", str(options.output), *options.search]
    process = subprocess.Popen(command)
    samples = watch(process, options.output)
    (summary,) = options.output.glob("*/search.json")
    show(samples, json.loads(summary.read_text())["seconds"], options.every)
    draw(samples, options.output / "search_processes.png")
    return process.returncode


def watch(process: subprocess.Popen[bytes], output: Path) -> list[Sample]:
    """A sample every second, until the search ends."""
    driver, start, samples = psutil.Process(process.pid), time.monotonic(), []
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):  # one that was listed is gone already: the next look is near
            samples.append(sample(driver, time.monotonic() - start, ended_trials(output)))
        time.sleep(1)
    return samples


def sample(driver: psutil.Process, seconds: float, ended: int) -> Sample:
    """What the search holds now."""
    tree = driver.children(recursive=True)
    workers = [process for process in tree if "RayTrainWorker" in command_of(process)]
    return Sample(
        seconds=seconds,
        ended=ended,
        processes=1 + len(tree),
        driver_files=driver.num_fds(),
        driver_memory=driver.memory_info().rss / MB,
        workers=len(workers),
        worker_files=sum(worker.num_fds() for worker in workers),
        worker_memory=sum(worker.memory_info().rss for worker in workers) / MB,
        shared_memory=shutil.disk_usage(SHARED_MEMORY).used / MB,
    )


def command_of(process: psutil.Process) -> str:
    """What a process calls itself; nothing if it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def ended_trials(output: Path) -> int:
    """How many attempts have ended, as the search's own records say."""
    return sum(
        record.get("event") == "ended"
        for folder in output.iterdir()
        if folder.is_dir()
        for record in read_records(folder)
    )


def show(samples: Sequence[Sample], seconds: dict[str, float], every: int) -> None:
    """Both tables."""
    table = Table(*COLUMNS.values())
    shown = -every
    for each in samples:
        if each.ended >= shown + every:
            table.add_row(*(f"{getattr(each, name):.0f}" for name in COLUMNS))
            shown = each.ended
    console = Console(width=150)
    console.print(table)
    times = Table("where the time went", "seconds")
    for name, value in seconds.items():
        times.add_row(name, f"{value:.1f}")
    console.print(times)


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Every figure over the ended trials."""
    names = [name for name in COLUMNS if name not in ("ended", "seconds")]
    figure, axes = plt.subplots(2, 4, figsize=(16, 7), layout="constrained")
    for axis, name in zip(axes.flat, names, strict=False):
        axis.plot([each.ended for each in samples], [getattr(each, name) for each in samples], ".", markersize=3)
        axis.set(title=COLUMNS[name], xlabel="trials ended", ylim=(0, None))
    axes.flat[-1].axis("off")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
