"""The search on published weights, on small files in their formats: each trial loads the tower that belongs to it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from psalm.data.builtin import ensure_builtin
from psalm.tools.make_random_weights import write_random_weights
from tune.options import DEFAULT_CONFIG

pytestmark = pytest.mark.full

SCRIPTS = DEFAULT_CONFIG.parents[2] / "tune"
SHORT = {
    "max_steps": 4,
    "eval_steps": 2,
    "logging_steps": 1,
    "image_size": 128,
    "num_points": 256,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
}


@dataclass(frozen=True)
class Finished:
    """A search that has been run below ``folder``."""

    folder: Path
    code: int
    output: str

    @property
    def trials(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "runs" / "phi15_swin" / "search.json").read_text())["trials"]

    @property
    def runs(self) -> list[Run]:
        """The trials' runs in MLflow."""
        client = MlflowClient(f"sqlite:///{self.folder / 'runs' / 'mlflow.db'}")
        return [client.get_run(trial["run_id"]) for trial in self.trials]


def run(folder: Path, script: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *options],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The two baselines, one for each tower, and a proposal."""
    folder = tmp_path_factory.mktemp("published")
    write_random_weights(folder / "small", "small")
    done = run(
        folder,
        "search.py",
        *("--config", str(DEFAULT_CONFIG.with_name("phi15_swin.yaml"))),
        *("--resources", "gpus_per_worker=0", "cpus_per_worker=1", "--num-samples", "3"),
        *(word for name, value in SHORT.items() for word in ("--set", f"{name}={value}")),
        PHI_1_5="small/phi",
        MASK2FORMER_SWIN_BASE="small/swin_base.pkl",
        MASK2FORMER_SWIN_LARGE=str(folder / "small" / "swin_large.pkl"),
        COCO=str(ensure_builtin(folder / "data", train_images=8, val_images=4)),
    )
    return Finished(folder, done.returncode, done.stdout)


def test_every_trial_completes_and_both_towers_are_tried(search: Finished) -> None:
    assert search.code == 0, search.output
    assert [trial["status"] for trial in search.trials] == ["completed"] * 3
    assert [trial["params"]["swin_type"] for trial in search.trials[:2]] == ["base", "large"]


def test_the_output_and_the_summary_show_which_weights_belong_to_which_tower(search: Finished) -> None:
    base, large = (search.folder / "small" / f"swin_{swin_type}.pkl" for swin_type in ("base", "large"))
    assert f"vision_tower: {base} for swin_type = base; {large} for swin_type = large" in search.output
    assert search.trials[1]["dependent"] == {"vision_tower": str(large)}


def test_mlflow_shows_which_weights_each_trial_had(search: Finished) -> None:
    fingerprints = set()
    for run_ in search.runs:
        swin_type = run_.data.params["swin_type"]
        assert run_.data.params["vision_tower"] == str(search.folder / "small" / f"swin_{swin_type}.pkl")
        fingerprints.add((swin_type, run_.data.tags["weights_fingerprint_vision_tower"]))
        assert run_.data.params["model_name_or_path"] == str(search.folder / "small" / "phi")
    assert {swin_type for swin_type, _ in fingerprints} == {"base", "large"}
    assert len({fingerprint for _, fingerprint in fingerprints}) == len(fingerprints) == 2


def test_a_trial_with_the_large_tower_is_reproduced_from_its_record_alone(search: Finished) -> None:
    done = run(search.folder, "reproduce.py", search.trials[1]["run_id"])
    assert done.returncode == 0, done.stdout
    assert "identical" in done.stdout
