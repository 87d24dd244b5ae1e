"""Searches in MLflow without any training: recorded by the project's own tracker, at made-up times."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from psalm.train.pictures import Picture, class_color, draw_predictions, tinted
from psalm.train.records import RunRecords
from tune.study.board import Fork
from tune.tracking import tracker as tracking
from tune.tracking.tracker import Tracker

START = 1_700_000_000.0
"""Unix time at which a search begins."""
SPACE = {
    "mm_hidden_dim": "one of 32, 64, 128",
    "mm_n_heads": "one of 2, 4, 8",
    "learning_rate": "0.0001 to 0.01 on a log scale",
    "swin_type": "one of base, large",
}
FULL = 150
"""Steps of a whole trial."""
CLASSES = ("sky", "grass", "road", "person <on foot>", "cat", "ball", "house")


@dataclass
class Made:
    """A trial to be made. Times are seconds after the search's start."""

    params: Mapping[str, Any]
    values: Mapping[int, float]
    begins: float
    seconds: float
    status: str = "completed"
    reason: str | None = None
    confirms: int | None = None
    fork: Fork | None = None
    changes: Mapping[str, float] = field(default_factory=dict)
    """Of the learning rate."""
    extra: Mapping[str, float] = field(default_factory=dict)
    objectives: Mapping[str, float] = field(default_factory=dict)


def quality(params: Mapping[str, Any]) -> float:
    """Of a setting, at full length: the learning rate matters most."""
    rate = math.log10(params["learning_rate"])
    return (
        76
        - 14 * (rate + 2.9) ** 2
        + {2: 0, 4: 0.5, 8: 1.5}[params["mm_n_heads"]]
        - 2 * (params["swin_type"] == "large")
    )


def curve(final: float, steps: Sequence[int]) -> dict[int, float]:
    """Values on the way to a final one."""
    return {step: final * (1 - math.exp(-3.2 * step / FULL)) / (1 - math.exp(-3.2)) for step in steps}


def twelve_trials() -> list[Made]:
    """Two at a time: a baseline, completed, stopped and failed ones."""
    rng = np.random.default_rng(4)
    found = []
    free = [0.0, 0.0]
    for number in range(12):
        params: dict[str, Any] = {
            "mm_hidden_dim": int(rng.choice([32, 64, 128])),
            "mm_n_heads": int(rng.choice([2, 4, 8])),
            "learning_rate": float(10 ** rng.uniform(-4, -2)),
            "swin_type": str(rng.choice(["base", "large"])),
        }
        if number == 0:
            params = {"mm_hidden_dim": 64, "mm_n_heads": 8, "learning_rate": 5e-4, "swin_type": "base"}
        final = quality(params) + float(rng.normal(0, 0.4))
        whole = number == 0 or final > 73
        steps = (50, 100, 150) if whole else (50,)
        lane = free.index(min(free))
        seconds = 300.0 * len(steps) / 3 + 10 * number
        made = Made(params, curve(final, steps), free[lane], seconds)
        if not whole:
            made.status, made.reason = "pruned", "stopped early at step 50"
        if number == 5:
            made.values, made.status, made.reason = {}, "failed", "loss is nan at step 12; <last> finite: 3.4"
        free[lane] += seconds
        found.append(made)
    return found


def _changes(made: Made) -> dict[str, Any]:
    return {"learning_rate_changes": dict(made.changes)} if made.changes else {}


