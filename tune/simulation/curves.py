"""Learning curves from where searches left them: an MLflow experiment, or one search's folder.

``python -m tune.simulation.curves EXPERIMENT FILE`` writes those of an experiment into a file.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run

from psalm.train.records import metric_history, read_records
from tune.config import SearchConfig
from tune.costs import EVALUATION_SECONDS, STEP_SECONDS
from tune.errors import SearchError
from tune.results import SUMMARY_FILE
from tune.simulation.curve_file import Curve, Curves, Key, read_curves, write_curves
from tune.study.board import Status, trial_folder
from tune.tracking.connection import absolute_uri
from tune.tracking.ledger import TrackingError
from tune.tracking.store import DEFAULT_STORE, find_experiment, json_artifact, metric_points, open_store, runs_of_kind

CONFIG_FILE = "search_config.json"
SEED = "seed"
_OF_THE_DISK = "save_"
"""What names of arguments begin with that change no value and no second of a curve."""

Trial = Mapping[str, Any]
"""A trial as ``search.json`` has it."""
History = Mapping[str, Mapping[int, float]]
"""Metric -> step -> value."""


def load_curves(source: str, tracking_uri: str) -> Curves:
    """The curves of a file, or of an experiment in the MLflow store at a URI.

    Raises:
        SearchError: there is neither, or it holds no curves.
        TrackingError: the store cannot be reached.
    """
    if Path(source).is_file():
        return read_curves(Path(source))
    uri = absolute_uri(tracking_uri)
    try:
        client = open_store(uri)
        experiment = find_experiment(client, source)
    except TrackingError as error:
        raise TrackingError(f"--curves {source!r} is no file, and no experiment: {error}") from error
    return curves_of_experiment(client, experiment)


def curves_of_experiment(client: MlflowClient, experiment: Experiment) -> Curves:
    """The runs of full length of all searches in an experiment; of two with one setting and seed, the first.

    Raises:
        SearchError: it has no run of full length, or its searches differ in more than their settings and seeds.
    """
    parents = runs_of_kind(client, experiment, "search")
    searches = [search for parent in parents if (search := _read_search(client, parent)) is not None]
    found = [curves for search in searches if (curves := search.curves({Status.COMPLETED})).runs]
    if not found:
        raise SearchError(
            f"--curves {experiment.name!r}: the experiment has no search that has ended with a trial of full length"
        )
    for search in searches[1:]:
        if different := sorted({name for name, _ in searches[0].comparable ^ search.comparable}):
            raise SearchError(
                f"--curves {experiment.name!r}: its searches differ in {', '.join(different)}; "
                "curves that are compared need an experiment of their own"
            )
    runs: dict[tuple[int, Key], Curve] = {}
    for run in (run for curves in found for run in curves.runs):
        runs.setdefault((run.seed, run.setting), run)
    startup = statistics.fmean(curves.startup_seconds for curves in found)
    return dataclasses.replace(found[0], startup_seconds=startup, runs=tuple(runs.values()))


def curves_of_folder(folder: Path, config: SearchConfig) -> Curves:
    """The trials of a search that has ended, in the order of their numbers; those that were stopped as far as they ran.

    Raises:
        SearchError: the search has not ended.
    """
    if not (folder / SUMMARY_FILE).is_file():
        raise SearchError(f"{folder} has no {SUMMARY_FILE}: give the folder of a search that has ended")
    times: dict[str, float] = {}
    for record in read_records(folder):
        if record["kind"] == "event":
            times.setdefault(record["event"], record["time"])
    search = _Search(
        metric=config.metric,
        mode=config.mode,
        arguments=config.arguments,
        summary=json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8")),
        until_first_trial=times["attempt"] - times["started"],
        history=lambda trial: metric_history(read_records(trial_folder(folder, trial["number"]))),
    )
    return search.curves({Status.COMPLETED, Status.PRUNED})


@dataclass(frozen=True)
class _Search:
    """A search that has ended."""

    metric: str
    mode: str
    arguments: Mapping[str, Any]
    """Those that all its trials have in common."""
    summary: Mapping[str, Any]
    """The content of its ``search.json``."""
    until_first_trial: float
    """Seconds from its start to that of its first trial."""
    history: Callable[[Trial], History]

    @property
    def comparable(self) -> set[tuple[str, str]]:
        """What must be the same for curves to be compared."""
        given = {"metric": self.metric, **self.arguments}
        return {
            (name, str(value)) for name, value in given.items() if name != SEED and not name.startswith(_OF_THE_DISK)
        }

    def curves(self, statuses: Collection[Status]) -> Curves:
        """Its trials of some statuses; none that were forked from others, whose learning rate changes.

        The first trials of a search wait for their lanes' processes: what they take longer than the median of those
        that went through at once, and Ray's own start before, is the start-up.
        """
        at_once = int(self.summary["seconds"]["concurrency"])
        trials = [
            trial for trial in self.summary["trials"] if Status(trial["status"]) in statuses and "forks" not in trial
        ]
        runs = [self._curve(trial) for trial in trials]
        slow, usual = [], []
        for index, (trial, run) in enumerate(zip(trials, runs, strict=True)):
            other = trial["seconds"] - run.seconds
            if trial["attempts"] == 1 and trial["number"] < at_once:
                slow.append(other)
            elif trial["attempts"] == 1:
                usual.append(other)
                runs[index] = dataclasses.replace(run, overhead_seconds=other)
        overhead = statistics.median(usual) if usual else 0.0
        startup = max(statistics.fmean(slow) - overhead, 0.0) if slow else 0.0
        return Curves(
            metric=self.metric,
            mode=self.mode,
            max_steps=int(self.arguments["max_steps"]),
            startup_seconds=self.until_first_trial + startup,
            at_once=at_once,
            runs=tuple(runs),
        )

    def _curve(self, trial: Trial) -> Curve:
        """One trial, without what it took besides training and evaluations."""
        history = self.history(trial)
        logged = history[STEP_SECONDS]
        training = sum(seconds * (step - before) for step, before, seconds in _intervals(logged))
        evaluation = sum(sum(history.get(name, {}).values()) for name in EVALUATION_SECONDS)
        values = dict(sorted(history[self.metric].items()))
        return Curve(
            params=trial["params"],
            seed=int(trial["params"].get(SEED, self.arguments.get(SEED, 0))),
            values=values,
            step_seconds=training / max(logged),
            evaluation_seconds=evaluation / len(values),
            overhead_seconds=None,
        )


def _intervals(logged: Mapping[int, float]) -> Iterator[tuple[int, int, float]]:
    """Every logged step, the one before it, and the value between them."""
    before = 0
    for step, value in sorted(logged.items()):
        yield step, before, value
        before = step


def _read_search(client: MlflowClient, parent: Run) -> _Search | None:
    """A search in MLflow; None if it has not ended, or had no trial."""
    run_id = parent.info.run_id
    if SUMMARY_FILE not in [file.path for file in client.list_artifacts(run_id)]:
        return None
    summary, config = json_artifact(client, run_id, SUMMARY_FILE), json_artifact(client, run_id, CONFIG_FILE)
    ids = [trial["run_id"] for trial in summary["trials"] if trial["run_id"] is not None]
    if not ids:
        return None
    names = (config["metric"], STEP_SECONDS, *EVALUATION_SECONDS)

    def history(trial: Trial) -> History:
        return {name: dict(metric_points(client, trial["run_id"], name)) for name in names}

    return _Search(
        metric=config["metric"],
        mode=config["mode"],
        arguments=config["arguments"],
        summary=summary,
        until_first_trial=(client.get_run(ids[0]).info.start_time - parent.info.start_time) / 1000,
        history=history,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the curves of an experiment into a file. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tune.simulation.curves",
        description="Write the learning curves of an experiment into a small file, for python -m tune.simulate.",
        allow_abbrev=False,
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", help="The name of a search whose trials ran to their ends.")
    parser.add_argument("file", metavar="FILE", type=Path, help="The file to write, for example curves.jsonl.")
    parser.add_argument("--tracking-uri", metavar="URI", default=DEFAULT_STORE, help="MLflow's store.")
    options = parser.parse_args(argv)
    try:
        curves = load_curves(options.experiment, options.tracking_uri)
        write_curves(curves, options.file)
    except (SearchError, TrackingError, OSError) as error:
        sys.stderr.write(f"tune.simulation.curves: {error}\n")
        return 2
    size = options.file.stat().st_size / 1000
    sys.stdout.write(f"{options.file}: {len(curves.settings)} settings, {len(curves.runs)} runs, {size:.0f} kB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
