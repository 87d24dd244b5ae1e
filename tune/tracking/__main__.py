"""``python -m tune.tracking sync DIR``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tune.tracking.connection import public_uri
from tune.tracking.ledger import Ledger, TrackingError
from tune.tracking.tracker import Tracker


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m tune.tracking sync DIR``: brings to MLflow what it lacks of a search. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tune.tracking.tracker", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sync = commands.add_parser("sync", help="deliver what MLflow lacks of a search that is over or was killed")
    sync.add_argument("folder", type=Path, help="the search's folder, for example runs/tiny")
    sync.add_argument("--tracking-uri", help="deliver to this store (default: the one that the search used)")
    options = parser.parse_args(arguments)
    try:
        return _sync_folder(options.folder, options.tracking_uri)
    except (TrackingError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _sync_folder(folder: Path, uri: str | None) -> int:
    ledger = Ledger.load(folder)
    if ledger is None:
        raise TrackingError(f"{folder} has no tracking.json; give the folder of a search, for example runs/tiny")
    if uri is None and ":***@" in ledger.uri:
        raise TrackingError(f"the password of {ledger.uri} is not kept; give --tracking-uri")
    ledger.hold()
    try:
        tracker = Tracker(uri or ledger.uri, folder, ledger.name)
        tracker.check()
        complete = tracker.sync()
    finally:
        ledger.release()
    summary = f"{len(ledger.runs)} runs of {folder} are {'' if complete else 'not all '}in {public_uri(tracker.uri)}"
    sys.stdout.write(summary + "\n")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
