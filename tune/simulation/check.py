"""The simulator against a real search: its own trials run through once more, in simulated time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from psalm.train.records import read_records
from tune.config import SearchConfig, load_config
from tune.errors import SearchError
from tune.opening import CONFIG_COPY
from tune.progress import clock
from tune.results import SUMMARY_FILE
from tune.simulation.curves import curves_of_folder
from tune.simulation.simulation import Costs, simulate

ASKED = ("assignments", "num_samples", "max_concurrent", "seed", "metric", "resources")
"""What a search's records hold of its command line, under the names of ``load_config``."""


@dataclass(frozen=True)
class Outcome:
    """What a search came to."""

    trials: int
    seconds: float
    """From its start to its end."""
    stopped: Mapping[int, int]
    """Trials that were stopped early, and at which step."""


def refuse_objectives(config: SearchConfig) -> None:
    """Curves have the values of one metric.

    Raises:
        SearchError: the search is for more.
    """
    if config.objectives:
        names = ", ".join(each.name for each in config.objectives)
        raise SearchError(
            f"the search has objectives ({names}), but curves have one metric; simulate one with a metric"
        )


def check(folder: Path) -> tuple[Outcome, Outcome]:
    """A search that has ended, as it was, and as it is in the simulator.

    The simulator has its settings, values and seconds of training, and of all else the medians and means that it goes
    by. So what may differ is the order of results, who is stopped therefore, and the time that it all takes. Trials
    that failed are left out; one that the simulator would not have stopped is, where the real one was. Runs that
    confirm others come after the search, and are no part of either.

    Raises:
        SearchError: the folder has no search that has ended.
    """
    config = _config_of(folder)
    refuse_objectives(config)
    if config.scheduler.name == "pbt":
        raise SearchError(f"--check {folder}: its scheduler is pbt, whose forks are not simulated; give another search")
    curves = curves_of_folder(folder, config)
    summary: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    stopped = {trial["number"]: trial["steps"] for trial in summary["trials"] if trial["status"] == "pruned"}
    real = Outcome(len(summary["trials"]), summary["seconds"]["wall"] - _confirming_seconds(folder), stopped)

    runs = iter(curves.runs)
    costs = Costs(curves.startup_seconds, curves.overhead_seconds)
    config = replace(config, num_samples=len(curves.runs))
    simulated = simulate(config, curves.at_once, costs, lambda board: next(runs))
    rows = simulated.board.trials
    numbers = [trial["number"] for trial in summary["trials"] if trial["status"] in ("completed", "pruned")]
    stops = {numbers[number]: rows[number].evaluated for number in simulated.stopped}
    return real, Outcome(len(rows), simulated.seconds, stops)


def print_check(real: Outcome, simulated: Outcome, console: Console) -> None:
    """Both, side by side."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("", "real", "simulated"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    both = (real, simulated)
    table.add_row("trials", *(str(each.trials) for each in both))
    table.add_row("stopped early", *(str(len(each.stopped)) for each in both))
    table.add_row("time", *(clock(each.seconds) for each in both))
    console.print(table)
    console.print(f"The simulated time is {simulated.seconds / real.seconds - 1:+.1%} off", highlight=False)
    for number in sorted({*real.stopped, *simulated.stopped}):
        if real.stopped.get(number) != simulated.stopped.get(number):
            ends = (
                f"stopped at step {each.stopped[number]}" if number in each.stopped else "not stopped" for each in both
            )
            console.print(f"trial {number}: {' in reality, '.join(ends)} in the simulation", highlight=False)


def _confirming_seconds(folder: Path) -> float:
    """From the proposal of the first run that confirms another to the last event."""
    events = [record for record in read_records(folder) if record["kind"] == "event"]
    begun = next((event["time"] for event in events if event["event"] == "proposed" and "confirms" in event), None)
    return 0.0 if begun is None else float(events[-1]["time"] - begun)


def _config_of(folder: Path) -> SearchConfig:
    """What a search was asked to do.

    Raises:
        SearchError: the folder is not that of a search.
    """
    asked = next((record["values"] for record in read_records(folder) if record["kind"] == "settings"), None)
    if asked is None:
        raise SearchError(f"--check {folder}: not the folder of a search; give one, for example runs/tiny")
    return load_config(folder / CONFIG_COPY, base=Path(asked["config_folder"]), **{name: asked[name] for name in ASKED})
