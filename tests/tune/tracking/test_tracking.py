"""Records reach MLflow once, in order and exactly, whatever is killed or away in between."""

import itertools
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import ViewType

from psalm.train.records import FILE_NAME, RunRecords
from tune.tracking import connection
from tune.tracking import tracker as tracking
from tune.tracking.__main__ import main
from tune.tracking.ledger import TrackingError
from tune.tracking.tracker import Tracker

CONFIG = {
    "name": "tiny",
    "metric": "eval_pq",
    "resources": {"workers_per_trial": 1, "cpus_per_worker": 1, "gpus_per_worker": 0},
    "space": {"mm_n_heads": {"choice": [2, 4]}},
}
PARAMS = {"mm_n_heads": 4, "mm_hidden_dim": 64, "learning_rate": 6e-5, "swin_type": "base"}
names = (f"search-{i}" for i in itertools.count())


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: creating it takes seconds. Tests keep apart by their experiments' names."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def name() -> str:
    return next(names)


@pytest.fixture
def folder(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "runs" / name


@pytest.fixture(autouse=True)
def steady_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is edited while tests run changes nothing here."""
    monkeypatch.setattr(tracking, "source_files", lambda: {"psalm/a.py": "0" * 64})
    tags = {"source_fingerprint": "0123456789abcdef", "hostname": "here", "version.torch": "2.13.0"}
    monkeypatch.setattr(tracking, "provenance", lambda files: tags)


def write_records(folder: Path, steps: int = 3, write: Callable[[], None] = lambda: None) -> None:
    """A small run; ``write`` is called after every record."""
    records = RunRecords(folder)
    (folder / "artifacts").mkdir(exist_ok=True)
    settings = {**PARAMS, "seed": 0, "max_steps": steps, "data": None, "long": "x" * 7000, "list": [1, "a"]}
    calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (records.event, ("started",)),
        (records.settings, (settings | {f"argument_{i}": i for i in range(150)},)),
        (records.tags, ({"data_fingerprint": "abc", "parameters": 1234},)),
    ]
    for step in range(1, steps + 1):
        values = {"loss": 1 / step, "learning_rate": 0.1 * step, "system/step_seconds": step / 7}
        calls.append((records.metrics, (step, values)))
    (folder / "artifacts" / "curves.png").write_bytes(b"png")
    calls += [
        (records.artifact, (folder / "artifacts" / "curves.png",)),
        (records.metrics, (steps, {"eval_pq": 100 / 3})),
        (records.event, ("completed",)),
    ]
    for call, arguments in calls:
        call(*arguments)
        write()


def run_search(uri: str, folder: Path, name: str) -> Tracker:
    """A search of one trial, to its end."""
    tracker = Tracker(uri, folder, name)
    tracker.check()
    tracker.start_search(CONFIG)
    tracker.start_trial(0, folder / "trials" / "0000", PARAMS)
    write_records(folder / "trials" / "0000")
    tracker.finish_trial(0, "FINISHED")
    best = {"run_id": tracker.run_id(0), "params": PARAMS, "value": 100 / 3}
    tracker.finish_search("FINISHED", {"best": best, "trials": []})
    return tracker


def runs_of(uri: str, name: str) -> dict[str, Any]:
    """All runs of an experiment by name."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)
    assert len({run.info.run_name for run in runs}) == len(runs), "no run twice"
    return {run.info.run_name: run for run in runs}


def history(uri: str, run: Any) -> dict[str, list[tuple[int, float]]]:
    client = MlflowClient(uri)
    return {
        key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }


def view(uri: str, name: str) -> dict[str, Any]:
    """Everything that MLflow shows of a search, but ids and times."""
    client = MlflowClient(uri)
    own = ("search_key", "mlflow.", "best_run_id", "git_")
    return {
        run_name: (
            run.info.status,
            run.data.params,
            {key: value for key, value in run.data.tags.items() if not key.startswith(own)},
            history(uri, run),
            sorted(file.path for file in client.list_artifacts(run.info.run_id)),
        )
        for run_name, run in runs_of(uri, name).items()
    } | {"children": len([r for r in runs_of(uri, name).values() if "mlflow.parentRunId" in r.data.tags])}


def test_the_front_of_several_objectives_is_tagged_and_may_change(uri: str, folder: Path, name: str) -> None:
    """A search that was extended may have a trial that beats one of the former front."""
    for front, trials in (([1, 0], 2), ([2, 0], 3)):
        tracker = Tracker(uri, folder, name)
        tracker.check()
        tracker.start_search(CONFIG)
        for number in range(trials):
            if not tracker.knows(number):
                tracker.start_trial(number, folder / "trials" / f"{number:04d}", {"mm_n_heads": number})
                tracker.finish_trial(number, "FINISHED")
        tracker.finish_search("FINISHED", {"best": None, "pareto_front": front})
        runs = {run.data.tags["run_key"]: run for run in runs_of(uri, name).values()}
        assert runs["search"].data.tags["pareto_front"] == ", ".join(map(str, front))
        tagged = {number for number in range(trials) if runs[str(number)].data.tags.get("pareto") == "true"}
        assert tagged == set(front)
    assert {runs[str(number)].info.status for number in range(3)} == {"FINISHED"}


TRIAL = "0000 d64 h4 lr6.0e-5 base"


def test_a_search_in_mlflow(uri: str, folder: Path, name: str) -> None:
    tracker = run_search(uri, folder, name)
    runs = runs_of(uri, name)
    parent, trial = runs[folder.name], runs[TRIAL]
    assert trial.info.run_id == tracker.run_id(0)
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert "mlflow.parentRunId" not in parent.data.tags
    assert parent.data.params["metric"] == "eval_pq"
    assert parent.data.metrics == {"best_eval_pq": 100 / 3}
    assert parent.data.tags["best_run_id"] == trial.info.run_id
    assert {parent.info.status, trial.info.status} == {"FINISHED"}

    params = trial.data.params
    assert params["mm_n_heads"] == "4"
    assert params["learning_rate"] == "6e-05"
    assert params["list"] == '[1, "a"]'
    assert params["data"] == "None"
    assert len(params["long"]) == 6000
    assert params["argument_149"] == "149"
    tags = trial.data.tags
    assert tags["trial_number"] == "0"
    assert tags["data_fingerprint"] == "abc"
    assert tags["parameters"] == "1234"
    assert tags["workers_per_trial"] == "1"
    assert tags["source_fingerprint"] == "0123456789abcdef"
    assert tags["version.torch"] == "2.13.0"
    assert "early_stopped" not in tags
    assert history(uri, trial)["loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert history(uri, trial)["eval_pq"] == [(3, 100 / 3)]
    assert trial.data.metrics["system/step_seconds"] == 3 / 7


def test_artifacts_lie_beside_the_database(uri: str, folder: Path, name: str, tmp_path: Path) -> None:
    run_search(uri, folder, name)
    client = MlflowClient(uri)
    trial = runs_of(uri, name)[TRIAL]
    paths = {file.path for file in client.list_artifacts(trial.info.run_id)}
    assert paths == {"settings.json", "sources.json", "curves.png"}
    root = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / name
    assert trial.info.artifact_uri.startswith(root.as_uri())
    assert len(list(root.rglob("curves.png"))) == 1
    assert list((tmp_path / "cwd").iterdir()) == [], "nothing is written into the working directory"


def test_settings_keep_their_types(uri: str, folder: Path, name: str, tmp_path: Path) -> None:
    run_search(uri, folder, name)
    run_id = runs_of(uri, name)[TRIAL].info.run_id
    content = MlflowClient(uri).download_artifacts(run_id, "settings.json", str(tmp_path))
    settings = json.loads(Path(content).read_text())
    assert settings["learning_rate"] == 6e-5
    assert settings["data"] is None
    assert len(settings["long"]) == 7000


def test_doubles_arrive_bit_for_bit(uri: str, folder: Path, name: str) -> None:
    values = [0.1, 1 / 3, math.pi * 1e-300, 5e-324, 1.7976931348623157e308, -2.5e-17, 123456789.123456789, 1e22]
    tracker = Tracker(uri, folder, name)
    tracker.start_search(CONFIG)
    tracker.start_trial(0, folder / "0", {})
    records = RunRecords(folder / "0")
    for step, value in enumerate(values):
        records.metrics(step, {"v": value})
    records.metrics(len(values), {"v": math.nan})
    assert tracker.sync()
    points = history(uri, runs_of(uri, name)["0000"])["v"]
    assert [value.hex() for _, value in points[:-1]] == [value.hex() for value in values]
    assert math.isnan(points[-1][1])


def test_every_end_has_its_status(uri: str, folder: Path, name: str) -> None:
    tracker = Tracker(uri, folder, name)
    tracker.start_search(CONFIG)
    for number in range(5):
        tracker.start_trial(number, folder / "trials" / f"{number:04d}", {})
    tracker.finish_trial(0, "FINISHED", early_stopped=True)
    tracker.finish_trial(1, "FAILED", "eval_pq is nan at step 30")
    tracker.finish_trial(2, "KILLED", "interrupted")
    assert runs_of(uri, name)["0003"].info.status == "RUNNING"
    tracker.finish_trial(3, "FINISHED")
    tracker.finish_search("KILLED", {"best": None, "trials": []})
    runs = runs_of(uri, name)
    assert [runs[f"000{i}"].info.status for i in range(5)] == ["FINISHED", "FAILED", "KILLED", "FINISHED", "KILLED"]
    assert runs[folder.name].info.status == "KILLED"
    assert runs["0000"].data.tags["early_stopped"] == "true"
    assert runs["0001"].data.tags["reason"] == "eval_pq is nan at step 30"
    assert all(run.info.end_time for run in runs.values())
    with pytest.raises(ValueError, match="'DONE' of run '0' is none of FINISHED, FAILED, KILLED"):
        tracker.finish_trial(0, "DONE")


def test_a_trial_without_records_still_has_its_searched_params(uri: str, folder: Path, name: str) -> None:
    tracker = Tracker(uri, folder, name)
    tracker.start_search(CONFIG)
    tracker.start_trial(0, folder / "0", PARAMS)
    tracker.finish_trial(0, "FAILED", "the worker did not start")
    assert runs_of(uri, name)[TRIAL].data.params["mm_n_heads"] == "4"


def test_delivering_again_changes_nothing(uri: str, folder: Path, name: str) -> None:
    run_search(uri, folder, name)
    before = view(uri, name)
    client = MlflowClient(uri)
    run_id = runs_of(uri, name)[TRIAL].info.run_id
    client.set_tag(run_id, "delivered_records", "1")  # the answer to the last calls was lost
    ledger = folder / "tracking.json"
    ledger.write_text(ledger.read_text().replace('"closed_at": ', '"closed_at": 1'))
    assert main(["sync", str(folder)]) == 0
    assert view(uri, name) == before


def test_a_new_process_after_every_record(uri: str, folder: Path, name: str) -> None:
    run_search(uri, folder, name)
    expected = view(uri, name)
    name, folder = next(names), folder.parent / "b" / folder.name

    def new_process() -> None:
        tracker = Tracker(uri, folder, name)
        tracker.start_search(CONFIG)
        tracker.start_trial(0, folder / "trials" / "0000", PARAMS)
        assert tracker.sync()
        tracker._ledger.release()

    write_records(folder / "trials" / "0000", write=new_process)
    last = Tracker(uri, folder, name)
    last.start_search(CONFIG)
    last.finish_trial(0, "FINISHED")
    last.finish_search("FINISHED", {"best": {"run_id": last.run_id(0), "value": 100 / 3}})
    assert view(uri, name) == expected


class Killed(BaseException):
    """The process ends here."""


WRITES = ("create_experiment", "create_run", "log_batch", "log_dict", "log_artifact", "log_metric", "set_terminated")


def test_killed_after_every_call(uri: str, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has done what it was asked, and nobody is left to note it."""
    run_search(uri, folder, name)
    expected = view(uri, name)
    calls, fatal = 0, -1

    def deadly(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            number = calls
            result = method(*args, **kwargs)
            if number == fatal:
                raise Killed
            return result

        return call

    for write in WRITES:
        monkeypatch.setattr(MlflowClient, write, deadly(getattr(MlflowClient, write)))

    def search(folder: Path, name: str) -> None:
        tracker = Tracker(uri, folder, name)
        try:
            tracker.start_search(CONFIG)
            tracker.start_trial(0, folder / "trials" / "0000", PARAMS)
            tracker.finish_trial(0, "FINISHED")
            tracker.finish_search("FINISHED", {"best": {"run_id": tracker.run_id(0), "value": 100 / 3}})
        finally:
            tracker._ledger.release()

    for fatal_call in itertools.count(1):
        again = folder.parent / str(fatal_call) / folder.name
        write_records(again / "trials" / "0000")
        name, calls, fatal = next(names), 0, fatal_call
        try:
            search(again, name)
        except Killed:
            fatal = -1
            search(again, name)
            assert view(uri, name) == expected, f"killed at call {fatal_call}"
        else:
            break
    assert fatal_call > 15


def test_a_resumed_run_adds_only_what_is_new(uri: str, folder: Path, name: str) -> None:
    tracker = Tracker(uri, folder, name)
    tracker.start_search(CONFIG)
    tracker.start_trial(0, folder / "0", {})
    records = RunRecords(folder / "0")
    records.settings({"batch": 4, "seed": 0})
    for step in (1, 2, 3):
        records.metrics(step, {"loss": step / 3})
    assert tracker.sync()
    records.event("resumed", step=1)
    records.settings({"batch": 2, "seed": 0, "accumulation": 2})
    for step in (2, 3, 4):
        records.metrics(step, {"loss": step / 3})
    assert tracker.sync()
    run = runs_of(uri, name)["0000"]
    assert history(uri, run)["loss"] == [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, 4 / 3)]
    assert run.data.params == {"batch": "4", "seed": "0", "accumulation": "2"}
    assert run.data.tags["changed.batch"] == "4 -> 2"
    settings = MlflowClient(uri).download_artifacts(run.info.run_id, "settings.json", str(folder))
    assert json.loads(Path(settings).read_text()) == {"batch": 2, "seed": 0, "accumulation": 2}
    assert run.data.tags["resumed_after_step"] == "1"


def test_a_resumed_search_takes_up_its_runs(uri: str, folder: Path, name: str) -> None:
    first = Tracker(uri, folder, name)
    first.start_search(CONFIG)
    first.start_trial(0, folder / "0", {})
    first.start_trial(1, folder / "1", {})
    first.finish_trial(0, "FAILED", "no space left")
    first._ledger.release()

    second = Tracker(uri, folder, name)
    parent_id = second.start_search(CONFIG)
    assert [second.start_trial(number, folder / str(number), {}) for number in (0, 1)] == [
        first.run_id(0),
        first.run_id(1),
    ]
    runs = runs_of(uri, name)
    assert len(runs) == 3
    assert runs[folder.name].info.run_id == parent_id
    assert runs["0000"].info.status == "RUNNING"
    assert "reason" not in runs["0000"].data.tags
    second.finish_trial(0, "FINISHED")
    assert runs_of(uri, name)["0000"].info.status == "FINISHED"


def test_records_after_the_end_still_arrive(uri: str, folder: Path, name: str) -> None:
    """The workers of an early-stopped trial live a moment longer than the trial."""
    tracker = Tracker(uri, folder, name)
    tracker.start_search(CONFIG)
    tracker.start_trial(0, folder / "0", {})
    tracker.finish_trial(0, "FINISHED", early_stopped=True)
    RunRecords(folder / "0").metrics(7, {"loss": 0.5})
    assert tracker.sync()
    run = runs_of(uri, name)["0000"]
    assert history(uri, run)["loss"] == [(7, 0.5)]
    assert run.info.status == "FINISHED"


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """While its element is True, the store does not answer; pauses between attempts are none."""
    state = [False]
    for write in (*WRITES, "search_runs", "search_experiments", "get_run", "get_experiment_by_name"):
        method = getattr(MlflowClient, write)

        def call(*args: Any, method: Callable[..., Any] = method, **kwargs: Any) -> Any:
            if state[0]:
                raise requests.ConnectionError("connection refused")
            return method(*args, **kwargs)

        monkeypatch.setattr(MlflowClient, write, call)
    monkeypatch.setattr(connection, "FIRST_PAUSE", 0.0)
    return state


def test_a_store_that_is_away_for_a_while(
    uri: str, folder: Path, name: str, away: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(uri, folder, name)
    tracker.start_search(CONFIG)
    away[0] = True
    assert tracker.start_trial(0, folder / "trials" / "0000", PARAMS) is None
    write_records(folder / "trials" / "0000")
    assert not tracker.sync()
    assert not tracker.sync()
    tracker.finish_trial(0, "FINISHED")
    assert tracker.run_id(0) is None
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == [
        "MLflow is away, records are kept for later: connection refused"
    ], "told once"
    away[0] = False
    assert tracker.sync()
    run = runs_of(uri, name)[TRIAL]
    assert run.info.run_id == tracker.run_id(0)
    assert run.info.status == "FINISHED"
    assert history(uri, run)["loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert "MLflow is back" in caplog.text


def test_a_store_that_is_away_is_not_asked_all_the_time(
    uri: str, folder: Path, name: str, away: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FIRST_PAUSE", 60.0)
    tracker = Tracker(uri, folder, name)
    tracker.start_search(CONFIG)
    away[0] = True
    tracker.start_trial(0, folder / "0", {})
    away[0] = False
    assert not tracker.sync(), "the pause is not over"
    tracker.finish_search("FINISHED", {})
    assert runs_of(uri, name)["0000"].info.status == "KILLED", "the end does not wait for the pause"


def test_away_for_good_and_synced_by_hand(
    uri: str, folder: Path, name: str, away: list[bool], caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    run_search(uri, folder, name)
    expected = view(uri, name)
    name, folder = next(names), folder.parent / "b" / folder.name
    tracker = Tracker(uri, folder, name)
    away[0] = True
    assert tracker.start_search(CONFIG) is None
    assert tracker.start_trial(0, folder / "trials" / "0000", PARAMS) is None
    write_records(folder / "trials" / "0000")
    tracker.finish_trial(0, "FINISHED")
    tracker.finish_search("FINISHED", {"best": {"run_id": None, "value": 100 / 3}})
    assert f"python -m tune.tracking sync {folder}" in caplog.text
    assert main(["sync", str(folder)]) == 2, "still away"
    away[0] = False
    assert main(["sync", str(folder)]) == 0
    assert capsys.readouterr().out == f"2 runs of {folder} are in {uri}\n"
    assert view(uri, name) == expected


def test_sync_after_the_driver_was_killed(uri: str, folder: Path, name: str, capsys: Any) -> None:
    tracker = Tracker(uri, folder, name)
    tracker.start_search(CONFIG)
    tracker.start_trial(0, folder / "0", {})
    RunRecords(folder / "0").metrics(1, {"loss": 0.5})
    assert main(["sync", str(folder)]) == 2
    assert "its own process brings its records" in capsys.readouterr().err
    tracker._ledger.release()  # as the end of its process does
    assert main(["sync", str(folder)]) == 0
    assert history(uri, runs_of(uri, name)["0000"])["loss"] == [(1, 0.5)]


def test_sync_into_another_store(uri: str, folder: Path, name: str) -> None:
    run_search(uri, folder, name)
    expected = view(uri, name)
    ledger = folder / "tracking.json"
    ledger.write_text(
        ledger.read_text().replace(uri, "sqlite:////nowhere/mlflow.db").replace(f'"{name}"', f'"{name}x"')
    )
    assert main(["sync", str(folder), "--tracking-uri", uri]) == 0
    assert view(uri, f"{name}x")[TRIAL] == expected[TRIAL]


def test_sync_of_no_search(tmp_path: Path, capsys: Any) -> None:
    assert main(["sync", str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err
        == f"{tmp_path} has no tracking.json; give the folder of a search, for example runs/tiny\n"
    )
    (tmp_path / "tracking.json").write_text("[]")
    assert main(["sync", str(tmp_path)]) == 2
    assert "is not what a search's tracker writes" in capsys.readouterr().err


def test_one_refused_run_does_not_stop_the_others(
    uri: str, folder: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(uri, folder, name)
    tracker.start_search(CONFIG)
    for number in (0, 1, 2):
        tracker.start_trial(number, folder / str(number), {})
        RunRecords(folder / str(number)).metrics(1, {"loss": 0.5})
    MlflowClient(uri).delete_run(tracker.run_id(0))  # by hand, in the web page
    records = folder / "1" / FILE_NAME
    records.write_text("no record\n" + records.read_text())
    assert not tracker.sync()
    for number in (0, 1, 2):
        tracker.finish_trial(number, "FINISHED")
    runs = runs_of(uri, name)
    assert history(uri, runs["0002"])["loss"] == [(1, 0.5)]
    assert runs["0001"].info.status == "FINISHED", "its records are damaged, its end is known"
    warnings = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 2
    assert all("stays incomplete" in warning for warning in warnings)


def test_a_file_that_is_gone_is_told(uri: str, folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(uri, folder, name)
    tracker.start_search(CONFIG)
    tracker.start_trial(0, folder / "0", {})
    records = RunRecords(folder / "0")
    records.artifact(folder / "0" / "curves.png")
    records.metrics(1, {"loss": 0.5})
    assert tracker.sync()
    assert "curves.png was recorded but is gone" in caplog.text
    assert history(uri, runs_of(uri, name)["0000"])["loss"] == [(1, 0.5)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """A real MLflow server: its URI, and how to start and kill it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = tmp_path / "server"
    store.mkdir()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{store}/mlflow.db", "--artifacts-destination", str(store / "artifacts")),
    ]
    uri = f"http://127.0.0.1:{port}"
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with (tmp_path / "server.log").open("ab") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=store, start_new_session=True))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                if requests.get(f"{uri}/health", timeout=2).ok:
                    return
            except requests.RequestException:
                time.sleep(0.5)
        pytest.fail((tmp_path / "server.log").read_text())

    def stop() -> None:
        process = processes.pop()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    start()
    yield uri, start, stop
    while processes:
        stop()


