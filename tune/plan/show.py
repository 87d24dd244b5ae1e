"""``python tune/search.py --plan``: makes the plan and prints it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tune.options import Options
from tune.plan.plan import make_plan
from tune.plan.report import print_plan
from tune.progress import create_console
from tune.trials.resources import Node


def show_plan(options: Options, machine: Node) -> int:
    """Make the plan, print it.

    Returns:
        0, or 1 if the probe has shown that no trial would run.

    Raises:
        SettingError: something that was asked for is wrong.
        TrackingError: MLflow cannot be reached.
    """
    console = create_console()
    with _ended_by_signals(), console.status("checking") as status:
        plan = make_plan(options, machine, status.update)
    print_plan(plan, console)
    return 1 if plan.probe is not None and not plan.probe.measured else 0


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGINT or SIGTERM ends the program as an exit does: processes and files of a probe go first."""
    previous = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in previous:
        signal.signal(each, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
