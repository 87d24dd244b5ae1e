"""A run's own records: what was asked, what happened, step by step.

One JSON object a line in ``records.jsonl``, numbered from 0 without gaps, only ever appended. They are the truth about
a run; trackers are fed from them, at any time later and as often as needed. Kinds and their fields:

======== ==================================================================================================
settings ``values``: every resolved argument
tags     ``values``: what identifies the run (fingerprints, versions, host, seed, sizes)
metrics  ``step`` (global step), ``values`` {name: finite number}, ``not_finite``: names left out, if any
event    ``event``: started | resumed | completed | stopped | failed | checkpoint_rejected | checkpoint_skipped |
         model_skipped; with ``step`` (resumed: the run goes on after it; completed and stopped: its last; skipped: of
         what found no room on the disk), ``reason`` (failed, rejected, skipped), ``bad_images`` (completed and stopped:
         images that were left out). A start supersedes all metrics written
         before it, a resumption those of later steps. A run that was stopped has ended before its full length, because
         a callback wanted it so; it may be resumed where there is a checkpoint
artifact ``path``: file relative to the run's folder; ``folder``: where it belongs among a run's artifacts
======== ==================================================================================================
"""

import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TextIO

FILE_NAME = "records.jsonl"
LOCK_NAME = "records.lock"
"""Beside the records: locked by their writer, who says in it who that is. It stays; the lock ends with the process."""

_SECONDS_BETWEEN_TRIES = 0.1

Record = dict[str, Any]


class RecordsInUse(BlockingIOError):  # noqa: N818
    """Another writer has the records; one line: the folder, and who writes there since when."""


class RunRecords:
    """Appends records to ``folder/records.jsonl``; one writer at a time (rank 0 of the run), until ``close``.

    A line is written by a single ``write`` and flushed to disk before the call returns. One for which there is no room
    leaves nothing behind and raises OSError, which names the file. What an interrupted writer left behind - a last line
    without its end - is cut off when the file is opened again, and the numbering goes on.

    Args:
        folder: the run's; it is made where it is missing.
        wait_seconds: how long to wait for another writer, such as a process that has yet to notice that it is alone.

    Raises:
        RecordsInUse: another writer still has them.
        ValueError: see ``read_records``.
    """

    def __init__(self, folder: str | os.PathLike[str], wait_seconds: float = 0.0) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.folder, wait_seconds)
        self.path = self.folder / FILE_NAME
        self._next = 0
        try:
            if self.path.exists():
                _cut_torn_line(self.path)
                for record in read_records(self.folder):
                    self._next = record["n"] + 1
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets another writer have the records; nothing may be appended afterwards."""
        if not self._lock.closed:
            # A child process that inherited the file would otherwise keep the lock.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        try:
            _append_line(self.path, line.encode())
        except OSError as error:
            reason = f"{error.strerror}; nothing of the record is there, so make room and resume"
            raise OSError(error.errno, reason, str(self.path)) from error
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


def _lock(folder: Path, wait_seconds: float) -> TextIO:
    """The lock's file, locked; it says who writes."""
    file = (folder / LOCK_NAME).open("a+", encoding="utf-8")
    deadline = time.monotonic() + wait_seconds
    while not _try_lock(file):
        if time.monotonic() >= deadline:
            file.seek(0)
            writer = file.read() or "another process"
            file.close()
            raise RecordsInUse(
                f"{folder} is in use: its records are written by {writer}; "
                "wait until that has ended, or give another folder"
            )
        time.sleep(_SECONDS_BETWEEN_TRIES)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S %z')}")
    file.flush()
    return file


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _append_line(path: Path, line: bytes) -> None:
    """Appends a whole line and brings it to the disk; where that fails, the file is as it was."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        end = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(line):  # a disk that fills takes a part, and says so at the next try
                written += os.write(descriptor, line[written:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def _cut_torn_line(path: Path) -> None:
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("rb+") as file:
            file.truncate(end)
            os.fsync(file.fileno())
