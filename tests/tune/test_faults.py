"""Real searches to which real things happen: processes are killed, files damaged, limits reached.

Each takes about a minute. Those that are not marked ``full`` run every time.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from psalm.train.records import metric_history, read_records
from tests.tune.searches import Search, small_search

PATIENCE = 240.0  # seconds; a search starts slowly on a busy machine


@pytest.fixture
def make(tmp_path: Path, tiny_tower: Mapping[str, Any]) -> Callable[..., Search]:
    def made(**changes: Any) -> Search:
        small_search(tmp_path, tiny_tower, **changes)
        return Search(tmp_path)

    return made


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Until the condition is true, as long as the search runs."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)
    return found


def results(search: Search, number: int) -> dict[int, float]:
    """A trial's values by step, as its records have them now."""
    return metric_history(read_records(search.trial_folder(number))).get("eval_pq", {})


def check_whole(search: Search, statuses: Mapping[int, str]) -> None:
    """After the end: nothing lives, MLflow has one run per trial with its final status, and every step of it once."""
    assert search.left_after() == []
    trials = {trial["number"]: trial for trial in search.content["trials"]}
    assert {number: trial["status"] for number, trial in trials.items()} == dict(statuses)
    runs = search.runs()
    assert set(runs) == {"search", *map(str, statuses)}
    client = MlflowClient(f"sqlite:///{search.home / 'runs' / 'mlflow.db'}")
    final = {"completed": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "waiting": "KILLED"}
    for number, status in statuses.items():
        run = runs[str(number)]
        assert run.info.status == final[status]
        assert run.info.run_id == trials[number]["run_id"]
        points = [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "eval_pq")]
        assert dict(points).items() >= results(search, number).items()  # steps that were lost stay in MLflow
        assert status != "completed" or dict(points) == results(search, number)
        assert len(points) == len(dict(points)), "a step was counted twice"
    told = [(e["number"], e["step"]) for e in search.events if e["event"] == "result"]
    assert len(told) == len(set(told))


def kill_worker(search: Search, process: subprocess.Popen[str], after: Callable[[], Any]) -> None:
    wait_for(after, process)
    worker = min(wait_for(search.workers, process), key=lambda worker: worker.create_time())
    worker.send_signal(signal.SIGKILL)


LONG = {"max_steps": 40, "eval_steps": 4}


def test_a_trial_whose_worker_is_killed_goes_on_from_its_checkpoint(make: Callable[..., Search]) -> None:
    search = make(num_samples=2, max_concurrent=1, arguments=LONG)
    process = search.start("--config", "small.yaml")
    kill_worker(search, process, after=lambda: 12 in results(search, 0))
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    check_whole(search, {0: "completed", 1: "completed"})
    assert search.trial_events(0) == ["started", "resumed", "completed"]
    resumed = next(r for r in read_records(search.trial_folder(0)) if r.get("event") == "resumed")
    assert resumed["step"] >= 4
    assert list(results(search, 0)) == list(range(4, 41, 4))
    assert "trial 0 goes on (it was at step" in output
    assert not list(search.trial_folder(0).glob("checkpoint-*")), "checkpoints of ended trials are dropped"


