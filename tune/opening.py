"""A search before it runs: a new one in a folder of its own, or one that goes on in its folder."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psalm.train.records import RunRecords, read_records
from tune.config import SearchConfig, check_data, load_config
from tune.errors import SearchError
from tune.ledger import Ledger
from tune.options import LOCAL, Options, new_folder
from tune.resources import Node
from tune.tracking import Tracker

CONFIG_COPY = "search.yaml"
"""In a search's folder: the file that describes it, as it was when the search began."""


@dataclass(frozen=True)
class Opened:
    """A checked search that nobody else runs."""

    config: SearchConfig
    folder: Path
    records: RunRecords
    tracker: Tracker
    resumed: bool


def open_search(options: Options, machine: Node) -> Opened:
    """Check everything that can be checked before Ray starts, and take the search's folder.

    Raises:
        SettingError: something that was asked for is wrong.
        TrackingError: MLflow cannot be reached.
        RecordsInUse: another process runs the search.
    """
    return _begin(options, machine) if options.resume is None else _resume(options, options.resume, machine)


def _begin(options: Options, machine: Node) -> Opened:
    asked: dict[str, Any] = {
        "assignments": list(options.assignments),
        "num_samples": options.num_samples,
        "max_concurrent": options.max_concurrent,
        "seed": options.seed,
        "metric": options.metric,
        "resources": list(options.resources),
    }
    config = load_config(options.config, **asked)
    _check(config, options, machine)
    folder = new_folder(options.output_dir, config.name)
    tracker = Tracker(options.tracking_uri or f"sqlite:///{options.output_dir / 'mlflow.db'}", folder, config.name)
    try:
        tracker.check()
    except BaseException:
        folder.rmdir()
        raise
    shutil.copyfile(options.config, folder / CONFIG_COPY)
    records = RunRecords(folder)
    records.settings(asked | {"config_folder": str(options.config.absolute().parent)})
    return Opened(config, folder, records, tracker, resumed=False)


def _resume(options: Options, folder: Path, machine: Node) -> Opened:
    ledger = Ledger.load(folder)
    asked = _asked(folder)
    if ledger is None or asked is None:
        raise SearchError(f"--resume {folder}: not the folder of a search; give one, for example runs/tiny")
    records = RunRecords(folder)
    given = {"num_samples": options.num_samples, "max_concurrent": options.max_concurrent}
    asked |= {name: value for name, value in given.items() if value is not None}
    try:
        config = load_config(folder / CONFIG_COPY, base=Path(asked.pop("config_folder")), **asked)
        _check(config, options, machine)
        if options.tracking_uri is None and ":***@" in ledger.uri:
            raise SearchError(f"--resume {folder}: the password of {ledger.uri} is not kept; give --tracking-uri")
        tracker = Tracker(options.tracking_uri or ledger.uri, folder, config.name)
        tracker.check()
    except BaseException:
        records.close()
        raise
    return Opened(config, folder, records, tracker, resumed=True)


def _asked(folder: Path) -> dict[str, Any] | None:
    """What the search was asked for on the command line when it began."""
    for record in read_records(folder):
        if record["kind"] == "settings":
            asked: Mapping[str, Any] = record["values"]
            return dict(asked)
    return None


def _check(config: SearchConfig, options: Options, machine: Node) -> None:
    check_data(config)
    if options.address == LOCAL:
        config.resources.concurrency([machine], config.max_concurrent)
