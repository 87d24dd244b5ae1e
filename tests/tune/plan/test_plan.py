"""What a search would take: found out without a search, without Ray, and without a trace."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from psalm.model.sizes import RESERVE
from psalm.train.arguments import with_defaults
from tests.tune.searches import Search, small_search
from tune.options import parse_options
from tune.plan.corners import Corner
from tune.plan.expectation import LIKELY
from tune.plan.plan import checkpoints_per_evaluation, device_memory, make_plan, to_probe
from tune.plan.probe import environment
from tune.search import main
from tune.study.steps import evaluation_steps
from tune.trials.resources import TrialResources, this_machine


def corner(parameters: int, rung: int | None = 0) -> Corner:
    return Corner({"mm_n_points": parameters}, parameters, 1, rung, 1, {})


@pytest.fixture
def small(tmp_path: Path, tiny_tower: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a search whose baseline cannot be trained."""
    monkeypatch.chdir(tmp_path)
    small_search(
        tmp_path,
        tiny_tower,
        max_concurrent=1,
        baselines=[{"learning_rate": 1e30, "mm_n_points": 2}],
        space={"learning_rate": {"loguniform": [1e-36, 1e30]}, "mm_n_points": {"choice": [2, 4]}},
        scheduler={"name": "asha", "grace_period": 2},
        arguments={"save_strategy": "steps", "save_steps": 1},
    )
    return tmp_path


def test_a_plan_says_all_and_leaves_nothing(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(small.rglob("*"))
    assert main(["--plan", "--config", "small.yaml", "--cpu-hours", "0.0001"]) == 0
    output = capsys.readouterr().out
    assert sorted(small.rglob("*")) == before
    assert not ray.is_initialized()
    for words in (
        "Search small: 2 trials of 4 steps",
        "The probe of learning_rate=1e+30 mm_n_points=2 failed: TrainingDiverged",
        "2 trials, 1 at a time",
        "likely",
        "one evaluation of all questions",
        "--cpu-hours 0.0001 would probably end the search",
        "disk: up to",
        f"in {small / 'runs' / 'small'}",
        "asha stops trials from step 2 on, reduction factor 3",
        f"MLflow: sqlite:///{small / 'runs' / 'mlflow.db'}",
    ):
        assert words in output
    for noise in ("Warning", "Traceback", "✓"):
        assert noise not in output


def test_without_a_probe_nothing_is_said_of_time(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", "--no-probe", "--config", "small.yaml"]) == 0
    output = capsys.readouterr().out
    assert "memory" in output
    assert "Nothing was measured" in output
    assert "likely" not in output


def test_a_plan_for_several_objectives_names_them(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load((small / "small.yaml").read_text())
    del content["metric"], content["scheduler"]
    content["objectives"] = [{"eval_pq": "max"}, {"step_ms": "min"}]
    (small / "small.yaml").write_text(yaml.safe_dump(content))
    assert main(["--plan", "--no-probe", "--config", "small.yaml"]) == 0
    output = capsys.readouterr().out
    assert "  objectives: eval_pq (max), step_ms (min)\n" in output
    assert "no trial is stopped early; the front of eval_pq (max), step_ms (min)\n" in output


def test_a_probe_tries_the_baseline_the_smallest_and_the_largest_that_fit() -> None:
    baseline, small, large = corner(30), corner(10, rung=2), corner(50)
    assert to_probe([baseline, corner(90, rung=None), large, small, corner(40)]) == [baseline, small, large]
    assert to_probe([small, large]) == [small, large]
    assert to_probe([baseline]) == [baseline]
    assert to_probe([corner(10, rung=None)]) == []


@pytest.mark.parametrize(
    ("settings", "per_evaluation"),
    [
        ({"save_strategy": "steps", "save_steps": 50}, 1),
        ({"save_strategy": "steps", "save_steps": 75}, 2 / 3),
        ({"save_strategy": "steps", "save_steps": 0.1}, 10 / 3),
        ({"save_strategy": "no", "save_steps": 50}, 0),
    ],
)
def test_checkpoints_are_counted(settings: dict[str, Any], per_evaluation: float) -> None:
    settings = with_defaults({"max_steps": 150, "eval_steps": 50, **settings})
    assert len(evaluation_steps(settings)) == 3
    assert checkpoints_per_evaluation(settings) == pytest.approx(per_evaluation)


def test_processes_share_the_memory_of_a_cpu() -> None:
    one = device_memory(TrialResources(), 1)
    four = device_memory(TrialResources(workers_per_trial=2), 2)
    assert one is not None
    assert four is not None
    assert four.available == pytest.approx(one.available / 4, rel=0.2)


def test_a_share_of_a_gpu_is_a_share_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert device_memory(TrialResources(gpus_per_worker=1), 1) is None
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: "Card")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda number: (80 - 20 * number, 80))
    half = device_memory(TrialResources(gpus_per_worker=0.5), 2)
    assert half is not None
    assert (half.available, half.overhead) == (30, RESERVE)
    assert half.words == "a share of 0.5 of each of 2 x Card"


@pytest.mark.parametrize(
    ("each", "visible", "expected"),
    [
        (0, "0,1", ["0,1", "0,1"]),
        (0.5, None, ["0", "0", "1", "1"]),
        (1, "4,7", ["4", "7"]),
        (2, None, ["0,1", "2,3"]),
    ],
)
def test_processes_get_gpus_as_workers_do(
    monkeypatch: pytest.MonkeyPatch, each: float, visible: str | None, expected: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    resources = TrialResources(cpus_per_worker=2.5, gpus_per_worker=each)
    found = [environment(resources, number) for number in range(len(expected))]
    assert [process["CUDA_VISIBLE_DEVICES"] for process in found] == expected
    assert found[0]["OMP_NUM_THREADS"] == "2"


@pytest.mark.full
def test_the_default_search_takes_what_was_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with nothing beside it; prints plan and search side by side."""
    monkeypatch.chdir(tmp_path)
    plan = make_plan(parse_options([]), this_machine())
    assert plan.probe is not None
    assert plan.expected is not None
    search = Search(tmp_path, "tiny")
    code, output = search.run(timeout=900)
    assert code == 0, output
    seconds, likely = search.content["seconds"], plan.expected[LIKELY]
    planned = {"wall": plan.seconds(likely), "trials": likely.lane_seconds}
    errors = {name: value / seconds[name] - 1 for name, value in planned.items()}
    statuses = [trial["status"] for trial in search.content["trials"]]
    report = "\n".join(
        (
            *(f"{name}: {value:.0f} s planned, {seconds[name]:.0f} s real" for name, value in planned.items()),
            f"errors: {', '.join(f'{name} {error:+.0%}' for name, error in errors.items())}",
            f"completed: {likely.completed:.1f} planned, {statuses.count('completed')} real",
            f"probe: {plan.probe}",
            f"real seconds: {json.dumps(seconds)}",
        )
    )
    print(report)  # noqa: T201
    assert max(map(abs, errors.values())) < 0.3, report
