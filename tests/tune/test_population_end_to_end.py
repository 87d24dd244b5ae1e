"""A real search with pbt: a poor trial is stopped, forks of the good one take its place, and are what they say."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from psalm.train.records import metric_history, read_records
from tests.tune.searches import Search, small_search
from tune import reproduce
from tune.reproduce import SAME

pytestmark = pytest.mark.full


@pytest.mark.parametrize("where", ["here", "storage"])
def test_forks_are_found_recorded_and_reproduced(tmp_path: Path, tiny_tower: Mapping[str, Any], where: str) -> None:
    small_search(
        tmp_path,
        tiny_tower,
        num_samples=4,
        max_concurrent=2,
        metric="eval_pixel_accuracy",
        space={"learning_rate": {"loguniform": [1e-8, 1e-2]}},
        scheduler={"name": "pbt", "population": 2, "grace_period": 4},
        baselines=[{"learning_rate": 1e-3}, {"learning_rate": 1e-8}],
        arguments={"seg_task": "semantic", "mm_n_points": 2, "max_steps": 48, "eval_steps": 4},
    )
    search = Search(tmp_path)
    place = ["--storage-path", f"file://{tmp_path}/storage"] if where == "storage" else []
    code, output = search.run("--config", "small.yaml", *place)
    assert code == 0, output
    trials, runs = search.content["trials"], search.runs()
    assert (trials[1]["status"], "among the worst 25% there" in trials[1]["reason"]) == ("pruned", True)
    forks = [trial for trial in trials if "forks" in trial]
    assert forks
    assert all(event["event"] != "checkpoint_rejected" for event in search.events)
    for fork in forks:
        number, (parent, step) = fork["number"], fork["forks"].values()
        assert f"trial {number} forks trial {parent} at step {step}: " in output
        run = runs[str(number)]
        assert run.data.tags["forked_from"] == trials[parent]["run_id"]
        assert run.data.tags["forked_at_step"] == str(step)
        assert json.loads(run.data.params["learning_rate_changes"]) == fork["learning_rate_changes"]
        own, of_parent = (metric_history(read_records(search.trial_folder(each))) for each in (number, parent))
        assert search.trial_events(number)[0] == "resumed", "it went on from its parent's checkpoint"
        early = {at: value for at, value in of_parent["eval_pixel_accuracy"].items() if at <= step}
        assert own["eval_pixel_accuracy"].items() >= early.items()
        assert own["system/step_seconds"].keys().isdisjoint(range(1, step + 1)), "the seconds are its own"
        client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
        points = {each.step: each.value for each in client.get_metric_history(run.info.run_id, "eval_pixel_accuracy")}
        assert points == own["eval_pixel_accuracy"], "MLflow has the whole curve"

    best = search.content["best"]["run_id"]
    run_id = best if best in [fork["run_id"] for fork in forks] else forks[-1]["run_id"]
    done = subprocess.run(
        [sys.executable, str(reproduce.__file__), run_id], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == SAME, done.stdout + done.stderr
    assert "identical" in done.stdout
