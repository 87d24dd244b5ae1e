"""A short measured probe of some settings: as many processes at once as trials would have, each like a lane's."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

from tune.plan.probing import ProbedRun
from tune.trials.resources import SLACK, TrialResources

LOOK_SECONDS = 0.2
VISIBLE = "CUDA_VISIBLE_DEVICES"
LOG = ".log"


@dataclass(frozen=True)
class Probe:
    """What the probe has measured.

    Args:
        processes: that ran at once.
        start_seconds: from the start of such a process to that of its first run, with what only a first run takes.
        runs: of each setting, in order: the mean over all processes, or why it failed in one of them.
        seconds: that the probe took.
    """

    processes: int
    start_seconds: float
    runs: list[ProbedRun | str]
    seconds: float

    @property
    def measured(self) -> list[ProbedRun]:
        """The runs that did not fail."""
        return [run for run in self.runs if isinstance(run, ProbedRun)]


def run_probe(
    settings: Sequence[Mapping[str, Any]],
    resources: TrialResources,
    at_once: int,
    folder: Path,
    note: Callable[[str], None],
) -> Probe:
    """Make a short run of each of some settings, in every process.

    A trial of several workers is probed as so many trials of one: their communication is not in what is measured.

    Args:
        settings: at least one; all arguments of a trial that are not at their defaults.
        resources: of a trial.
        at_once: trials at a time.
        folder: which is there; what runs write is gone at the end.
        note: is told how far it is, for whoever waits.
    """
    begun = time.monotonic()
    count = at_once * resources.workers_per_trial
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps([settings[0], *settings]), encoding="utf-8")  # the first run is the processes' warm-up
    results = [folder / f"process-{number}.jsonl" for number in range(count)]
    processes = [_start(jobs, result, environment(resources, number)) for number, result in enumerate(results)]
    try:
        while any(process.poll() is None for process in processes):
            done = min(len(_complete(result)) for result in results)
            note(f"probe: {count} processes at once, {done} of {len(settings) + 1} short runs done")
            time.sleep(LOOK_SECONDS)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    lines = [_complete(result) for result in results]
    of_processes = [
        _runs(found, result, process.returncode, len(settings) + 1)
        for found, result, process in zip(lines, results, processes, strict=True)
    ]
    starts = [first["ended"] - second["seconds"] for first, second, *_ in (each for each in lines if each[1:])]
    return Probe(
        processes=count,
        start_seconds=statistics.fmean(starts) if starts else 0.0,
        runs=[_mean(runs) for runs in list(zip(*of_processes, strict=True))[1:]],
        seconds=time.monotonic() - begun,
    )


def environment(resources: TrialResources, number: int) -> dict[str, str]:
    """That of a process of the probe: threads and GPUs as Ray would give them to a worker.

    Args:
        resources: of a trial.
        number: of the process, from 0.
    """
    own = {"OMP_NUM_THREADS": str(max(1, int(resources.cpus_per_worker))), "TOKENIZERS_PARALLELISM": "false"}
    each = resources.gpus_per_worker
    if 0 < each < 1:
        gpus = [number // floor(1 / each + SLACK)]
    else:
        gpus = list(range(int(number * each), int((number + 1) * each)))
    if gpus:
        names = os.environ[VISIBLE].split(",") if os.environ.get(VISIBLE) else None
        own[VISIBLE] = ",".join(str(gpu) if names is None else names[gpu] for gpu in gpus)
    return os.environ | own


def _start(jobs: Path, result: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with result.with_suffix(LOG).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tune.plan.probing", str(jobs), str(result)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )


def _complete(result: Path) -> list[dict[str, Any]]:
    """The lines that a process has written."""
    lines = result.read_text(encoding="utf-8").splitlines(keepends=True) if result.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _runs(lines: Sequence[Mapping[str, Any]], result: Path, code: int, count: int) -> list[ProbedRun | str]:
    """A process's runs, or why they failed; those that it did not come to have its own end as their reason."""
    runs: list[ProbedRun | str] = [ProbedRun(**each["run"]) if "run" in each else each["failed"] for each in lines]
    said = result.with_suffix(LOG).read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(said) if line.strip()), "and said nothing")
    died = f"its process ended by signal {-code}" if code < 0 else f"its process ended with code {code}: {last}"
    return runs + [died] * (count - len(runs))


def _mean(runs: Sequence[ProbedRun | str]) -> ProbedRun | str:
    measured = []
    for run in runs:
        if isinstance(run, str):
            return run
        measured.append(dataclasses.asdict(run))
    means = {name: statistics.fmean(run[name] for run in measured) for name in measured[0]}
    return ProbedRun(**means | {"peak_bytes": max(run["peak_bytes"] for run in measured)})
