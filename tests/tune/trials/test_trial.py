"""A trial's settings, folder and workers."""

from pathlib import Path

import pytest

from tune.space.dependents import Dependents
from tune.trials.resources import TrialResources
from tune.trials.trial import TrialPlan


def plan(folder: Path, resources: TrialResources | None = None) -> TrialPlan:
    return TrialPlan(folder, {"max_steps": 9, "seed": 3}, resources or TrialResources(), "eval_pq")


def test_a_trial_has_the_searchs_arguments_its_own_and_its_folder(tmp_path: Path) -> None:
    settings = plan(tmp_path).settings(7, {"mm_n_points": 2, "seed": 5})
    assert settings == {
        "max_steps": 9,
        "seed": 5,
        "mm_n_points": 2,
        "output_dir": str(tmp_path / "trials" / "0007"),
    }


def test_a_trial_has_only_its_own_of_what_follows_a_searched_argument(tmp_path: Path) -> None:
    towers = {"base": "/w/base.pkl", "large": "/w/large.pkl"}
    made = TrialPlan(
        tmp_path, {"max_steps": 9}, TrialResources(), "eval_pq", Dependents({"swin_type": {"vision_tower": towers}})
    )
    settings = made.settings(0, {"swin_type": "large"})
    assert settings.pop("output_dir")
    assert settings == {"max_steps": 9, "swin_type": "large", "vision_tower": "/w/large.pkl"}


@pytest.mark.parametrize(
    ("resources", "workers", "gpu", "backend"),
    [
        (TrialResources(1, 1, 0), {"CPU": 1}, False, None),
        (TrialResources(2, 2, 1), {"CPU": 2, "GPU": 1}, True, None),
        (TrialResources(2, 1, 0.5), {"CPU": 1, "GPU": 0.5}, True, "gloo"),
    ],
)
def test_workers_ask_for_what_they_need(
    tmp_path: Path, resources: TrialResources, workers: dict[str, float], gpu: bool, backend: str | None
) -> None:
    made = plan(tmp_path, resources)
    assert made.scaling.num_workers == resources.workers_per_trial
    assert made.scaling.resources_per_worker == workers
    assert made.scaling.use_gpu == gpu
    assert made.backend.backend == backend


def test_the_trials_own_process_holds_no_processor_that_its_workers_wait_for(tmp_path: Path) -> None:
    own = plan(tmp_path).own_resources.required_resources
    assert own.get("CPU", 0) == own.get("GPU", 0) == 0


def test_a_budget_is_shared_by_all_trials(tmp_path: Path) -> None:
    made = TrialPlan(tmp_path, {"max_steps": 9}, TrialResources(), "eval_pq", checkpoint_budget=1.5)
    first, second = made.settings(0, {}), made.settings(1, {})
    for settings in (first, second):
        assert settings.pop("output_dir").startswith(str(tmp_path / "trials"))
    assert first == second
    assert first == {
        "max_steps": 9,
        "save_total_limit": 1,
        "checkpoint_budget_gb": 1.5,
        "checkpoint_budget_dir": str(tmp_path / "trials"),
    }
    asked = TrialPlan(tmp_path, {"save_total_limit": 2}, TrialResources(), "eval_pq", checkpoint_budget=1.5)
    assert asked.settings(0, {})["save_total_limit"] == 2


def test_workers_get_the_folder_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "trials").symlink_to(tmp_path / "shared")
    assert plan(tmp_path / "search").settings(3, {})["output_dir"] == str(tmp_path / "shared" / "0003")
