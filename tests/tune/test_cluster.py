"""A search on a cluster that it did not start: two nodes on one host, one of which is lost."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from psalm.train.records import read_records
from tests.tune.searches import Search, small_search

pytestmark = pytest.mark.full

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex()}


class Cluster:
    """Two nodes with a processor each, and a head with none: see ``cluster_process``."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("cluster_process.py")), "2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | TOKEN,
        )
        self.address = self._answer(lambda line: line.count(":") == 1 and line.split(":")[1].isdecimal())

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self._answer(lambda line: line == "removed" or line.startswith("{"))

    def _answer(self, expected: Callable[[str], bool]) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if expected(line.strip()):
                return line.strip()
        raise AssertionError("the cluster has ended")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.process.communicate("\n", timeout=60)


@pytest.fixture
def make(tmp_path: Path, tiny_tower: Mapping[str, Any]) -> Callable[..., Search]:
    def made(**changes: Any) -> Search:
        small_search(tmp_path, tiny_tower, **changes)
        return Search(tmp_path, environment=TOKEN)

    return made


def wait_until(condition: Callable[[], Any], seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.2)
    return found


def check_clean(cluster: Cluster) -> None:
    """The search is over: what it held of the cluster, which lives on, is free again."""
    deadline = time.monotonic() + 30
    while (held := json.loads(cluster.ask("held"))) != {"actors": [], "placement_groups": 0, "cpus": 0}:
        assert time.monotonic() < deadline, held
        time.sleep(1)


def hosts() -> list[str]:
    """The raylets that the search's training workers belong to."""
    return sorted({str(worker.ppid()) for worker in workers()})


def workers() -> list[psutil.Process]:
    """All training workers: those of a cluster do not carry a search's mark."""
    return [p for p in psutil.process_iter() if p.name().startswith("ray::RayTrain") and p.status() != "zombie"]


def test_trials_spread_and_those_of_a_lost_node_move(cluster: Cluster, make: Callable[..., Search]) -> None:
    search = make(num_samples=3, max_concurrent=2, arguments={"max_steps": 60, "eval_steps": 4})
    process = search.start("--config", "small.yaml", "--address", cluster.address)

    def both_run() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return all(
            any(r["kind"] == "metrics" and r["step"] > 8 for r in read_records(search.trial_folder(n))) for n in (0, 1)
        )

    wait_until(both_run)  # checkpoints of step 8 are there
    assert len(hosts()) == 2
    cluster.ask("remove")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert [trial["status"] for trial in search.content["trials"]] == ["completed"] * 3
    assert set(search.runs()) == {"search", "0", "1", "2"}
    assert all(run.info.status == "FINISHED" for run in search.runs().values())
    resumed = [r for n in (0, 1) for r in read_records(search.trial_folder(n)) if r.get("event") == "resumed"]
    assert len(resumed) == 1
    assert resumed[0]["step"] >= 8
    check_clean(cluster)


def test_a_trial_of_two_workers_spans_both_nodes(cluster: Cluster, make: Callable[..., Search]) -> None:
    search = make(num_samples=1, resources={"workers_per_trial": 2}, arguments={"max_steps": 40, "eval_steps": 4})
    process = search.start("--config", "small.yaml", "--address", cluster.address)
    wait_until(lambda: process.poll() is not None or len(hosts()) == 2)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    tags = search.runs()["0"].data.tags
    assert tags["world_size"] == "2"
    check_clean(cluster)


def test_what_a_killed_search_held_on_a_cluster_is_free_again(cluster: Cluster, make: Callable[..., Search]) -> None:
    search = make(num_samples=2, max_concurrent=2, arguments={"max_steps": 400, "eval_steps": 4})
    process = search.start("--config", "small.yaml", "--address", cluster.address)
    wait_until(lambda: any(r["kind"] == "metrics" for r in read_records(search.trial_folder(0))))
    process.kill()
    process.communicate()
    wait_until(lambda: not workers(), 60)
    check_clean(cluster)
