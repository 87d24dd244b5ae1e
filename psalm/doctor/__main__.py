"""The command line: ``python -m psalm.doctor --config FILE [--NAME VALUE ...]``, with all flags of the training.

Prints a table of findings. Exit code 0: training would work; 1: it would fail; 2: the command line cannot be read.
"""

import os
import sys
from collections.abc import Sequence

from rich.console import Console

from psalm.doctor.examination import Found, examine
from psalm.doctor.findings import Status, count, findings_table
from psalm.doctor.settings import Request, read_command_line
from psalm.train.arguments import SettingError
from psalm.train.quiet import quiet_libraries

WORKS, FAILS, UNREADABLE = 0, 1, 2
"""Exit codes."""
WIDE = 130
"""Columns where there is no terminal."""
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""What launchers set for each of the processes that they start."""


def main(argv: Sequence[str]) -> int:
    """Examines and prints; returns the exit code."""
    quiet_libraries()
    launched = {name: int(os.environ.pop(name)) for name in LAUNCHED if name in os.environ}  # it is one process
    if launched.get("RANK", 0) > 0:
        return WORKS
    try:
        request = read_command_line(argv)
    except SettingError as error:
        sys.stderr.write(f"{error}\n")
        return UNREADABLE
    found = watched(request, launched.get("WORLD_SIZE", 1))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=WIDE)
    console.print(findings_table(found))
    console.print()
    if problems := count(found, Status.PROBLEM):
        console.print(f"Training would fail: {problems} problem{'s' if problems > 1 else ''}.", style="bold red")
        return FAILS
    if count(found, Status.NOT_CHECKED):
        console.print("No problem was found, but not everything could be checked.", style="yellow")
    else:
        console.print("Training would work.", style="green")
    return WORKS


def watched(request: Request, world_size: int) -> Found:
    """The examination; on a terminal, stderr shows what is being done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return examine(request, world_size)
    with console.status("checking") as status:
        return examine(request, world_size, status.update)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
