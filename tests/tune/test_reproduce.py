"""A run is repeated from its record alone; what differs beforehand is told before any compute."""

import itertools
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file

from psalm.data.builtin import ensure_builtin
from psalm.train.records import RunRecords
from tune import reproduce
from tune.reproduce import DIFFERENT, REFUSED, SAME, main
from tune.tracking import tracker as tracking
from tune.tracking.tracker import Tracker

names = (f"experiment-{i}" for i in itertools.count())
SETTINGS = {
    "mm_n_heads": 4,
    "learning_rate": 6e-5,
    "gradient_accumulation_steps": 2,
    "max_steps": 4,
    "seed": 0,
    "bf16": False,
    "fp16": False,
    "output_dir": "/first",
    "image_folder": None,
}
SOURCES = {"psalm/a.py": "0" * 64}
INPUTS = {"data_fingerprint_val": "abc"}
MACHINE = {"device": "cpu", "processor": "x, AVX2", "omp_num_threads": "1"}


def train(folder: Path, stop_at: int | None = None) -> None:
    """Records a run of four steps, evaluated at every second one."""
    records = RunRecords(folder)
    records.settings(SETTINGS | {"output_dir": str(folder)})
    records.tags(INPUTS | MACHINE)
    for step in range(1, (stop_at or 4) + 1):
        records.metrics(step, {"loss": 1 / (step + 2), "system/step_seconds": hash(str(folder)) / 7})
        if step % 2 == 0:
            records.metrics(step, {"eval_pq": 100 / 7 * step})


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the training was asked for."""
    asked = []

    def repeat(runs: Any, resources: Any, *, at_once: int = 1, on_cpu: bool = False) -> Iterator[Any]:
        for run in runs:
            asked.append(vars(run) | {"resources": resources, "on_cpu": on_cpu})
            train(run.folder, run.stop_at)
            yield run, None

    tags = {"source_fingerprint": "0123", "hostname": "here", "version.torch": "2.13.0"}
    for module in (tracking, reproduce):
        monkeypatch.setattr(module, "source_files", lambda: SOURCES)
        monkeypatch.setattr(module, "provenance", lambda files: tags)
    monkeypatch.setattr(reproduce, "check_inputs", lambda settings: None)
    monkeypatch.setattr(reproduce, "input_fingerprints", lambda settings: INPUTS)
    monkeypatch.setattr(reproduce, "processor_kind", lambda: MACHINE["processor"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("tune.reproduction.repetition.repeat", repeat)
    return asked


Recorded = Callable[..., str]


@pytest.fixture
def recorded(uri: str, tmp_path: Path, calls: Any) -> Recorded:
    """Records a run in a search; gives its id."""

    def record(stop_at: int | None = None, status: str = "FINISHED", write: Any = train) -> str:
        name = next(names)
        folder = tmp_path / "runs" / name
        tracker = Tracker(uri, folder, name)
        tracker.start_search({"metric": "eval_pq", "resources": {"workers_per_trial": 1, "cpus_per_worker": 1}})
        tracker.start_trial(0, folder / "0", {"mm_n_heads": 4})
        if write is not None:
            write(folder / "0", stop_at)
        tracker.finish_trial(0, status, early_stopped=stop_at is not None)
        tracker.finish_search("FINISHED", {})
        run_id = tracker.run_id(0)
        assert run_id is not None
        return run_id

    return record


def reproduced(uri: str, tmp_path: Path, run_id: str, *flags: str) -> int:
    return main([run_id, "--tracking-uri", uri, "--output-dir", str(tmp_path / "out"), *flags])


def repetition_of(uri: str, run_id: str) -> Any:
    """The run that is linked to another."""
    client = MlflowClient(uri)
    experiment = client.get_run(run_id).info.experiment_id
    (run,) = client.search_runs([experiment], f"tags.reproduces = '{run_id}'")
    return run


def alter(uri: str, statement: str, *values: Any) -> None:
    """Changes the database itself, as MLflow never would."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
        assert database.execute(statement, values).rowcount == 1


def test_a_run_is_reproduced(
    uri: str, tmp_path: Path, recorded: Recorded, calls: list[dict[str, Any]], capsys: Any
) -> None:
    run_id = recorded()
    assert reproduced(uri, tmp_path, run_id) == SAME
    (call,) = calls
    assert {**call["settings"], "output_dir": "/first"} == SETTINGS
    assert call["folder"] == tmp_path / "out" / "reproductions" / run_id[:8]
    assert call["stop_at"] is None
    assert call["resources"].cpus_per_worker == 1
    out = capsys.readouterr().out
    assert "loss     4       equal" in out
    assert "identical: 2 metrics, 6 values, equal bit for bit; recorded as run" in out
    run = repetition_of(uri, run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "reproduction of 0000 h4"
    assert run.data.tags["reproduction"] == "identical"
    assert "mlflow.parentRunId" not in run.data.tags, "it is no trial of the search"
    assert run.data.metrics["eval_pq"] == 400 / 7
    files = {file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id)}
    assert {"verdict.json", "settings.json", "sources.json"} <= files


