"""Small real searches for tests: Ray, DeepSpeed, Optuna and MLflow on a model and data of toy's toy size."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import save_file

from psalm.data.builtin import ensure_builtin
from psalm.train.records import Record, read_records
from tune.options import DEFAULT_CONFIG

SEARCH = str(DEFAULT_CONFIG.parents[2] / "tune" / "search.py")
MARK = "PSALM_TEST_SEARCH"
"""Environment variable by which a test finds all processes of its searches."""


def small_search(folder: Path, tower_config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Writes a search of seconds as ``small.yaml`` into the folder, with what it needs; returns what the file says.

    ``changes`` replace entries of the file; those of ``arguments`` are added to it. None takes one out.
    """
    tower = folder / "tower"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps(tower_config))
    save_file({"nothing": torch.zeros(1)}, tower / "model.safetensors")
    content: dict[str, Any] = {
        "name": "small",
        "metric": "eval_pq",
        "num_samples": 2,
        "max_concurrent": 2,
        "space": {"learning_rate": {"loguniform": [1e-4, 1e-2]}, "mm_n_points": {"choice": [2, 4]}},
        "scheduler": {"name": "none"},
        "arguments": {
            "vision_tower": "tower",
            "panoptic_json_path": str(ensure_builtin(folder / "data", train_images=8, val_images=4)),
            "mm_hidden_dim": 16,
            "mm_n_heads": 2,
            "max_steps": 4,
            "eval_steps": 2,
            "logging_steps": 1,
            "per_device_train_batch_size": 2,
            "deepspeed": "zero2",
            "warmup_ratio": 0.0,
            "save_final_model": False,
        },
    }
    arguments = content["arguments"] | changes.get("arguments", {})
    content |= changes | {"arguments": {name: value for name, value in arguments.items() if value is not None}}
    content = {name: value for name, value in content.items() if value is not None}
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return content


@dataclass
class Search:
    """A search in a folder: its processes carry a mark, its records and MLflow's runs are at hand."""

    home: Path
    name: str = "small"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The search's own."""
        return self.home / "runs" / self.name

    @property
    def content(self) -> dict[str, Any]:
        """What search.json says."""
        content: dict[str, Any] = json.loads((self.folder / "search.json").read_text())
        return content

    @property
    def events(self) -> list[Record]:
        """The search's, in order."""
        return [record for record in read_records(self.folder) if record["kind"] == "event"]

    def trial_folder(self, number: int) -> Path:
        """A trial's own."""
        return self.folder / "trials" / f"{number:04d}"

    def trial_events(self, number: int) -> list[str]:
        """A trial's, in order, by name."""
        return [record["event"] for record in read_records(self.trial_folder(number)) if record["kind"] == "event"]

    def start(self, *options: str) -> subprocess.Popen[str]:
        """``python tune/search.py`` in the home folder; its output is a pipe."""
        return subprocess.Popen(
            [sys.executable, SEARCH, *options],
            cwd=self.home,
            env=os.environ | {MARK: str(self.home)} | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options: str, timeout: float = 500) -> tuple[int, str]:
        """The same, to its end: exit code and output."""
        process = self.start(*options)
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return process.returncode, output

    def processes(self) -> list[psutil.Process]:
        """All that still live of this search."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        """The training workers among them."""
        return [process for process in self.processes() if "RayTrainWorker" in " ".join(process.cmdline())]

    def left_after(self, seconds: float = 20) -> list[str]:
        """The command lines of processes that outlive the search by so long."""
        _, alive = psutil.wait_procs(self.processes(), timeout=seconds)
        return [" ".join(process.cmdline()) for process in alive]

    def runs(self) -> dict[str, Run]:
        """MLflow's runs of the search, by key: ``search``, and the trials' numbers. Each must be there once."""
        client = MlflowClient(f"sqlite:///{self.home / 'runs' / 'mlflow.db'}")
        experiment = client.get_experiment_by_name(self.name)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        keys = [run.data.tags["run_key"] for run in runs]
        assert len(set(keys)) == len(keys), f"several runs for one trial: {sorted(keys)}"
        return dict(zip(keys, runs, strict=True))
