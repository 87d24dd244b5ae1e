"""Runs of every kind are made by real searches, and repeated by the real command."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from psalm.train.records import metric_history, read_records
from tests.tune.searches import Search, small_search
from tests.tune.test_faults import LONG, out_of_memory, wait_for
from tune import reproduce
from tune.reproduce import SAME

pytestmark = pytest.mark.full


@pytest.fixture
def make(tmp_path: Path, tiny_tower: Mapping[str, Any]) -> Callable[..., Search]:
    def made(**changes: Any) -> Search:
        small_search(tmp_path, tiny_tower, **changes)
        return Search(tmp_path)

    return made


def command(search: Search, number: int, *flags: str) -> list[str]:
    """Repeats a trial; processes of it carry the search's mark."""
    run_id = search.content["trials"][number]["run_id"]
    return [sys.executable, str(reproduce.__file__), run_id, *flags]


def reproduced(search: Search, number: int, *flags: str) -> tuple[int, str]:
    """Exit code and output."""
    done = subprocess.run(
        command(search, number, *flags), cwd=search.home, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_trials_of_one_lane_kept_in_a_storage_one_of_them_stopped(make: Callable[..., Search], tmp_path: Path) -> None:
    """The second trial runs in processes that have done the first one, and is stopped at its first rung."""
    search = make(
        num_samples=2,
        max_concurrent=1,
        metric="eval_pixel_accuracy",
        space={"learning_rate": {"loguniform": [1e-8, 1e-2]}},
        scheduler={"name": "asha", "grace_period": 2, "reduction_factor": 2},
        baselines=[{"learning_rate": 1e-3}, {"learning_rate": 1e-8}],
        arguments={"seg_task": "semantic", "mm_n_points": 2, "max_steps": 6},
    )
    code, output = search.run("--config", "small.yaml", "--storage-path", f"file://{tmp_path}/storage")
    assert code == 0, output
    assert [trial["status"] for trial in search.content["trials"]] == ["completed", "pruned"]
    for number, ending in enumerate(["ran to its end", "was stopped early after step 2"]):
        code, output = reproduced(search, number)
        assert code == SAME, output
        assert ending in output
        assert "identical" in output


def test_a_mixture_in_two_processes_that_was_interrupted(make: Callable[..., Search]) -> None:
    """It was resumed from a checkpoint that an uninterrupted run would not have."""
    search = make(
        num_samples=1,
        max_concurrent=1,
        metric="eval_mean",
        resources={"workers_per_trial": 2, "cpus_per_worker": 1, "gpus_per_worker": 0},
        arguments=LONG | {"seg_task": "panoptic,semantic"},
    )
    process = search.start("--config", "small.yaml")
    wait_for(lambda: 8 in metric_history(read_records(search.trial_folder(0))).get("eval_mean", {}), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    code, output = search.run("--resume", "runs/small")
    assert code == 0, output
    assert "resumed" in search.trial_events(0)
    code, output = reproduced(search, 0)
    assert code == SAME, output
    assert "which was resumed after step" in output
    assert "identical" in output


def test_a_run_that_went_on_with_less_memory(make: Callable[..., Search]) -> None:
    search = make(
        num_samples=1,
        baselines=[{"learning_rate": 1e-3, "mm_n_points": 2}],
        arguments={"max_steps": 8, "eval_steps": 4, "per_device_train_batch_size": 4},
    )
    search.environment = out_of_memory(micro_batch=2, from_step=6)
    code, output = search.run("--config", "small.yaml")
    assert code == 0, output
    code, output = reproduced(search, 0)
    assert code == SAME, output
    assert "per_device_train_batch_size changed while the run was recorded (4 -> 1)" in output
    assert "within tolerance" in output


def test_seeds_are_swept_until_an_interrupt(make: Callable[..., Search]) -> None:
    search = make(num_samples=1, baselines=[{"learning_rate": 1e-3, "mm_n_points": 2}])
    code, output = search.run("--config", "small.yaml")
    assert code == 0, output
    code, output = reproduced(search, 0, "--sweep-seeds", "2")
    assert code == SAME, output
    assert "over 2 other seeds" in output

    process = subprocess.Popen(
        command(search, 0, "--sweep-seeds", "9"), cwd=search.home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    folder = search.home / "runs" / "seeds"
    deadline = time.monotonic() + 200
    while not any(list(read_records(each)) for each in folder.glob("*-2/seed-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 128 + signal.SIGINT, printed
    assert "over " in printed
    client = MlflowClient(f"sqlite:///{search.home / 'runs' / 'mlflow.db'}")
    run_id = search.content["trials"][0]["run_id"]
    runs = client.search_runs([client.get_run(run_id).info.experiment_id], f"tags.seed_of = '{run_id}'")
    assert "RUNNING" not in {run.info.status for run in runs}
    assert "KILLED" in {run.info.status for run in runs}
