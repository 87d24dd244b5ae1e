"""What the commands that make data files share: whole files or none, a progress bar, one line about what is wrong."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from psalm.data.errors import DataError

DONE, WRONG, INTERRUPTED = 0, 2, 130
"""Exit codes."""

Watch = Callable[[list[Any]], Iterable[Any]]
"""Goes through a list of images, perhaps showing how far it is; ``iter`` shows nothing."""


def run_command(work: Callable[[Watch], str]) -> int:
    """Runs a command's work, with a progress bar if standard error is a terminal, and says what came of it.

    SIGTERM ends the work as Ctrl-C does, so that drafts are removed.

    Args:
        work: does it and returns the closing line; what it is given shows the progress.

    Returns:
        The exit code: 2 where the work raised ValueError, whose message is then the only line.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal) as progress:
            closing_line = work(partial(progress.track, description="images"))
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return WRONG
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was written\n")
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.stdout.write(f"{closing_line}\n")
    return DONE


@contextmanager
def json_list(path: Path, overwrite: bool) -> Iterator[Callable[[Any], None]]:
    """A JSON file that holds a list, written item by item: ``with json_list(path, False) as append: append(item)``.

    The items go to a draft beside the file, which takes the file's place at the end; an exception removes it. So the
    file is there whole or not at all, and one that was there before stays until then.

    Raises:
        DataError: the file cannot be written, or, at once, is a folder, or is there already and must not be replaced.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: --output must name a file")
    if path.exists() and not overwrite:
        raise DataError(f"{path} is there already: give --overwrite to replace it, or another --output")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="ascii") as file:
            separator = "["

            def append(item: Any) -> None:
                nonlocal separator
                file.write(separator + json.dumps(item, separators=(",", ":")))
                separator = ",\n"

            yield append
            file.write("[]\n" if separator == "[" else "]\n")
        os.replace(draft, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from error
    finally:
        draft.unlink(missing_ok=True)
