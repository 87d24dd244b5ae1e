"""What a search would take, found out without it: ``python tune/search.py --plan``. Nothing is recorded."""

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from psalm.model.sizes import RESERVE
from psalm.train.arguments import with_defaults
from tune.config import SearchConfig
from tune.errors import SearchError
from tune.opening import check_new, tracking_uri, trials_at_once
from tune.options import LOCAL, Options, folders_of_name
from tune.plan.corners import Corner, DeviceMemory, corners, examine
from tune.plan.expectation import Expectation, TrialTime, expect
from tune.plan.probe import Probe, run_probe
from tune.plan.probing import ProbedRun
from tune.simulation.simulation import Costs
from tune.study.steps import evaluation_steps
from tune.tracking.connection import absolute_uri, check_experiment, connect, sqlite_path
from tune.trials.limits import HOUR, Limits
from tune.trials.resources import Node, TrialResources
from tune.trials.room import Room, room_for
from tune.trials.storage import is_uri

HOST_PROCESS = 750 * 2**20
"""Bytes that a worker's process has on a CPU besides its training: the libraries (measured: 720 to 770 MiB)."""

RAY_START, LANE_START = 0.45, 1.2
"""How long Ray's own start, and that of a lane's processes besides the workers, take as multiples of a worker's start.

Measured on two cores, two lanes at a time: 3.6 s and 8 to 12 s where a worker's took 8 s. Like that they mostly import
libraries, so they take longer where it does."""
TURN_SECONDS = 0.3
"""From the end of a trial to the start of the next one on the same lane (measured: 0.05 to 0.5 s)."""
END_SECONDS = 6.5
"""From the end of the last trial to that of the search: Ray's processes end (measured: 5.9 to 7.1 s)."""
MOST_PROBED = 3


@dataclass(frozen=True)
class Plan:
    """What a search would take.

    Args:
        config: the search.
        limits: of it.
        folder: where it would be.
        tracking_uri: where it would be recorded.
        at_once: trials at a time.
        memory: of the devices that are there; None where there are none of the trials' kind.
        corners: of its space.
        room: on the disk.
        probed: the corners that were tried; none without a probe.
        probe: what it has measured.
        expected: the low, likely and high expectation; None if nothing was measured.
    """

    config: SearchConfig
    limits: Limits
    folder: Path
    tracking_uri: str
    at_once: int
    memory: DeviceMemory | None
    corners: list[Corner]
    room: Room
    probed: list[Corner]
    probe: Probe | None
    expected: dict[str, Expectation] | None

    def device_hours(self, expectation: Expectation) -> float:
        """Hours that trials hold devices: GPUs where they have any, else CPUs."""
        resources = self.config.resources
        each = resources.gpus_per_worker or resources.cpus_per_worker
        return expectation.lane_seconds / HOUR * resources.workers_per_trial * each

    def seconds(self, expectation: Expectation) -> float:
        """From the search's start to its end."""
        assert self.probe is not None, "nothing is expected without a probe"
        return RAY_START * self.probe.start_seconds + expectation.wall_seconds + END_SECONDS