def test_from_the_record_alone(uri: str, tmp_path: Path, recorded: Recorded) -> None:
    run_id = recorded()
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert reproduced(uri, tmp_path, run_id) == SAME


def test_an_altered_metric_fails(uri: str, tmp_path: Path, recorded: Recorded, capsys: Any) -> None:
    run_id = recorded()
    alter(uri, "UPDATE metrics SET value = value + 1e-15 WHERE run_uuid = ? AND key = 'loss' AND step = 2", run_id)
    assert reproduced(uri, tmp_path, run_id) == DIFFERENT
    out = " ".join(capsys.readouterr().out.split())
    assert "loss 4 differs at step 2: recorded 0.250000000000001, now 0.25" in out
    assert "eval_pq 2 equal" in out
    assert "different: 1 of 2 metrics differ" in out
    run = repetition_of(uri, run_id)
    assert (run.info.status, run.data.tags["reproduction"]) == ("FINISHED", "different")


def test_an_altered_overview_is_told_before(
    uri: str, tmp_path: Path, recorded: Recorded, calls: list[Any], capsys: Any
) -> None:
    run_id = recorded()
    alter(uri, "UPDATE latest_metrics SET value = 99 WHERE run_uuid = ? AND key = 'eval_pq'", run_id)
    alter(uri, "UPDATE params SET value = '8' WHERE run_uuid = ? AND key = 'mm_n_heads'", run_id)
    assert reproduced(uri, tmp_path, run_id) == DIFFERENT
    assert calls == []
    out = capsys.readouterr().out
    assert "eval_pq: the record shows 99.0 as its last value, but its history does not end with it" in out
    assert "mm_n_heads: the record shows '8', but its settings.json has 4" in out


def test_a_value_logged_later_fails(uri: str, tmp_path: Path, recorded: Recorded) -> None:
    run_id = recorded()
    MlflowClient(uri).log_metric(run_id, "loss", 0.01, step=3)
    assert reproduced(uri, tmp_path, run_id) == DIFFERENT


def test_a_stopped_run_is_repeated_to_its_last_step(
    uri: str, tmp_path: Path, recorded: Recorded, calls: list[dict[str, Any]], capsys: Any
) -> None:
    run_id = recorded(stop_at=3)
    assert reproduced(uri, tmp_path, run_id) == SAME
    assert calls[0]["stop_at"] == 3
    assert calls[0]["settings"]["max_steps"] == 4, "the learning rate's schedule stays"
    assert "stopped early after step 3" in capsys.readouterr().out
    again = repetition_of(uri, run_id).info.run_id
    assert reproduced(uri, tmp_path, again) == SAME, "a repetition can be repeated"
    assert calls[1]["stop_at"] == 3


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_so_is_one_that_failed(
    uri: str, tmp_path: Path, recorded: Recorded, calls: list[dict[str, Any]], status: str
) -> None:
    assert reproduced(uri, tmp_path, recorded(status=status)) == SAME
    assert calls[0]["stop_at"] == 4


