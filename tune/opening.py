"""A search before it runs: a new one in a folder of its own, or one that goes on in its folder."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psalm.train.records import RunRecords, read_records
from tune.config import SearchConfig, check_data, load_config
from tune.errors import SearchError
from tune.options import LOCAL, Options, new_folder
from tune.study.warm_start import Earlier, read_earlier
from tune.tracking.connection import connect, public_uri
from tune.tracking.ledger import Ledger
from tune.tracking.tracker import Tracker
from tune.trials.limits import Limits
from tune.trials.resources import Node
from tune.trials.room import room_for
from tune.trials.storage import TrialStorage, is_uri, open_storage

CONFIG_COPY = "search.yaml"
"""In a search's folder: the file that describes it, as it was when the search began."""


@dataclass(frozen=True)
class Opened:
    """A checked search that nobody else runs."""

    config: SearchConfig
    folder: Path
    records: RunRecords
    tracker: Tracker
    storage: TrialStorage | None
    limits: Limits
    earlier: tuple[Earlier, ...] = ()
    """Trials of other searches, for the sampler of one that begins."""
    notes: tuple[str, ...] = ()
    """What the user should know of them."""


def open_search(options: Options, machine: Node) -> Opened:
    """Check everything that can be checked before Ray starts, and take the search's folder.

    Raises:
        SettingError: something that was asked for is wrong.
        TrackingError: MLflow cannot be reached.
        RecordsInUse: another process runs the search.
    """
    return _begin(options, machine) if options.resume is None else _resume(options, options.resume, machine)


def check_new(options: Options, machine: Node) -> tuple[SearchConfig, Limits, dict[str, Any]]:
    """A new search, checked as far as that needs no folder of its own; and what of it the command line asks for.

    Raises:
        SettingError: something that was asked for is wrong.
    """
    asked: dict[str, Any] = {
        "assignments": list(options.assignments),
        "num_samples": options.num_samples,
        "max_concurrent": options.max_concurrent,
        "seed": options.seed,
        "metric": options.metric,
        "resources": list(options.resources),
        "confirm": options.confirm,
    }
    config = load_config(options.config, **asked)
    if options.warm_start and config.objectives:
        raise SearchError(
            f"--warm-start {' '.join(options.warm_start)}: values of several objectives are not taken from earlier "
            "searches, as costs were measured elsewhere and for other lengths; leave it out, or search for one metric"
        )
    return config, _check(config, options, machine), asked


def _begin(options: Options, machine: Node) -> Opened:
    config, limits, asked = check_new(options, machine)
    folder = new_folder(options.output_dir, config.name)
    tracker = Tracker(tracking_uri(options), folder, config.name)
    try:
        tracker.check()
        storage = _storage(options.storage_path, folder, options.checkpoint_budget, new=True)
        _check_room(config, options, folder, machine)
        earlier, notes = read_earlier(connect(tracker.uri), options.warm_start, config)
    except BaseException:
        if (folder / "trials").is_symlink():
            (folder / "trials").resolve().rmdir()
        shutil.rmtree(folder)
        raise
    shutil.copyfile(options.config, folder / CONFIG_COPY)
    records = RunRecords(folder)
    asked |= {
        "config_folder": str(options.config.absolute().parent),
        "storage_path": options.storage_path,
        "tracking_uri": public_uri(tracker.uri),
    }
    records.settings(asked)
    return Opened(config, folder, records, tracker, storage, limits, tuple(earlier), tuple(notes))


def _resume(options: Options, folder: Path, machine: Node) -> Opened:
    asked = _asked(folder)
    if asked is None:
        raise SearchError(f"--resume {folder}: not the folder of a search; give one, for example runs/tiny")
    records = RunRecords(folder)
    given = {name: getattr(options, name) for name in ("num_samples", "max_concurrent", "confirm")}
    asked |= {name: value for name, value in given.items() if value is not None}
    try:
        storage_path, tracking_uri = asked.pop("storage_path"), asked.pop("tracking_uri")
        config = load_config(folder / CONFIG_COPY, base=Path(asked.pop("config_folder")), **asked)
        limits = _check(config, options, machine)
        ledger = Ledger.load(folder)  # none, if the search was killed at its very start
        known = tracking_uri if ledger is None else ledger.uri
        if options.tracking_uri is None and ":***@" in known:
            raise SearchError(f"--resume {folder}: the password of {known} is not kept; give --tracking-uri")
        tracker = Tracker(options.tracking_uri or known, folder, config.name)
        tracker.check()
        storage = _storage(storage_path, folder, options.checkpoint_budget, new=False)
        _check_room(config, options, folder, machine)
    except BaseException:
        records.close()
        raise
    return Opened(config, folder, records, tracker, storage, limits)


def tracking_uri(options: Options) -> str:
    """Where a new search is recorded."""
    return options.tracking_uri or f"sqlite:///{options.output_dir / 'mlflow.db'}"


def trials_at_once(config: SearchConfig, options: Options, machine: Node) -> int:
    """How many trials may run at once: on a cluster as many as the search allows; here, as many as the machine does."""
    if options.address == LOCAL:
        return config.resources.concurrency([machine], config.max_concurrent)
    return config.max_concurrent


def _storage(path: str | None, folder: Path, budget: float | None, *, new: bool) -> TrialStorage | None:
    """The storage of a URI. A path becomes that of the trials' folders by a link in the search's.

    Raises:
        SearchError: it cannot be used.
    """
    if path is not None and is_uri(path):
        if budget is not None:
            raise SearchError(
                f"--checkpoint-budget {budget:g} counts files in folders, but --storage-path is a URI; leave one out"
            )
        storage = open_storage(path, folder.name)
        storage.check(new=new)
        return storage
    if path is not None and new:
        trials = Path(path).expanduser().absolute() / folder.name / "trials"
        try:
            trials.mkdir(parents=True)
        except OSError as error:
            raise SearchError(
                f"--storage-path {path}: {trials}: {error.strerror}; give a folder that can be written and has no "
                "search of this name"
            ) from error
        (folder / "trials").symlink_to(trials)
    return None


def _asked(folder: Path) -> dict[str, Any] | None:
    """What the search was asked for on the command line when it began."""
    for record in read_records(folder):
        if record["kind"] == "settings":
            asked: Mapping[str, Any] = record["values"]
            return dict(asked)
    return None


def _check(config: SearchConfig, options: Options, machine: Node) -> Limits:
    limits = Limits(options.time_budget, options.gpu_hours, options.cpu_hours, config.resources)
    check_data(config)
    if options.address == LOCAL:
        config.resources.concurrency([machine], config.max_concurrent)
    return limits


def _check_room(config: SearchConfig, options: Options, folder: Path, machine: Node) -> None:
    at_once = trials_at_once(config, options, machine)
    room_for(config, at_once, options.keep_best).check(folder, options.checkpoint_budget)
