"""An exported run needs neither MLflow nor Ray, and gives what was recorded."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import save_file

from psalm.data.builtin import ensure_builtin
from psalm.tools import compare_records
from psalm.train.arguments import with_defaults
from psalm.train.comparison import Tolerance
from tune.errors import SearchError
from tune.reproduce import REFUSED, SAME, main
from tune.reproduction.export import export
from tune.reproduction.recorded import Record
from tune.tracking.tracker import Tracker

TOLERANCE = Tolerance(0.01, 4.0, "the default", "three seeds")
RECORD = Record(
    run_id="0123",
    name="0007 h4",
    experiment_id="1",
    status="FINISHED",
    seconds=9.0,
    tags={
        "device": "cpu",
        "processor": "x, AVX2",
        "omp_num_threads": "2",
        "workers_per_trial": "2",
        "version.python": "3.11.7",
        "version.torch": "2.13.0+cpu",
        "version.mlflow": "3.17.0",
        "data_fingerprint_val": "abc",
        "weights_fingerprint_vision_tower": "def",
        "source_fingerprint": "456",
        "git_commit": "c0ffee",
        "git_dirty": "false",
        "kind": "trial",
    },
    settings=with_defaults({})
    | {"vision_tower": "/data/swin.pkl", "model_name_or_path": "builtin", "output_dir": "/first", "deepspeed": None},
    sources={"psalm/a.py": "0" * 64},
    history={
        "loss": [(1, 1 / 3), (2, float("nan"))],
        "eval_pq": [(2, 100 / 7)],
        "system/step_seconds": [(1, 2.0)],
    },
    contradictions=(),
)


def exported(folder: Path, **changes: Any) -> Path:
    """The folder that a record is written to which differs from ``RECORD`` in these."""
    export(dataclasses.replace(RECORD, **changes), folder / "out", TOLERANCE)
    return folder / "out"


def with_tags(**changes: str) -> dict[str, str]:
    return {**RECORD.tags, **changes}


def test_the_files(tmp_path: Path) -> None:
    out = exported(tmp_path)
    assert {path.name for path in out.iterdir()} == {
        "train.sh",
        "config.yaml",
        "constraints.txt",
        "fingerprints.json",
        "expected.json",
        "README.md",
    }
    assert yaml.safe_load((out / "config.yaml").read_text()) == {**RECORD.settings, "output_dir": "run"}
    assert (out / "constraints.txt").read_text() == "mlflow==3.17.0\ntorch==2.13.0\n"
    assert json.loads((out / "fingerprints.json").read_text()) == {
        "data": {"data_fingerprint_val": "abc"},
        "weights": {"weights_fingerprint_vision_tower": "def"},
        "sources": {
            "source_fingerprint": "456",
            "git_commit": "c0ffee",
            "git_dirty": "false",
            "sha256": {"psalm/a.py": "0" * 64},
        },
    }
    expected = json.loads((out / "expected.json").read_text())
    assert expected["metrics"] == {"loss": [[1, 1 / 3]], "eval_pq": [[2, 100 / 7]]}
    assert expected["main_metrics"] == ["eval_pq"]
    assert "kind" not in expected["tags"]


@pytest.mark.parametrize(
    ("workers", "deepspeed", "launcher"),
    [
        ("1", None, "python -m"),
        ("2", None, "deepspeed --num_accelerators 2 --module"),
        ("1", {"zero_optimization": {"stage": 2}}, "deepspeed --num_accelerators 1 --module"),
    ],
)
def test_the_command(tmp_path: Path, workers: str, deepspeed: Any, launcher: str) -> None:
    out = exported(
        tmp_path, tags=with_tags(workers_per_trial=workers), settings={**RECORD.settings, "deepspeed": deepspeed}
    )
    lines = (out / "train.sh").read_text().splitlines()
    assert lines[-1] == f'exec ${{LAUNCH:-{launcher}}} psalm.train.train --config config.yaml "$@"'
    assert "export OMP_NUM_THREADS=2" in lines


def test_the_readme_says_what_to_adapt_and_what_to_install(tmp_path: Path) -> None:
    text = (exported(tmp_path) / "README.md").read_text()
    assert "- `vision_tower: /data/swin.pkl`" in text
    assert "model_name_or_path" not in text, "a word needs no adapting"
    assert "at commit `c0ffee`" in text
    (install,) = [line for line in text.splitlines() if "pip install -c" in line]
    names = install.split()
    assert {"torch", "transformers", "deepspeed", "pyyaml"} <= set(names)
    assert not {"ray", "mlflow", "optuna", "pytest"} & set(names)


def test_the_readme_says_what_cannot_be_the_same(tmp_path: Path) -> None:
    tags = {"early_stopped": "true", "changed.per_device_train_batch_size": "4 -> 2"}
    text = (exported(tmp_path, tags=with_tags(**tags)) / "README.md").read_text()
    assert "ended after step 2; this one goes on to its full length" in text
    assert "`per_device_train_batch_size` 4 -> 2" in text
    assert json.loads((tmp_path / "out" / "expected.json").read_text())["stopped_at"] == 2


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    exported(tmp_path)
    with pytest.raises(SearchError, match="the folder is not empty; give a new one"):
        exported(tmp_path)
    with pytest.raises(SearchError, match="Not a directory; give a folder that can be written"):
        export(RECORD, tmp_path / "out" / "train.sh" / "below", TOLERANCE)


def test_an_exported_run_gives_the_recorded_values(tmp_path: Path, tiny_tower: dict[str, Any], capsys: Any) -> None:
    """Trained and recorded, exported by the real command, run by its own script: every bit is the same."""
    tower = tmp_path / "tower"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps(tiny_tower))
    save_file({"nothing": torch.zeros(1)}, tower / "model.safetensors")
    settings = {
        "vision_tower": str(tower),
        "panoptic_json_path": str(ensure_builtin(tmp_path / "data", train_images=6, val_images=3)),
        "mm_hidden_dim": 16,
        "mm_n_heads": 2,
        "mm_n_points": 2,
        "max_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "save_final_model": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(settings))
    search = tmp_path / "search"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker(uri, search, "exported")
    tracker.start_search({"metric": "eval_pq", "resources": {"workers_per_trial": 1, "cpus_per_worker": 1}})
    tracker.start_trial(0, search / "0", {})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    train = [sys.executable, "-m", "psalm.train.train", "--config", str(tmp_path / "first.yaml")]
    subprocess.run([*train, "--output_dir", str(search / "0")], env=environment, check=True, timeout=100)
    tracker.finish_trial(0, "FINISHED")
    tracker.finish_search("FINISHED", {})
    out = tmp_path / "out"
    command = [str(tracker.run_id(0)), "--tracking-uri", uri, "--export", str(out)]
    assert main(command) == SAME
    assert main(command) == REFUSED, "it is there already"

    MlflowClient(uri).delete_run(str(tracker.run_id(0)))
    environment["OMP_NUM_THREADS"] = "2"  # the script has its own
    subprocess.run(["sh", str(out / "train.sh")], env=environment, check=True, timeout=100)
    capsys.readouterr()
    assert compare_records.main([str(out / "run"), str(out / "expected.json")]) == SAME
    assert "equal bit for bit" in capsys.readouterr().out
