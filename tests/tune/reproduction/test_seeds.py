"""A run is trained again with new seeds; their spread says how far two runs of its settings may be apart."""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from psalm.train.arguments import with_defaults
from psalm.train.records import RunRecords
from tune.reproduction import seeds
from tune.reproduction.recorded import read_record
from tune.reproduction.seeds import known_seeds, new_seeds, print_seeds, sweep, tolerance_for
from tune.tracking.tracker import Tracker
from tune.trials.cluster import Interrupted
from tune.trials.resources import Node, TrialResources

names = (f"seeds-{i}" for i in itertools.count())
SETTINGS = with_defaults({"max_steps": 4, "eval_delay": 0, "output_dir": "/first"})
SOURCES = {"psalm/a.py": "0" * 64}
ONE = TrialResources()


def train(folder: Path, pq: float, **changes: Any) -> None:
    """Records a run that ends with this value."""
    with RunRecords(folder) as records:
        records.settings(SETTINGS | {"output_dir": str(folder)} | changes)
        records.tags({"data_fingerprint_val": "abc"})
        records.metrics(2, {"eval_pq": pq / 2})
        records.metrics(4, {"eval_pq": pq})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture
def tracker(client: MlflowClient, tmp_path: Path) -> Tracker:
    """Of a search without trials yet."""
    made = Tracker(client.tracking_uri, tmp_path / "search", next(names))
    made.start_search({"metric": "eval_pq", "resources": {"workers_per_trial": 1, "cpus_per_worker": 1}})
    return made