@pytest.mark.full
def test_a_real_server_that_goes_and_comes_back(
    server: tuple[str, Callable[[], None], Callable[[], None]],
    folder: Path,
    name: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "FIRST_PAUSE", 0.0)
    server_uri, start, stop = server
    tracker = Tracker(server_uri, folder, name)
    tracker.check()
    tracker.start_search(CONFIG)
    assert tracker.start_trial(0, folder / "trials" / "0000", PARAMS)
    write_records(folder / "trials" / "0000")
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -2.5e-17, 1e22, math.nan]
    records = RunRecords(folder / "trials" / "0000")
    for step, value in enumerate(values[:3]):
        records.metrics(step, {"v": value})
    assert tracker.sync()

    stop()
    for step, value in enumerate(values[3:], start=3):
        records.metrics(step, {"v": value})
    begin = time.monotonic()
    assert not tracker.sync()
    assert tracker.start_trial(1, folder / "trials" / "0001", {}) is None
    tracker.finish_trial(0, "FINISHED")
    assert time.monotonic() - begin < 10, "the search is not held up"
    with pytest.raises(TrackingError, match="Connection refused"):
        Tracker(server_uri, folder, name).check()

    start()
    assert tracker.sync()
    tracker.finish_search("FINISHED", {})
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 2, "away, and back"
    runs = runs_of(server_uri, name)
    assert len(runs) == 3
    trial = runs[TRIAL]
    assert trial.info.status == "FINISHED"
    points = history(server_uri, trial)["v"]
    assert [step for step, _ in points] == list(range(len(values)))
    assert [value.hex() for _, value in points] == [value.hex() for value in values], "bit for bit over HTTP"
    assert history(server_uri, trial)["loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    files = {file.path for file in MlflowClient(server_uri).list_artifacts(trial.info.run_id)}
    assert files == {"settings.json", "sources.json", "curves.png"}
