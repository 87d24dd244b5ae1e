"""What a run writes while it trains: its records, and at every evaluation pictures and the figures of each class."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from psalm.train.pictures import draw_curves, draw_predictions
from psalm.train.records import RunRecords, metric_history, read_records
from psalm.train.task_pictures import picture_of
from psalm.train.tasks import PER_CLASS_FILE, main_metric_names
from psalm.train.trainer import PsalmTrainer

ARTIFACTS = "artifacts"
"""Folder of pictures and of the resolved configuration, below the run's."""


class RecordsCallback(TrainerCallback):
    """Appends what the Trainer logs to the run's records; for rank 0."""

    def __init__(self, records: RunRecords) -> None:
        self.records = records

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Mapping[str, float], **_: Any
    ) -> None:
        """One record per log."""
        self.records.metrics(state.global_step, {name: float(value) for name, value in logs.items()})


class PicturesCallback(TrainerCallback):
    """Draws predictions and learning curves at every evaluation, so that a stopped run has them too; for rank 0.

    Beside them it writes ``PER_CLASS_FILE``, where a task has classes.
    """

    def __init__(self, records: RunRecords, trainer: PsalmTrainer) -> None:
        self.records = records
        self.trainer = trainer

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Replaces the pictures and the figures of classes; each file is recorded again, because its content is new.

        The seconds that all took are recorded, too.
        """
        start = time.perf_counter()
        folder = Path(self.records.folder) / ARTIFACTS
        folder.mkdir(exist_ok=True)
        drawn = []
        for task, answers in self.trainer.shown.items():
            name = f"predictions_{task}.png" if len(self.trainer.shown) > 1 else "predictions.png"
            data = self.trainer.evaluations[task].data
            draw_predictions([picture_of(asked, answer, data) for asked, answer in answers], folder / name)
            drawn.append(name)
        per_class = {task: classes for task, classes in self.trainer.per_class.items() if classes}
        if per_class:
            (folder / PER_CLASS_FILE).write_text(json.dumps(per_class, indent=1, ensure_ascii=False), encoding="utf-8")
            drawn.append(PER_CLASS_FILE)
        history = metric_history(read_records(self.records.folder))
        draw_curves(history, folder / "curves.png", main_metric_names(self.trainer.settings))
        for name in (*drawn, "curves.png"):
            self.records.artifact(folder / name)
        self.records.metrics(state.global_step, {"system/pictures_seconds": time.perf_counter() - start})
