"""A real search for several objectives, resumed for more trials: its records, MLflow and the report say the same."""

import statistics
from pathlib import Path
from typing import Any

import pytest

from psalm.train.records import metric_history, read_records
from tests.tune.searches import Search, small_search

pytestmark = pytest.mark.full


def test_a_search_for_several_objectives_ends_with_their_front(tmp_path: Path, tiny_tower: dict[str, Any]) -> None:
    small_search(
        tmp_path,
        tiny_tower,
        metric=None,
        objectives=[{"eval_sq": "max"}, {"step_ms": "min"}, {"parameters": "min"}, {"peak_memory": "min"}],
        num_samples=3,
        space={"mm_hidden_dim": {"choice": [16, 64]}, "learning_rate": {"loguniform": [1e-4, 1e-2]}},
        sampler={"n_startup_trials": 2},
        baselines=[{"mm_hidden_dim": 16, "learning_rate": 1e-3}],
        arguments={"mm_hidden_dim": None},
    )
    search = Search(tmp_path)
    code, output = search.run("--config", "small.yaml")
    assert code == 0, output
    code, output = search.run("--resume", "runs/small", "--num-samples", "5")
    assert code == 0, output

    trials = search.content["trials"]
    assert [trial["status"] for trial in trials] == ["completed"] * 5
    for trial in trials:
        history = metric_history(list(read_records(search.trial_folder(trial["number"]))))
        tags = search.runs()[str(trial["number"])].data.tags
        assert trial["objectives"] == {
            "eval_sq": trial["last"],
            "step_ms": 1000 * statistics.median(history["system/step_seconds"].values()),
            "parameters": float(tags["trainable_parameters"]),
            "peak_memory": max(history["system/peak_memory_mb"].values()) / 1024,
        }
    sizes = {trial["params"]["mm_hidden_dim"]: trial["objectives"]["parameters"] for trial in trials}
    assert sizes[16] < sizes[64]

    costs = {
        each["number"]: [-each["objectives"]["eval_sq"], *list(each["objectives"].values())[1:]] for each in trials
    }
    front = {
        number
        for number, own in costs.items()
        if not any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in costs.values())
    }
    assert set(search.content["pareto_front"]) == front
    runs = search.runs()
    assert {int(key) for key, run in runs.items() if run.data.tags.get("pareto") == "true"} == front
    assert runs["search"].data.tags["pareto_front"] == ", ".join(map(str, search.content["pareto_front"]))
    assert "Pareto front of eval_sq (max), step_ms (min), parameters (min), peak_memory (min)" in output
    assert (search.folder / "report" / "front.png").exists()
    assert search.left_after(0) == []