def write_run(folder: Path, made: Made) -> None:
    """The records and artifacts of a trial."""
    with RunRecords(folder) as records:
        artifacts = folder / "artifacts"
        artifacts.mkdir()
        records.settings({**made.params, **_changes(made), "seed": 0, "max_steps": FULL})
        large = made.params.get("swin_type") == "large"
        size = 1_400_000 + 500_000 * large + 1000 * made.params.get("mm_hidden_dim", 0)
        records.tags({"parameters": size, "trainable_parameters": size // 2})
        for step in range(25, max(made.values, default=25) + 1, 25):
            seconds = 0.8 + 0.4 * large + made.params.get("mm_hidden_dim", 0) / 1000 + (2.0 if step == 25 else 0.0)
            records.metrics(
                step, {"loss": 100 / step, "system/step_seconds": seconds, "system/peak_memory_mb": size / 1e3}
            )
            if step in made.values:
                value = made.values[step]
                figures = {"eval_pq": value, "eval_sq": value + 8, "eval_pq_things": value - 9, **made.extra}
                records.metrics(step, {**figures, "system/eval_seconds": 3.0})
        if made.values:
            last = made.values[max(made.values)]
            figures_of = {
                name: {"pq": min(max(last + 9 * math.sin(3 * index + last), 0), 100)}
                for index, name in enumerate(CLASSES)
            }
            (artifacts / "per_class.json").write_text(json.dumps({"panoptic": figures_of}))
            draw_predictions(_pictures(last), artifacts / "predictions.png")
            for name in ("per_class.json", "predictions.png"):
                records.artifact(artifacts / name)


def _pictures(quality: float) -> list[Picture]:
    """Discs that are found the better the higher the quality is."""
    y, x = np.mgrid[:120, :160]
    pixels = np.stack([x + 60, y + 80, 0 * x + 120], axis=-1).astype(np.uint8)
    truth = ((x - 80) ** 2 + (y - 60) ** 2 < 40**2).astype(int)
    found = ((x - 80 - (80 - quality)) ** 2 + (y - 60) ** 2 < 40**2).astype(int)
    colors = {1: class_color(3)}
    panels = {"image": pixels, "truth": tinted(pixels, truth, colors), "prediction": tinted(pixels, found, colors)}
    return [Picture(panels, {"ball": class_color(3)})] * 3


def record_search(
    uri: str,
    folder: Path,
    name: str,
    trials: Sequence[Made],
    monkeypatch: pytest.MonkeyPatch,
    *,
    space: Mapping[str, str] = SPACE,
    gpus: float = 0,
    start: float = START,
    finished: bool = True,
    baseline: bool = True,
    objectives: Sequence[Mapping[str, str]] = (),
) -> Tracker:
    """Records a search in MLflow as ``tune.search`` does; one that is not finished has no ``search.json``."""
    now = start
    monkeypatch.setattr(tracking, "time", SimpleNamespace(time=lambda: now))
    monkeypatch.setattr(tracking, "source_files", lambda: {"psalm/a.py": "0" * 64})
    monkeypatch.setattr(tracking, "provenance", lambda files: {"source_fingerprint": "0123456789abcdef"})
    config = {
        "name": name,
        "metric": "eval_pq",
        "mode": "max",
        "num_samples": len(trials),
        "space": dict(space),
        "baselines": [dict(trials[0].params)] if baseline else [],
        "arguments": {"max_steps": FULL},
        "resources": {"workers_per_trial": 1, "cpus_per_worker": 2, "gpus_per_worker": gpus},
        **({"objectives": list(objectives)} if objectives else {}),
    }
    tracker = Tracker(uri, folder, name)
    tracker.check()
    tracker.start_search(config)
    ends = {number: start + made.begins + made.seconds for number, made in enumerate(trials)}
    for number, made in enumerate(trials):
        now = start + made.begins
        trial_folder = folder / "trials" / f"{number:04d}"
        setting = {**made.params, **_changes(made)} | ({} if made.confirms is None else {"seed": 100 + number})
        write_run(trial_folder, made)
        tracker.start_trial(number, trial_folder, setting, made.confirms, made.fork)
    for number, made in enumerate(trials):
        now = ends[number]
        status = {"completed": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "waiting": "KILLED"}
        if made.status in status:
            tracker.finish_trial(number, status[made.status], made.reason, made.status == "pruned")
    if finished:
        now = max(ends.values()) + 20
        tracker.finish_search("FINISHED", summary_of(tracker, trials, now - start))
    return tracker


def summary_of(tracker: Tracker, trials: Sequence[Made], wall: float) -> dict[str, Any]:
    """The part of ``search.json`` that is read."""
    of_trials = [
        {
            "run_id": tracker.run_id(number),
            "params": dict(made.params),
            "seconds": made.seconds,
            "steps": max(made.values, default=12),
            "objectives": dict(made.objectives),
        }
        for number, made in enumerate(trials)
    ]
    completed = [(made.values[FULL], number) for number, made in enumerate(trials) if FULL in made.values]
    total = sum(made.seconds for made in trials)
    costs = {"training": 0.7, "evaluation": 0.12, "checkpointing": 0.03, "startup": 0.15}
    best = (
        {"run_id": tracker.run_id(max(completed)[1]), "params": {}, "value": max(completed)[0]} if completed else None
    )
    return {
        "trials": of_trials,
        "confirmations": [],
        "best": best,
        "seconds": {name: share * total for name, share in costs.items()}
        | {
            "wall": wall,
            "concurrency": math.ceil(total / wall),
            "trials": total,
            "waiting": math.ceil(total / wall) * wall - total,
            "overhead_per_trial": (math.ceil(total / wall) * wall - 0.82 * total) / len(trials),
        },
    }
