"""How many trials run at once: computed from what there is, so that no trial waits for another's resources."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import floor
from pathlib import Path

import torch

from tune.errors import SearchError
from tune.reading import Section

SLACK = 1e-9
"""Against 3 x 0.1 > 0.3."""


@dataclass(frozen=True)
class Node:
    """Processors and GPUs of one machine."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class TrialResources:
    """What one trial holds while it trains: ``workers_per_trial`` processes, each on one node with its CPUs and GPUs.

    Workers of a trial start together or not at all, and the trial's own process holds neither CPU nor GPU, so that no
    set of trials can hold parts of what each other needs.
    """

    workers_per_trial: int = 1
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0

    def capacity(self, nodes: Iterable[Node]) -> int:
        """How many trials fit at once."""
        return sum(self._workers_on(node) for node in nodes) // self.workers_per_trial

    def _workers_on(self, node: Node) -> int:
        by_cpu = floor(node.cpus / self.cpus_per_worker + SLACK)
        if self.gpus_per_worker == 0:
            return by_cpu
        if self.gpus_per_worker < 1:  # a fraction lies on one device
            return min(by_cpu, int(node.gpus) * floor(1 / self.gpus_per_worker + SLACK))
        return min(by_cpu, int(node.gpus // self.gpus_per_worker))

    def concurrency(self, nodes: Iterable[Node], limit: int) -> int:
        """How many trials run at once: as many as fit, at most ``limit``.

        Raises:
            SearchError: not even one fits; the message has both numbers.
        """
        nodes = list(nodes)
        capacity = self.capacity(nodes)
        if capacity >= 1:
            return min(limit, capacity)
        for kind, per_worker, available in (
            ("GPU", self.gpus_per_worker, sum(node.gpus for node in nodes)),
            ("CPU", self.cpus_per_worker, sum(node.cpus for node in nodes)),
        ):
            if self.workers_per_trial * per_worker > available + SLACK:
                raise SearchError(
                    f"resources: a trial needs {self.workers_per_trial * per_worker:g} {kind}s "
                    f"({self.workers_per_trial} workers_per_trial x {per_worker:g} {kind.lower()}s_per_worker), "
                    f"but there are {available:g}; ask for fewer"
                )
        largest = max((self._workers_on(node) for node in nodes), default=0)
        raise SearchError(
            f"resources: a trial needs {self.workers_per_trial} workers with {self.cpus_per_worker:g} CPUs and "
            f"{self.gpus_per_worker:g} GPUs each, but the {len(nodes)} nodes have room for "
            f"{sum(self._workers_on(node) for node in nodes)} (at most {largest} on one); ask for fewer"
        )


def read_resources(section: Section, default: TrialResources) -> TrialResources:
    """What a file or an option says of a trial's resources; ``default`` holds what it does not say.

    Raises:
        SearchError: a name is unknown, or a value is not allowed for it.
    """
    resources = TrialResources(
        workers_per_trial=section.whole("workers_per_trial", default.workers_per_trial, low=1),
        cpus_per_worker=section.number(
            "cpus_per_worker", default.cpus_per_worker, lambda cpus: cpus > 0, "a number above 0"
        ),
        gpus_per_worker=section.number(
            "gpus_per_worker",
            default.gpus_per_worker,
            lambda gpus: 0 <= gpus <= 1 or (gpus > 1 and gpus % 1 == 0),
            "0, a fraction of 1, or a whole number",
        ),
    )
    section.refuse_rest()
    return resources


def this_machine() -> Node:
    """Processors that this process may use, and its visible GPUs."""
    return Node(cpus=_usable_cpus(), gpus=torch.cuda.device_count())


def _usable_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors of the affinity mask, or fewer where the container has a quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if quota.is_file():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            cpus = min(cpus, max(1, int(allowed) // int(period)))
    return cpus
