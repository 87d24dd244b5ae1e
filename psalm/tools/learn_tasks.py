"""Does every task learn? Trains each at toy size on the built-in data and scores it before and after.

    python -m psalm.tools.learn_tasks [--tasks region cross_image] [--output_dir runs/learn]

The settings are those of the demonstration: what fits into about three minutes on two CPU cores. Tasks that point at
regions get larger pictures, because a region's feature is read from the image's tokens, and the toy size has four.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psalm.constants import CROSS_IMAGE, REFERRING, REGION, TASKS
from psalm.train.arguments import parse_settings
from psalm.train.tasks import METRICS, metric_name
from psalm.train.train import build_trainer, train

COMMON: dict[str, Any] = {
    "mm_projector_type": "deformable",
    "mm_hidden_dim": 64,
    "mm_n_heads": 8,
    "mm_n_points": 4,
    "learning_rate": 1e-3,
    "warmup_ratio": 0.1,
    "max_steps": 150,
    "eval_strategy": "no",
    "save_strategy": "no",
    "save_final_model": False,
}
OF_TASK: dict[str, dict[str, Any]] = {
    REFERRING: {"per_device_train_batch_size": 8, "max_steps": 400},
    REGION: {"image_size": 256, "max_steps": 200},
    CROSS_IMAGE: {"image_size": 256, "max_steps": 250},
}


def learn(task: str, folder: Path) -> dict[str, Any]:
    """Metrics of a task before and after its training, and how long that took."""
    settings = {**COMMON, "seg_task": task, **OF_TASK.get(task, {}), "output_dir": str(folder / task)}
    untrained = build_trainer(parse_settings(settings)).evaluate()
    started = time.monotonic()
    trained = train(parse_settings(settings))
    names = [name for name in (metric_name(task, metric, _of(task)) for metric in METRICS[task]) if name in trained]
    return {
        "seconds": time.monotonic() - started,
        "metrics": {name: {"untrained": untrained[name], "trained": trained[name]} for name in names},
    }


def _of(task: str) -> Mapping[str, Any]:
    return {"seg_task": task, "cross_image_seg_task": False, "refer_expressions": "each"}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row per task with its main metric; the file has all of them."""
    lines = ["| task | metric | untrained | trained | seconds |", "|---|---|---|---|---|"]
    for task, result in results.items():
        name, figures = next(iter(result["metrics"].items()))
        shown = f"{figures['untrained']:.1f} | {figures['trained']:.1f}"
        lines.append(f"| {task} | `{name}` | {shown} | {result['seconds']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train every task at toy size; print its metrics before and after.")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="Which tasks.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/learn"), help="Where the runs are kept.")
    options = parser.parse_args()
    results = {task: learn(task, options.output_dir) for task in options.tasks}
    (options.output_dir / "learn.json").write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    main()
