"""What a search has asked of its tracker: one small file, replaced as a whole, that outlives every process."""

import dataclasses
import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psalm.train.learning_rates import LEARNING_RATE_CHANGES

FILE_NAME = "tracking.json"
_SHORT_NAMES = {"mm_hidden_dim": "d", "mm_n_heads": "h", "mm_n_points": "p", "learning_rate": "lr"}


class TrackingError(RuntimeError):
    """MLflow cannot be used as asked; one line: the URI, what is wrong, what to do."""


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock on a file or folder; it ends with the process. Raises BlockingIOError if held and not ``wait``."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


@dataclass
class Run:
    """One run: what was asked for it, and how far MLflow knows of it."""

    name: str
    started: float  # Unix time, seconds
    forked_from: str | None = None  # the key of the run that it is forked from
    folder: str | None = None  # of its records; relative to the search's folder where it lies in it
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)  # of a search: artifact name -> JSON
    metrics: dict[str, float] = field(default_factory=dict)  # final values of a search
    status: str | None = None  # None: running
    final_tags: dict[str, str] = field(default_factory=dict)
    ended: float | None = None

    run_id: str | None = None
    described: bool = False  # params and files have arrived
    closed_at: int | None = None  # bytes of records that had arrived when the final status was set
    stale_tags: list[str] | None = None  # running again: tags of the earlier end that are to go

    def close(self, status: str, tags: dict[str, str], now: float) -> None:
        """It has ended."""
        self.status, self.final_tags, self.ended, self.closed_at = status, tags, now, None

    def add_final_tags(self, tags: dict[str, str]) -> None:
        """Something more is known of it, now that it has ended."""
        if not tags.items() <= self.final_tags.items():
            self.final_tags, self.closed_at = self.final_tags | tags, None

    def reopen(self) -> None:
        """It runs again, if it had ended."""
        if self.status is not None:
            self.stale_tags = [*(self.stale_tags or ()), *self.final_tags]
            self.status, self.final_tags, self.ended, self.closed_at = None, {}, None, None


class Ledger:
    """All runs of a search, the parent under ``"search"`` and the trials under their numbers.

    Raises:
        ValueError: the folder's ledger is damaged.
    """

    def __init__(self, folder: Path, uri: str, name: str) -> None:
        self.folder = folder
        self.uri = uri  # without password
        self.name = name
        self.key = uuid.uuid4().hex  # marks this search's runs in MLflow
        self.sources: dict[str, dict[str, str]] = {}  # fingerprint -> hash of each file, as runs were started with
        self.runs: dict[str, Run] = {}
        self._lock = ExitStack()

    @classmethod
    def load(cls, folder: Path) -> "Ledger | None":
        """The ledger of a search; None where it has none yet. Raises ValueError if it is damaged."""
        path = folder / FILE_NAME
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text())
            ledger = cls(folder, content["uri"], content["name"])
            ledger.key, ledger.sources = content["key"], content["sources"]
            ledger.runs = {key: Run(**run) for key, run in content["runs"].items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not what a search's tracker writes: {error}") from error
        return ledger

    def save(self) -> None:
        """Replaces the file: at every moment it is the old or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        runs = {key: dataclasses.asdict(run) for key, run in self.runs.items()}
        content = {"uri": self.uri, "name": self.name, "key": self.key, "sources": self.sources, "runs": runs}
        path = self.folder / FILE_NAME
        draft = path.with_suffix(".tmp")
        with draft.open("w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def forget_store(self, uri: str) -> None:
        """Goes on with another store, which knows nothing of what the earlier one was told."""
        self.uri = uri
        for run in self.runs.values():
            run.run_id, run.described, run.closed_at, run.stale_tags = None, False, None, None

    def hold(self) -> None:
        """Keeps other processes from bringing this search's records, until ``release`` or the end of the process.

        Raises:
            TrackingError: another one does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / ".tracking.lock"
        lock.touch()
        try:
            self._lock.enter_context(locked(lock, wait=False))
        except BlockingIOError as error:
            raise TrackingError(f"the search in {self.folder} runs: its own process brings its records") from error

    def release(self) -> None:
        """Lets other processes bring this search's records."""
        self._lock.close()


def run_name(number: int, params: Mapping[str, Any]) -> str:
    """How a trial is called in MLflow, e.g. ``0007 d256 h8 p4 lr6.0e-5 base``."""
    parts = [f"{number:04d}"]
    for name in [n for n in _SHORT_NAMES if n in params] + [n for n in params if n not in _SHORT_NAMES]:
        value = params[name]
        if name == LEARNING_RATE_CHANGES:
            parts += [f"lr{_short(rate)}@{step}" for step, rate in value.items()]
            continue
        label = "" if isinstance(value, str) else f"{name}="
        if isinstance(value, str):
            value = value.rpartition("/")[2] or value  # of a path, what tells it from others
        if isinstance(value, float):
            value = _short(value)
        parts.append(f"{_SHORT_NAMES.get(name, label)}{value}")
    return " ".join(parts)[:200]


def _short(number: float) -> str:
    mantissa, _, exponent = f"{number:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