def make_plan(options: Options, machine: Node, note: Callable[[str], None] = lambda text: None) -> Plan:
    """Check what a search checks before it starts, then estimate and measure.

    Args:
        options: of the search.
        machine: this one.
        note: is told what is being done, for whoever waits.

    Raises:
        SettingError, TrackingError: see ``show_plan``.
    """
    config, limits, _ = check_new(options, machine)
    uri = absolute_uri(tracking_uri(options))
    database = sqlite_path(uri)
    if database is None or database.exists():  # one that is not there would be made
        check_experiment(connect(uri), uri, config.name)
    folder = next((each for each in folders_of_name(options.output_dir, config.name) if not each.exists()), None)
    if folder is None:
        raise SearchError(f"--output-dir {options.output_dir}: has too many searches named {config.name}")
    at_once = trials_at_once(config, options, machine)
    room = room_for(config, at_once, options.keep_best)
    disk = _writable(options)
    room.check(disk, options.checkpoint_budget)

    memory = device_memory(config.resources, at_once)
    found = []
    for number, setting in enumerate(settings := corners(config.space, config.baselines), start=1):
        note(f"memory of corner {number} of {len(settings)}")
        found.append(examine(config, setting, memory))
    probed: list[Corner] = []
    probe, expected = None, None
    if options.probe and config.resources.capacity([machine]) > 0:
        probed = to_probe(found)
    if probed:
        here = at_once if options.address == LOCAL else min(at_once, config.resources.capacity([machine]))
        jobs = [config.dependents.complete(config.arguments, corner.params) | dict(corner.changes) for corner in probed]
        with tempfile.TemporaryDirectory(prefix=".psalm-plan-", dir=disk) as place:
            probe = run_probe(jobs, config.resources, here, Path(place), note)
        if probe.measured:
            note("trials in simulated time")
            expected = expect(config, at_once, trial_times(config, probe.measured), costs(probe))
    return Plan(config, limits, folder, uri, at_once, memory, found, room, probed, probe, expected)


def device_memory(resources: TrialResources, at_once: int) -> DeviceMemory | None:
    """What a process of a trial has on this machine; None if trials want GPUs and there are none.

    Args:
        resources: of a trial.
        at_once: trials at a time.
    """
    if resources.gpus_per_worker == 0:
        free = psutil.virtual_memory().available
        processes = at_once * resources.workers_per_trial
        return DeviceMemory(free // processes, HOST_PROCESS, f"a CPU's process, {processes} at once")
    gpus = range(torch.cuda.device_count())
    if not gpus:
        return None
    share = min(resources.gpus_per_worker, 1.0)
    free = min(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)
    part = f"a share of {share:g} of " if share < 1 else ""
    return DeviceMemory(int(free * share), RESERVE, f"{part}each of {len(gpus)} x {torch.cuda.get_device_name(0)}")


def to_probe(found: Sequence[Corner]) -> list[Corner]:
    """The corners that are tried: the first one, the smallest and the largest of those that fit."""
    fitting = [corner for corner in found if corner.rung is not None]
    by_size = sorted(fitting, key=lambda corner: corner.parameters)
    few: list[Corner] = []
    for corner in (*fitting[:1], *by_size[:1], *by_size[-1:]):
        if corner not in few:
            few.append(corner)
    return few


def trial_times(config: SearchConfig, runs: Sequence[ProbedRun]) -> list[TrialTime]:
    """Seconds of trials like the runs of a probe; a checkpoint counts with the evaluation that it follows."""
    saves = checkpoints_per_evaluation(with_defaults(config.arguments))
    return [TrialTime(run.step_seconds, run.evaluation_seconds + saves * run.checkpoint_seconds) for run in runs]


def checkpoints_per_evaluation(settings: Mapping[str, Any]) -> float:
    """How many checkpoints a trial saves, divided by its evaluations.

    Args:
        settings: every training argument of the trial.
    """
    if settings["save_strategy"] == "no":
        return 0.0
    length, every = settings["max_steps"], settings["save_steps"]
    every = math.ceil(every * length) if every < 1 else int(every)
    return length // every / len(evaluation_steps(settings))


def costs(probe: Probe) -> Costs:
    """Seconds of starting a search's lanes, once Ray is up, and of each of its trials besides steps and evaluations."""
    overhead = sum(run.overhead_seconds for run in probe.measured) / len(probe.measured)
    return Costs(probe.start_seconds * (LANE_START + 1), overhead + TURN_SECONDS)


def _writable(options: Options) -> Path:
    """A folder on the disk where the trials' files would be, or their copies on the way to a storage.

    Raises:
        SearchError: the search could not write there.
    """
    flag, asked = "--output-dir", options.output_dir
    if options.storage_path is not None and not is_uri(options.storage_path):
        flag, asked = "--storage-path", Path(options.storage_path).expanduser().absolute()
    folder = next(each for each in (asked, *asked.parents) if each.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise SearchError(f"{flag} {asked}: {folder} is no folder that can be written; choose another")
    return folder