def test_differences_are_told_before_any_compute(
    uri: str, tmp_path: Path, recorded: Recorded, calls: list[Any], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = recorded()
    tags = {"source_fingerprint": "4567", "version.torch": "3.0"}
    monkeypatch.setattr(reproduce, "source_files", lambda: {"psalm/a.py": "1" * 64})
    monkeypatch.setattr(reproduce, "provenance", lambda files: tags)
    monkeypatch.setattr(reproduce, "input_fingerprints", lambda settings: {"data_fingerprint_val": "def"})
    assert reproduced(uri, tmp_path, run_id) == DIFFERENT
    assert calls == []
    captured = capsys.readouterr()
    for line in (
        "sources differ: psalm/a.py",
        "data fingerprint val differs: recorded abc, here def",
        "version.torch differs: recorded 2.13.0, here 3.0",
    ):
        assert line in captured.out
    assert "--allow-differences" in captured.err
    assert reproduced(uri, tmp_path, run_id, "--allow-differences") == SAME


def test_other_threads_are_a_difference(uri: str, tmp_path: Path, recorded: Recorded, capsys: Any) -> None:
    run_id = recorded()
    MlflowClient(uri).set_tag(run_id, "omp_num_threads", "4")
    assert reproduced(uri, tmp_path, run_id) == DIFFERENT
    assert "omp num threads differs: recorded 4, here 1" in capsys.readouterr().out


def test_another_processor_is_compared_within_tolerances(
    uri: str, tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run_id = recorded()
    alter(uri, "UPDATE metrics SET value = value * 1.001 WHERE run_uuid = ? AND key = 'loss' AND step = 1", run_id)
    assert reproduced(uri, tmp_path, run_id) == DIFFERENT
    monkeypatch.setattr(reproduce, "processor_kind", lambda: "x, AVX512")
    assert reproduced(uri, tmp_path, run_id) == SAME
    out = capsys.readouterr().out
    assert "note  processor: recorded x, AVX2, here x, AVX512" in out
    assert "so not every bit is compared, but the first logged loss within 1.00% (the default in float32)" in out
    assert "within tolerance: of 2 metrics 1 are equal bit for bit, 1 within the tolerance, 0 not judged" in out
    assert reproduced(uri, tmp_path, run_id, "--rtol", "0.0001") == DIFFERENT
    assert "the first logged loss within 0.01% (as given)" in capsys.readouterr().out


def test_a_run_of_a_gpu(uri: str, tmp_path: Path, recorded: Recorded, calls: list[dict[str, Any]], capsys: Any) -> None:
    run_id = recorded()
    assert reproduced(uri, tmp_path, run_id) == SAME
    assert calls[-1]["on_cpu"], "without a GPU as before, also where there is one"
    for name, value in {"device": "NVIDIA H200", "gpus_per_worker": "1"}.items():
        MlflowClient(uri).set_tag(run_id, name, value)
    assert "a trial needs 1 GPUs" in refused(uri, tmp_path, run_id, capsys)
    assert reproduced(uri, tmp_path, run_id, "--on-cpu") == SAME
    assert calls[-1]["on_cpu"]
    assert calls[-1]["resources"].gpus_per_worker == 0
    assert "device: recorded NVIDIA H200, here cpu" in capsys.readouterr().out


def test_a_run_whose_settings_changed(uri: str, tmp_path: Path, recorded: Recorded, capsys: Any) -> None:
    """As the memory ladder changes them: the last ones are recorded, and no longer all bits expected."""

    def write(folder: Path, stop_at: int | None) -> None:
        records = RunRecords(folder)
        records.settings(SETTINGS | {"gradient_accumulation_steps": 1})
        records.close()
        train(folder)

    run_id = recorded(write=write)
    alter(uri, "UPDATE metrics SET value = value * 1.001 WHERE run_uuid = ? AND key = 'loss' AND step = 1", run_id)
    assert reproduced(uri, tmp_path, run_id) == SAME
    out = capsys.readouterr().out
    assert (
        "gradient_accumulation_steps changed while the run was recorded (1 -> 2); it is repeated with the last" in out
    )
    assert "within tolerance" in out


def test_a_given_tolerance_is_enough(uri: str, tmp_path: Path, recorded: Recorded, capsys: Any) -> None:
    run_id = recorded()
    alter(uri, "UPDATE metrics SET value = value + 1 WHERE run_uuid = ? AND key = 'eval_pq' AND step = 4", run_id)
    flags = ("--allow-differences", "--atol", "1.5")
    assert reproduced(uri, tmp_path, run_id, *flags) == SAME
    assert "main metrics at the last evaluation within 1.50 points (as given)" in capsys.readouterr().out
    run = repetition_of(uri, run_id)
    assert run.data.tags["reproduction"] == "within tolerance"


def test_a_resumed_run_says_so(uri: str, tmp_path: Path, recorded: Recorded, capsys: Any) -> None:
    def write(folder: Path, stop_at: int | None) -> None:
        train(folder, 3)
        with RunRecords(folder) as records:
            records.event("resumed", step=2)
            for step in (3, 4):
                records.metrics(step, {"loss": 1 / (step + 2)})
            records.metrics(4, {"eval_pq": 100 / 7 * 4})

    run_id = recorded(write=write)
    assert reproduced(uri, tmp_path, run_id) == SAME
    out = capsys.readouterr().out
    assert "which was resumed after step 2 and ran to its end" in out
    assert "identical" in out


def refused(uri: str, tmp_path: Path, run_id: str, capsys: Any) -> str:
    """The one line on stderr that a command is refused with."""
    assert reproduced(uri, tmp_path, run_id) == REFUSED
    err: str = capsys.readouterr().err
    assert err.startswith("reproduce.py: ")
    assert err.count("\n") == 1
    return err


def test_what_cannot_be_reproduced(uri: str, tmp_path: Path, recorded: Recorded, calls: list[Any], capsys: Any) -> None:
    client = MlflowClient(uri)
    run_id = recorded()
    parent = client.get_run(run_id).data.tags["mlflow.parentRunId"]
    foreign = client.create_run("0").info.run_id
    unrecorded = recorded(write=None)
    silent = recorded(write=lambda folder, stop_at: RunRecords(folder).settings(SETTINGS))
    assert "run '0123': Run with id=0123 not found; take the id" in refused(uri, tmp_path, "0123", capsys)
    assert f"run {parent!r} is a search, not a training run" in refused(uri, tmp_path, parent, capsys)
    assert "has no settings.json" in refused(uri, tmp_path, foreign, capsys)
    assert "has no settings.json" in refused(uri, tmp_path, unrecorded, capsys)
    assert "recorded no metrics" in refused(uri, tmp_path, silent, capsys)
    nowhere = f"sqlite:///{tmp_path}/no.db"
    assert "there is no such file" in refused(nowhere, tmp_path, run_id, capsys)
    assert not (tmp_path / "no.db").exists()
    assert calls == []


def test_data_that_is_not_here(
    uri: str, tmp_path: Path, recorded: Recorded, calls: list[Any], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(settings: Any) -> None:
        raise ValueError("panoptic_json_path /data/coco: there is no such folder")

    run_id = recorded()
    monkeypatch.setattr(reproduce, "check_inputs", missing)
    assert "cannot be repeated here: panoptic_json_path /data/coco" in refused(uri, tmp_path, run_id, capsys)
    assert calls == []


def test_more_than_this_machine_has(uri: str, tmp_path: Path, recorded: Recorded, capsys: Any) -> None:
    run_id = recorded()
    MlflowClient(uri).set_tag(run_id, "workers_per_trial", "1000")
    assert "1000" in refused(uri, tmp_path, run_id, capsys)


def test_a_repetition_that_fails(
    uri: str, tmp_path: Path, recorded: Recorded, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repeat(runs: Any, resources: Any, **_: Any) -> Iterator[Any]:
        for run in runs:
            train(run.folder, 2)
            yield run, "no space left"

    run_id = recorded()
    monkeypatch.setattr("tune.reproduction.repetition.repeat", repeat)
    assert reproduced(uri, tmp_path, run_id) == DIFFERENT
    assert "The repetition failed: no space left" in capsys.readouterr().out
    run = repetition_of(uri, run_id)
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "no space left")


def test_an_interrupted_repetition(
    uri: str, tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tune.trials.cluster import Interrupted

    def repeat(*arguments: Any, **_: Any) -> Iterator[Any]:
        raise Interrupted(2)
        yield

    run_id = recorded()
    monkeypatch.setattr("tune.reproduction.repetition.repeat", repeat)
    assert reproduced(uri, tmp_path, run_id) == 130
    run = repetition_of(uri, run_id)
    assert (run.info.status, run.data.tags["reproduction"]) == ("KILLED", "interrupted")


# The real thing.

TRIAL = """
import sys
from psalm.train.arguments import parse_settings
from psalm.train.train import train
from tune.reproduction.repeating import StopAt
import json
train(parse_settings(json.loads(sys.argv[1])), callbacks=[StopAt(3)])
"""
COMMAND = str(Path(reproduce.__file__))


@pytest.mark.full
def test_a_stopped_training_and_its_altered_record(uri: str, tmp_path: Path, tiny_tower: dict[str, Any]) -> None:
    """A real training that was stopped, repeated by the real command: identical; with one metric altered: not."""
    tower = tmp_path / "tower"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps(tiny_tower))
    save_file({"nothing": torch.zeros(1)}, tower / "model.safetensors")
    folder = tmp_path / "runs" / "search"
    settings = {
        "output_dir": str(folder / "0"),
        "vision_tower": str(tower),
        "panoptic_json_path": str(ensure_builtin(tmp_path / "data", train_images=12, val_images=5)),
        "mm_hidden_dim": 16,
        "mm_n_heads": 2,
        "mm_n_points": 2,
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "save_final_model": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    tracker = Tracker(uri, folder, next(names))
    tracker.start_search({"metric": "eval_pq", "resources": {"workers_per_trial": 1, "cpus_per_worker": 1}})
    tracker.start_trial(0, folder / "0", {"mm_n_heads": 2})
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", TRIAL, json.dumps(settings)], env=environment, check=True, timeout=300)
    tracker.finish_trial(0, "FINISHED", early_stopped=True)
    tracker.finish_search("FINISHED", {})
    run_id = str(tracker.run_id(0))
    command = [sys.executable, COMMAND, run_id, "--tracking-uri", uri, "--output-dir", str(tmp_path / "runs")]

    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == SAME, done.stdout + done.stderr
    assert "stopped early after step 3" in done.stdout
    assert "identical" in done.stdout
    assert repetition_of(uri, run_id).data.tags["reproduction"] == "identical"

    alter(
        uri, "UPDATE metrics SET value = value * 1.0001 WHERE run_uuid = ? AND key = 'loss_mask' AND step = 2", run_id
    )
    command.append("--allow-differences")  # whatever was edited meanwhile, only the altered metric differs
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == DIFFERENT, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "differs at" in line]
    assert line.startswith("loss_mask"), done.stdout
    assert "at step 2" in line