@pytest.mark.full
def test_a_trial_whose_workers_are_killed_too_often_has_failed(make: Callable[..., Search]) -> None:
    search = make(num_samples=2, max_concurrent=1, arguments=LONG)
    process = search.start("--config", "small.yaml", "--max-failures", "1")
    kill_worker(search, process, after=lambda: 8 in results(search, 0))
    kill_worker(search, process, after=lambda: "resumed" in search.trial_events(0) and search.workers())
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    check_whole(search, {0: "failed", 1: "completed"})
    reason = search.content["trials"][0]["reason"]
    assert reason.startswith("its processes died 2 times, the last time: ActorDiedError")
    assert search.runs()["0"].data.tags["reason"] == reason


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.full)])
def test_a_search_that_is_killed_at_any_moment_goes_on(make: Callable[..., Search], kills: int) -> None:
    """Trials finish once, none is lost or doubled, and nothing of the killed processes stays."""
    moments = random.Random(kills)
    search = make(num_samples=6, max_concurrent=2, arguments=LONG)
    process = search.start("--config", "small.yaml")
    wait_for(lambda: (search.folder / "records.jsonl").exists(), process)
    for _ in range(kills):
        time.sleep(moments.uniform(0, 25))
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        process = search.start("--resume", "runs/small")
    output, _ = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 0, output
    check_whole(search, dict.fromkeys(range(6), "completed"))
    for number in range(6):
        assert list(results(search, number)) == list(range(4, 41, 4))
    proposed = [event["number"] for event in search.events if event["event"] == "proposed"]
    assert proposed == list(range(6))


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.full), signal.SIGTERM])
def test_an_interrupted_search_checkpoints_and_goes_on(make: Callable[..., Search], number: signal.Signals) -> None:
    search = make(num_samples=2, max_concurrent=2, arguments={"max_steps": 160, "eval_steps": 80})
    process = search.start("--config", "small.yaml")
    wait_for(lambda: any(r["kind"] == "metrics" for r in read_records(search.trial_folder(0))), process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "search.py --resume" in output
    check_whole(search, {0: "waiting", 1: "waiting"})
    stopped = {n: list(read_records(search.trial_folder(n)))[-1] for n in (0, 1) if search.trial_folder(n).exists()}
    for trial, last in stopped.items():
        assert last["event"] == "stopped"
        assert (search.trial_folder(trial) / f"checkpoint-{last['step']}").is_dir()
    code, output = search.run("--resume", "runs/small")
    assert code == 0, output
    check_whole(search, {0: "completed", 1: "completed"})
    assert all("resumed" in search.trial_events(trial) for trial in stopped)


@pytest.mark.full
def test_a_second_interrupt_ends_at_once(make: Callable[..., Search]) -> None:
    search = make(num_samples=2, max_concurrent=2, arguments={"max_steps": 160, "eval_steps": 80})
    process = search.start("--config", "small.yaml")
    wait_for(lambda: any(r["kind"] == "metrics" for r in read_records(search.trial_folder(0))), process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    since = time.monotonic()
    process.communicate(timeout=10)
    assert time.monotonic() - since < 5
    assert process.returncode == -signal.SIGINT
    assert search.left_after() == []


def out_of_memory(**limits: int) -> dict[str, str]:
    """What makes training fail: see ``injection``."""
    return {"PYTHONPATH": str(Path(__file__).parent / "injection"), "PSALM_TEST_OOM": json.dumps(limits)}


@pytest.mark.full
def test_a_trial_that_runs_out_of_memory_climbs_down_and_later_ones_start_there(make: Callable[..., Search]) -> None:
    """Nothing fits without gradient checkpointing, nor micro-batches of 4 or 2: the third rung is the first to do."""
    search = make(
        num_samples=2,
        max_concurrent=1,
        space={"learning_rate": {"loguniform": [1e-4, 1e-2]}, "mm_n_points": {"choice": [2, 4]}},
        baselines=[{"learning_rate": 1e-3, "mm_n_points": 2}, {"learning_rate": 2e-3, "mm_n_points": 4}],
        arguments={"max_steps": 8, "eval_steps": 4, "per_device_train_batch_size": 4},
    )
    search.environment = out_of_memory(micro_batch=2, from_step=6)
    code, output = search.run("--config", "small.yaml")
    assert code == 0, output
    check_whole(search, {0: "completed", 1: "completed"})
    attempts = [(e["number"], e["rung"]) for e in search.events if e["event"] == "attempt"]
    assert attempts == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 3)]
    changes = search.runs()["0"].data.tags
    assert changes["changed.gradient_checkpointing"] == "False -> True"
    assert changes["changed.per_device_train_batch_size"] == "4 -> 1"
    assert changes["changed.gradient_accumulation_steps"] == "1 -> 4"


@pytest.mark.full
def test_a_trial_that_takes_the_hosts_memory_climbs_down_too(make: Callable[..., Search]) -> None:
    """Ray's memory monitor kills it before the machine is out of memory."""
    search = make(num_samples=1, max_concurrent=1, arguments={"max_steps": 8, "eval_steps": 4})
    memory = psutil.virtual_memory()
    search.environment = out_of_memory(micro_batch=99, from_step=6, hog_mb=6000) | {
        "RAY_memory_usage_threshold": str((memory.total - memory.available + 7 * 2**30) / memory.total)
    }
    code, output = search.run("--config", "small.yaml")
    assert code == 0, output
    check_whole(search, {0: "completed"})
    assert [(e["outcome"]) for e in search.events if e["event"] == "ended"] == ["out_of_memory", "completed"]