def trial(tracker: Tracker, number: int, pq: float, status: str = "FINISHED", **changes: Any) -> str:
    """A trial's run id."""
    folder = tracker.search_dir / str(number)
    tracker.start_trial(number, folder, {})
    train(folder, pq, **changes)
    tracker.finish_trial(number, status)
    return str(tracker.run_id(number))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was trained: with seed s a PQ of 50 + s. Seed 3 fails, and seed 5 is interrupted."""
    asked: list[dict[str, Any]] = []

    def repeat(runs: Any, resources: Any, *, at_once: int, on_cpu: bool = False) -> Iterator[Any]:
        for run in runs:
            seed = run.settings["seed"]
            asked.append({"folder": run.folder, "seed": seed, "stop_at": run.stop_at, "at_once": at_once})
            if seed == 5:
                raise Interrupted(2)
            if seed != 3:
                train(run.folder, 50 + seed, seed=seed)
            yield run, "no space left" if seed == 3 else None

    monkeypatch.setattr("tune.reproduction.repetition.repeat", repeat)
    monkeypatch.setattr(seeds, "this_machine", lambda: Node(cpus=2, gpus=0))
    monkeypatch.setattr(seeds, "provenance", lambda files: {"source_fingerprint": "456"})
    return asked


def swept(client: MlflowClient, run_id: str, wanted: Sequence[int], folder: Path) -> list[Any]:
    folder.mkdir()
    record = read_record(client, run_id)
    return list(sweep(client, record, wanted, folder, SOURCES, Console(quiet=True), resources=ONE))


def test_every_seed_is_a_run_of_its_own(
    client: MlflowClient, tracker: Tracker, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    run_id = trial(tracker, 0, 50.0, seed=1)
    assert new_seeds(client, read_record(client, run_id), 3) == [0, 2, 3]
    first, second, third = swept(client, run_id, [0, 2, 3], tmp_path / "sweep")
    assert [call["seed"] for call in trained] == [0, 2, 3]
    assert {call["at_once"] for call in trained} == {2}, "as many as there are processors"
    assert [each.status for each in (first, second, third)] == ["FINISHED", "FINISHED", "FAILED"]
    run = client.get_run(second.run_id)
    assert run.info.run_name == "seed 2 of 0000"
    tags = run.data.tags
    assert (tags["kind"], tags["seed_of"], tags["workers_per_trial"]) == ("seed", run_id, "1")
    assert "mlflow.parentRunId" not in tags, "it is no trial of the search"
    assert run.data.metrics["eval_pq"] == 52
    failed = client.get_run(third.run_id)
    assert (failed.info.status, failed.data.tags["reason"]) == ("FAILED", "no space left")
    record = read_record(client, run_id)
    assert known_seeds(client, record).values == {0: {"eval_pq": 50}, 1: {"eval_pq": 50}, 2: {"eval_pq": 52}}
    assert new_seeds(client, record, 2) == [3, 4], "a seed that failed is tried again"
    again = read_record(client, second.run_id)
    assert known_seeds(client, again).values.keys() == {0, 1, 2}, "a run of a sweep can itself be swept"


def test_an_interrupted_sweep_keeps_what_has_ended(
    client: MlflowClient, tracker: Tracker, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    run_id = trial(tracker, 0, 50.0)
    with pytest.raises(Interrupted):
        swept(client, run_id, [4, 5, 6], tmp_path / "sweep")
    assert [call["seed"] for call in trained] == [4, 5]
    experiment = client.get_run(run_id).info.experiment_id
    runs = client.search_runs([experiment], f"tags.seed_of = '{run_id}'")
    assert {run.info.run_name: run.info.status for run in runs} == {
        "seed 4 of 0000": "FINISHED",
        "seed 5 of 0000": "KILLED",
    }


def test_a_stopped_run_is_swept_to_its_step(
    client: MlflowClient, tracker: Tracker, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    tracker.start_trial(0, tracker.search_dir / "0", {})
    train(tracker.search_dir / "0", 50.0)
    tracker.finish_trial(0, "FINISHED", early_stopped=True)
    (run,) = swept(client, str(tracker.run_id(0)), [1], tmp_path / "sweep")
    assert trained[0]["stop_at"] == 4
    assert client.get_run(run.run_id).data.tags["early_stopped"] == "true"


def test_only_runs_that_differ_in_their_seed_count(client: MlflowClient, tracker: Tracker) -> None:
    run_id = trial(tracker, 0, 50.0, seed=0)
    trial(tracker, 1, 51.0, seed=1)
    trial(tracker, 2, 99.0, seed=2, learning_rate=0.5)
    trial(tracker, 3, 99.0, seed=3, status="FAILED")
    trial(tracker, 4, 99.0, seed=1)
    changed = trial(tracker, 5, 99.0, seed=5)
    client.set_tag(changed, "changed.per_device_train_batch_size", "4 -> 2")
    other_data = trial(tracker, 6, 99.0, seed=6)
    client.set_tag(other_data, "data_fingerprint_val", "def")
    trial(tracker, 7, 52.0, seed=7, save_final_model=False, gradient_checkpointing=True, eval_delay=0.0)
    known = known_seeds(client, read_record(client, run_id))
    assert known.step == 4
    assert known.values == {0: {"eval_pq": 50}, 1: {"eval_pq": 51}, 7: {"eval_pq": 52}}


def test_the_tolerance_is_the_spread_of_the_seeds(client: MlflowClient, tracker: Tracker) -> None:
    values = [50.0, 51.5, 49.0, 52.0]
    run_id = trial(tracker, 0, values[0], seed=0)
    trial(tracker, 1, values[1], seed=1)
    record = read_record(client, run_id)
    assert tolerance_for(client, record).atol == 4.0
    assert "not known" in tolerance_for(client, record).atol_source
    trial(tracker, 2, values[2], seed=2)
    trial(tracker, 3, values[3], seed=3)
    tolerance = tolerance_for(client, record)
    t = 3.182446  # two-sided 95 %, 3 degrees of freedom, from a table
    assert tolerance.atol == pytest.approx(t * statistics.stdev(values) * math.sqrt(2), rel=1e-6)
    assert tolerance.atol_source == "95% of pairs are closer, by the deviation of 1.38 over 4 recorded seeds"


def test_seeds_without_spread_say_nothing(client: MlflowClient, tracker: Tracker) -> None:
    """A metric that is still 0 in a short run says nothing of other hardware."""
    for number in range(3):
        run_id = trial(tracker, number, 0.0, seed=number)
    assert tolerance_for(client, read_record(client, run_id)).atol == 4.0


def test_what_is_shown(client: MlflowClient, tracker: Tracker, capsys: Any) -> None:
    run_id = trial(tracker, 0, 50.0, seed=0)
    for number, pq in enumerate([48.0, 52.0, 53.0], start=1):
        trial(tracker, number, pq, seed=number)
    record = read_record(client, run_id)
    print_seeds(Console(), record, known_seeds(client, record))
    out = capsys.readouterr().out
    assert "0 (the run)  50.00" in out
    assert "At step 4" in out
    assert (
        "eval_pq: mean 51.00, standard deviation 2.65, from 48.00 to 53.00 over 3 other seeds; "
        "the run's 50.00 is -1.00 from the mean, and 2 are higher"
    ) in out
