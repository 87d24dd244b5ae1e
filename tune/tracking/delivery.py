"""One run's records on their way to MLflow: in order, and repeatable from any point."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

from psalm.train.records import FILE_NAME, Record, read_records
from tune.tracking.connection import (
    METRICS_PER_CALL,
    PARAM_LENGTH,
    STORE_ERRORS,
    add_params,
    as_text,
    milliseconds,
    set_tags,
)

DELIVERED = "delivered_records"  # tag: the number of the last record that has arrived
SETTINGS_FILE = "settings.json"  # artifact: every resolved argument, as JSON

logger = logging.getLogger(__name__)


class Delivery:
    """Brings the records of one run's folder to its MLflow run.

    The tag ``delivered_records`` counts what has arrived; it is written after what it counts, so a delivery that was
    cut short is repeated from there. Repeating adds nothing: a metric goes with the time of its record, and stores keep
    one row per (name, step, time, value); artifacts and tags are replaced; parameters, which MLflow never changes, are
    only added - where a resumed run has other settings, the tag ``changed.<name>`` says so, and the settings' file has
    them.

    A resumed run goes over some steps again. Points cannot be taken back from MLflow: the first one of a step stands.
    """

    def __init__(self, client: MlflowClient, run_id: str, folder: Path) -> None:
        self.run_id = run_id
        self._client = client
        self._folder = folder
        self._size = -1  # bytes of the records when all of them had arrived
        self._attached = False

    @property
    def size(self) -> int:
        """Bytes of records that have arrived."""
        return self._size

    def deliver(self) -> None:
        """Delivers what was recorded since the last call. Raises STORE_ERRORS; the next call then goes on.

        Raises:
            ValueError: the records are damaged.
        """
        path = self._folder / FILE_NAME
        size = path.stat().st_size if path.exists() else 0
        if self._attached and size == self._size:
            return
        try:
            if not self._attached:
                self._attach()
            for record in read_records(self._folder, after=self._arrived):
                self._collect(record)
                if len(self._metrics) >= METRICS_PER_CALL:
                    self._send()
            self._send()
        except (*STORE_ERRORS, ValueError):
            self._attached = False  # what has arrived is the store's to say
            raise
        self._size = size

    def _attach(self) -> None:
        data = self._client.get_run(self.run_id).data
        self._arrived = int(data.tags.get(DELIVERED, -1))
        self._params: dict[str, str] = dict(data.params)
        self._last_step: dict[str, int] = {}
        self._clear()
        self._seen = self._arrived
        for record in read_records(self._folder):
            if record["n"] > self._arrived:
                break
            if record["kind"] == "metrics":
                self._new_points(record)
        self._clear()
        self._attached = True

    def _clear(self) -> None:
        self._metrics: list[Metric] = []
        self._tags: dict[str, Any] = {}
        self._new_params: dict[str, Any] = {}
        self._settings: dict[str, Any] | None = None
        self._artifacts: dict[tuple[str, str], None] = {}

    def _collect(self, record: Record) -> None:
        kind = record["kind"]
        if kind == "metrics":
            self._metrics += self._new_points(record)
        elif kind == "settings":
            self._add_settings(record["values"])
        elif kind == "tags":
            self._tags |= record["values"]
        elif kind == "artifact":
            self._artifacts[record["path"], record["folder"]] = None
        elif kind == "event" and record["event"] == "resumed":
            self._tags["resumed_after_step"] = record["step"]
        self._seen = record["n"]

    def _new_points(self, record: Record) -> list[Metric]:
        """Its points that no earlier record has; what was not finite is NaN, which MLflow can hold."""
        step, when = record["step"], milliseconds(record["time"])
        values = dict(record["values"]) | dict.fromkeys(record.get("not_finite", ()), math.nan)
        new = {name: value for name, value in values.items() if step > self._last_step.get(name, -1)}
        self._last_step |= dict.fromkeys(new, step)
        return [Metric(name, value, when, step) for name, value in new.items()]

    def _add_settings(self, values: Mapping[str, Any]) -> None:
        self._settings = dict(values)
        for name, value in values.items():
            text = as_text(value, PARAM_LENGTH)
            known = self._params.setdefault(name, text)
            if known == text:
                self._new_params[name] = value
            else:
                self._tags[f"changed.{name}"] = f"{known} -> {text}"

    def _send(self) -> None:
        """What counts a record as arrived is sent last."""
        if self._seen == self._arrived:
            return
        if self._settings is not None:
            self._client.log_dict(self.run_id, self._settings, SETTINGS_FILE)
        add_params(self._client, self.run_id, self._new_params)
        for path, folder in self._artifacts:
            if (self._folder / path).is_file():
                self._client.log_artifact(self.run_id, str(self._folder / path), folder or None)
            else:
                logger.warning("%s was recorded but is gone: not delivered to MLflow", self._folder / path)
        for start in range(0, len(self._metrics), METRICS_PER_CALL):
            self._client.log_batch(self.run_id, metrics=self._metrics[start : start + METRICS_PER_CALL])
        set_tags(self._client, self.run_id, self._tags | {DELIVERED: self._seen})
        self._arrived = self._seen
        self._clear()
