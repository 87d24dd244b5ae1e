"""A run's own records: what was asked, what happened, step by step.

One JSON object a line in ``records.jsonl``, numbered from 0 without gaps, only ever appended. They are the truth about
a run; trackers are fed from them, at any time later and as often as needed. Kinds and their fields:

======== ==================================================================================================
settings ``values``: every resolved argument
tags     ``values``: what identifies the run (fingerprints, versions, host, seed, sizes)
metrics  ``step`` (global step), ``values`` {name: finite number}, ``not_finite``: names left out, if any
event    ``event``: started | resumed | completed | failed; with ``step`` (resumed: the run goes on after it),
         ``reason`` (failed), ``bad_images`` (completed: images that were left out). A start supersedes all metrics
         written before it, a resumption those of later steps
artifact ``path``: file relative to the run's folder; ``folder``: where it belongs among a run's artifacts
======== ==================================================================================================
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

FILE_NAME = "records.jsonl"

Record = dict[str, Any]


class RunRecords:
    """Appends records to ``folder/records.jsonl``; one writer at a time (rank 0 of the run).

    A line is written by a single ``write`` and flushed to disk before the call returns. What an interrupted writer left
    behind - a last line without its end - is cut off when the file is opened again, and the numbering goes on.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / FILE_NAME
        self._next = 0
        if self.path.exists():
            _cut_torn_line(self.path)
            for record in read_records(self.folder):
                self._next = record["n"] + 1

    def settings(self, values: Mapping[str, Any]) -> None:
        """Every resolved argument of the run."""
        self._append("settings", values=dict(values))

    def tags(self, values: Mapping[str, Any]) -> None:
        """What identifies the run; a later tag of the same name replaces the earlier one."""
        self._append("tags", values=dict(values))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics at a global step. JSON has no NaN: names of values that are not finite go to ``not_finite``."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        missing = sorted(values.keys() - finite.keys())
        self._append("metrics", step=step, values=finite, **({"not_finite": missing} if missing else {}))

    def event(self, event: str, **details: Any) -> None:
        """Something that happened to the run as a whole."""
        self._append("event", event=event, **details)

    def artifact(self, path: str | os.PathLike[str], folder: str = "") -> None:
        """A file below the run's folder that belongs to its artifacts."""
        self._append("artifact", path=Path(path).relative_to(self.folder).as_posix(), folder=folder)

    def _append(self, kind: str, **fields: Any) -> None:
        record = {"n": self._next, "time": time.time(), "kind": kind, **fields}
        line = json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._next += 1


def read_records(folder: str | os.PathLike[str], after: int = -1) -> Iterator[Record]:
    """The records numbered above ``after``, oldest first; a line that is still being written is not there yet.

    Raises:
        ValueError: a complete line is no record, or a number is out of order: the file was changed by someone else.
    """
    path = Path(folder) / FILE_NAME
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                order = record["n"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number + 1} is not a record: {error}") from error
            if order != number:
                raise ValueError(f"{path}, line {number + 1} has number {order} instead of {number}")
            if order > after:
                yield record


def metric_history(records: Iterable[Record]) -> dict[str, dict[int, float]]:
    """``{name: {step: value}}`` in order of steps, without what was superseded.

    A run that resumed from the checkpoint of step s runs the steps after s again: values recorded for them before are
    dropped. One that started again in the same folder begins anew.
    """
    history: dict[str, dict[int, float]] = {}
    for record in records:
        if record["kind"] == "metrics":
            for name, value in record["values"].items():
                history.setdefault(name, {})[record["step"]] = value
        elif record["kind"] == "event" and record["event"] in ("started", "resumed"):
            kept = record["step"] if record["event"] == "resumed" else -1
            for steps in history.values():
                for step in [step for step in steps if step > kept]:
                    del steps[step]
    return {name: dict(sorted(steps.items())) for name, steps in history.items() if steps}


def _cut_torn_line(path: Path) -> None:
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("rb+") as file:
            file.truncate(end)
            os.fsync(file.fileno())