@pytest.mark.full
def test_a_trial_that_fits_nowhere_has_failed_and_the_search_goes_on(make: Callable[..., Search]) -> None:
    search = make(num_samples=1, arguments={"per_device_train_batch_size": 1})
    search.environment = out_of_memory(micro_batch=1, from_step=1)
    code, output = search.run("--config", "small.yaml")
    assert code == 1, output
    reason = search.content["trials"][0]["reason"]
    assert reason.startswith("does not fit: out of memory with gradient checkpointing, micro-batch 1")
    assert search.left_after() == []


@pytest.mark.full
def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(make: Callable[..., Search]) -> None:
    search = make(num_samples=1, arguments=LONG)
    process = search.start("--config", "small.yaml")
    wait_for(lambda: 12 in results(search, 0), process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    checkpoints = sorted(search.trial_folder(0).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    weights = checkpoints[-1] / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    code, output = search.run("--resume", "runs/small")
    assert code == 0, output
    rejected = [r for r in read_records(search.trial_folder(0)) if r.get("event") == "checkpoint_rejected"]
    assert "model.safetensors" in rejected[0]["reason"]
    resumed = [r["step"] for r in read_records(search.trial_folder(0)) if r.get("event") == "resumed"]
    assert resumed == [int(checkpoints[-2].name.split("-")[1])]
    check_whole(search, {0: "completed"})
    assert list(results(search, 0)) == list(range(4, 41, 4))


@pytest.mark.full
def test_an_interrupted_trial_has_the_values_of_one_that_was_not(make: Callable[..., Search]) -> None:
    baseline = {"learning_rate": 1e-3, "mm_n_points": 2}
    search = make(num_samples=1, baselines=[baseline], arguments=LONG)
    code, output = search.run("--config", "small.yaml")
    assert code == 0, output
    whole = metric_history(read_records(search.trial_folder(0)))
    process = search.start("--config", "small.yaml")
    cut = Search(search.home, "small-2")
    wait_for(lambda: 12 in results(cut, 0), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    code, output = cut.run("--resume", "runs/small-2")
    assert code == 0, output
    resumed = metric_history(read_records(cut.trial_folder(0)))
    assert "resumed" in cut.trial_events(0)
    for name in (name for name in whole if not name.startswith("system/")):
        assert resumed[name] == whole[name], name


@pytest.mark.full
def test_a_time_budget_ends_the_search_in_order(make: Callable[..., Search]) -> None:
    search = make(num_samples=2, arguments={"max_steps": 4000, "eval_steps": 2000})
    since = time.monotonic()
    code, output = search.run("--config", "small.yaml", "--time-budget", "40s")
    assert code == 1, output  # no trial completed
    assert time.monotonic() - since < 40 + 60
    assert "--time-budget 40s is used up" in output
    check_whole(search, {0: "waiting", 1: "waiting"})


@pytest.mark.full
def test_two_searches_at_once_do_not_disturb_each_other(make: Callable[..., Search]) -> None:
    """They have the same output folder, MLflow store and name; and nobody else may go on with one that runs."""
    search = make(num_samples=1, arguments=LONG)
    first = search.start("--config", "small.yaml")
    second = search.start("--config", "small.yaml")
    wait_for(lambda: (search.folder / "records.jsonl").exists(), first)
    code, refusal = search.run("--resume", "runs/small")
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert code == 2
    assert "is in use: its records are written by process" in refusal
    assert len(refusal.strip().splitlines()) == 1
    for each in (search, Search(search.home, "small-2")):
        assert each.content["trials"][0]["status"] == "completed"
    assert search.left_after() == []


@pytest.mark.full
@pytest.mark.parametrize("skip", [False, True])
def test_a_bad_image_is_named_or_left_out_and_counted(make: Callable[..., Search], skip: bool) -> None:
    """It goes bad while a trial reads it: what is bad before is found out before the start."""
    search = make(num_samples=1, arguments=LONG | {"skip_bad_images": skip})
    process = search.start("--config", "small.yaml")
    wait_for(lambda: 8 in results(search, 0), process)
    image = sorted((search.home / "data").rglob("train*/*.jpg"))[0]
    image.write_bytes(image.read_bytes()[:200])
    output, _ = process.communicate(timeout=PATIENCE)
    if skip:
        assert process.returncode == 0, output
        (completed,) = (r for r in read_records(search.trial_folder(0)) if r.get("event") == "completed")
        assert [Path(name).name for name in completed["bad_images"]] == [image.name]
    else:
        assert process.returncode == 1, output
        assert image.name in search.content["trials"][0]["reason"]
    assert search.left_after() == []


@pytest.mark.full
@pytest.mark.parametrize("back", [True, False])
def test_training_does_not_wait_for_an_mlflow_that_is_away(make: Callable[..., Search], back: bool) -> None:
    """The server is killed while a trial runs; its records arrive when it is back, or are brought by hand."""
    search = make(num_samples=2, max_concurrent=1, arguments=LONG)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f"sqlite:///{search.home / 'runs' / 'mlflow.db'}"
    (search.home / "runs").mkdir()

    def serve() -> subprocess.Popen[bytes]:
        command = ["-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port), "--workers", "1"]
        served = subprocess.Popen([sys.executable, *command], cwd=search.home, start_new_session=True)
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return served
            time.sleep(0.5)

    server = serve()
    process = search.start("--config", "small.yaml", "--tracking-uri", f"http://127.0.0.1:{port}")
    wait_for(lambda: 8 in results(search, 0), process)
    os.killpg(server.pid, signal.SIGKILL)
    wait_for(lambda: 20 in results(search, 0), process)
    if back:
        server = serve()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    if not back:
        server = serve()
        command = [sys.executable, "-m", "tune.tracking", "sync", str(search.folder)]
        synced = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert synced.returncode == 0, synced.stderr
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(timeout=60)
    assert {key: run.info.status for key, run in search.runs().items()} == dict.fromkeys(
        ("search", "0", "1"), "FINISHED"
    )
    client = MlflowClient(store)
    for number in (0, 1):
        points = client.get_metric_history(search.runs()[str(number)].info.run_id, "eval_pq")
        assert {p.step: p.value for p in points} == results(search, number)
    assert search.left_after() == []


@pytest.mark.full
def test_what_an_ended_trial_held_is_free_within_seconds(make: Callable[..., Search]) -> None:
    """One of two trials ends long before the other, and there is none that could take its place."""
    samples = "per_device_train_batch_size"
    search = make(
        num_samples=2,
        max_concurrent=2,
        space={"mm_n_points": {"choice": [2, 4]}, samples: {"choice": [1, 16]}},
        baselines=[{"mm_n_points": 2, samples: 16}, {"mm_n_points": 2, samples: 1}],
        arguments={"max_steps": 120, "eval_steps": 60, samples: None},
    )
    process = search.start("--config", "small.yaml")
    wait_for(lambda: any(event["event"] == "ended" for event in search.events), process)
    (ended,) = (event for event in search.events if event["event"] == "ended")
    wait_for(lambda: len(search.workers()) == 1, process)
    seconds = time.time() - ended["time"]
    assert seconds < 5
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert [event["number"] for event in search.events if event["event"] == "ended"] == [1, 0]


@pytest.mark.full
def test_a_search_whose_ray_is_lost_goes_on(make: Callable[..., Search]) -> None:
    search = make(num_samples=2, max_concurrent=2, arguments=LONG)
    process = search.start("--config", "small.yaml")
    wait_for(lambda: 8 in results(search, 0), process)
    (head,) = (each for each in search.processes() if each.name() == "gcs_server")
    head.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert search.left_after() == []
    code, output = search.run("--resume", "runs/small")
    assert code == 0, output
    check_whole(search, {0: "completed", 1: "completed"})


@pytest.mark.full
def test_trials_in_a_storage_go_on_from_it(make: Callable[..., Search]) -> None:
    """Workers and driver meet at a URI alone: records and pictures come from there, and checkpoints go back to it."""
    search = make(num_samples=2, max_concurrent=1, arguments=LONG | {"save_final_model": True})
    storage = search.home / "bucket"
    process = search.start("--config", "small.yaml", "--storage-path", storage.as_uri(), "--keep-best", "1")
    kill_worker(search, process, after=lambda: 8 in results(search, 0))
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    check_whole(search, {0: "completed", 1: "completed"})
    assert "resumed" in search.trial_events(0)
    assert (search.trial_folder(0) / "artifacts" / "curves.png").is_file()
    assert not list(search.folder.rglob("*.safetensors")), "weights stay in the storage"
    kept = sorted(path.parent.relative_to(storage).as_posix() for path in storage.rglob("model.safetensors"))
    assert kept in (["small/trials/0000/model"], ["small/trials/0001/model"])
