"""A trial's settings, folder and workers."""

from pathlib import Path

import pytest

from tune.dependents import Dependents
from tune.resources import TrialResources
from tune.trial import TrialPlan


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
