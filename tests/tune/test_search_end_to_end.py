"""One real search: Ray, DeepSpeed, Optuna and MLflow on a model and data of toy's toy size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from psalm.train.records import read_records
from tests.tune.searches import Search, small_search


@dataclass(frozen=True)
class Finished:
    """A search that has been run: ``output`` is what it printed."""

    search: Search
    code: int
    output: str
    left: list[str]

    @property
    def folder(self) -> Path:
        return self.search.folder

    @property
    def content(self) -> dict[str, Any]:
        return self.search.content


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory, tiny_tower: dict[str, Any]) -> Finished:
    """Two trials at a time: a good one, and one whose learning rate makes the loss overflow."""
    folder = tmp_path_factory.mktemp("search")
    small_search(
        folder,
        tiny_tower,
        space={"learning_rate": {"loguniform": [1e-4, 1e30]}, "mm_n_points": {"choice": [2, 4]}},
        baselines=[{"learning_rate": 1e-3, "mm_n_points": 4}, {"learning_rate": 1e30, "mm_n_points": 2}],
        scheduler={"name": "asha", "grace_period": 2},
    )
    search = Search(folder)
    code, output = search.run("--config", "small.yaml")
    return Finished(search, code, output, search.left_after(0))


def test_it_ends_well_with_one_completed_trial(search: Finished) -> None:
    assert search.code == 0, search.output
    good, bad = search.content["trials"]
    assert (good["number"], good["status"], good["steps"], good["reason"]) == (0, "completed", 4, None)
    assert good["params"] == {"learning_rate": 1e-3, "mm_n_points": 4}
    assert good["last"] is not None
    assert good["seconds"] > 0
    shared = {name: good[name] for name in ("run_id", "params", "dependent")}
    assert search.content["best"] == shared | {"value": good["last"]}
    assert (bad["number"], bad["status"]) == (1, "failed")
    assert "TrainingDiverged: loss is not finite at step 2" in bad["reason"]


def test_mlflow_has_a_parent_and_a_child_for_each_trial(search: Finished) -> None:
    client = MlflowClient(f"sqlite:///{search.folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 3
    assert runs[search.content["search_run_id"]].info.status == "FINISHED"
    good, bad = (runs[trial["run_id"]] for trial in search.content["trials"])
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert {r.data.tags["mlflow.parentRunId"] for r in (good, bad)} == {search.content["search_run_id"]}
    assert good.data.params["mm_n_points"] == "4"
    assert [m.step for m in client.get_metric_history(good.info.run_id, "eval_pq")] == [2, 4]
    assert bad.data.tags["reason"] == search.content["trials"][1]["reason"]


def test_every_trial_kept_its_own_records(search: Finished) -> None:
    last = list(read_records(search.folder / "trials" / "0000"))[-1]
    assert (last["kind"], last["event"]) == ("event", "completed")
    events = [r for r in read_records(search.folder / "trials" / "0001") if r["kind"] == "event"]
    assert events[-1]["event"] == "failed"
    assert "Traceback" in (search.folder / "trials" / "0001" / "error.txt").read_text()


def test_the_output_is_for_people(search: Finished) -> None:
    lines = search.output.splitlines()
    assert len(lines) < 50, search.output  # the space, its fixed values and baselines take a dozen
    for noise in ("Warning", "Traceback", "(pid=", "ERROR", "INFO", "DeprecationWarning"):
        assert noise not in search.output
    assert any("trial 0 step 4/4, eval_pq" in line for line in lines)
    assert any("100%" in line for line in lines)
    assert any("mlflow ui --backend-store-uri" in line for line in lines)
    assert any(f"reproduce.py {search.content['best']['run_id']}" in line for line in lines)


def test_nothing_is_left_behind(search: Finished) -> None:
    assert search.left == []
