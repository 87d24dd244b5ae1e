"""One run with other seeds: how much of a result is luck, and how far two runs of one setting may be apart."""

import itertools
import math
import statistics
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console
from rich.table import Table
from scipy import stats

from psalm.train.comparison import INPUTS, Tolerance, default_tolerance
from tune.reading import as_number
from tune.reproduction.recorded import WITHOUT_EFFECT, Record, changed_settings
from tune.tracking.connection import PARAM_LENGTH, as_text, describe, find_or_create, set_tags
from tune.tracking.delivery import Delivery
from tune.tracking.fingerprint import provenance
from tune.tracking.store import metric_points
from tune.tracking.tracker import SOURCES_FILE
from tune.trials.resources import TrialResources, this_machine

SEED = "seed"
FEWEST_SEEDS = 3
"""From how many on their spread says how far two runs may be apart."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class SeedValues:
    """The main metrics of runs that differ in nothing but their seeds, at one step."""

    step: int
    values: Mapping[int, Mapping[str, float]]
    """Seed -> metric -> value."""

    def of(self, metric: str) -> list[float]:
        """One metric's, in order of seeds."""
        return [values[metric] for _, values in sorted(self.values.items())]


def known_seeds(client: MlflowClient, record: Record) -> SeedValues | None:
    """What MLflow has of a run's settings with any seed, its own included, at the step of its last evaluation.

    Of several runs with one seed, such as reproductions, the first one counts. None where the run has no main metric.
    """
    points = record.history.get(record.main_metrics[0])
    if not points:
        return None
    step, _ = points[-1]
    own = _values_at(client, record.run_id, record.main_metrics, step)
    if own is None:
        return None
    found = {int(record.settings[SEED]): own}
    for run in _same_but_seed(client, record):
        values = _values_at(client, run.info.run_id, record.main_metrics, step)
        if values is not None:
            found.setdefault(int(run.data.params[SEED]), values)
    return SeedValues(step, found)


def _same_but_seed(client: MlflowClient, record: Record) -> Iterator[Run]:
    """Finished runs of the same experiment that are made of the same and have the same settings but for the seed."""
    made_of = _made_of(record.tags)
    left_out = (SEED, *WITHOUT_EFFECT)
    wanted = {
        name: as_number(as_text(value, PARAM_LENGTH))  # a repetition's 0.0 is the default's 0
        for name, value in record.settings.items()
        if name not in left_out
    }
    token = None
    while True:
        page = client.search_runs(
            [record.experiment_id], "status = 'FINISHED'", order_by=["attributes.start_time ASC"], page_token=token
        )
        for run in page:
            given = {name: as_number(text) for name, text in run.data.params.items()}
            is_same = wanted.items() <= given.items() and not changed_settings(run.data.tags)
            if is_same and _made_of(run.data.tags) == made_of and SEED in given:
                yield run
        token = page.token
        if not token:
            return


def _made_of(tags: Mapping[str, str]) -> dict[str, str]:
    """Data and weights; and the number of processes, which multiplies the samples of a step."""
    return {name: text for name, text in tags.items() if name.startswith((*INPUTS, "world_size"))}


def _values_at(client: MlflowClient, run_id: str, metrics: Sequence[str], step: int) -> dict[str, float] | None:
    """A run's metrics at a step; None where one is missing, or is no number."""
    values = {}
    for metric in metrics:
        at = dict(metric_points(client, run_id, metric)).get(step)
        if at is None or not math.isfinite(at):
            return None
        values[metric] = at
    return values


def tolerance_for(client: MlflowClient, record: Record) -> Tolerance:
    """How far a repetition of a run may be from it where it cannot be equal bit for bit.

    Rounding differences grow until two runs of one seed differ as two seeds do. Where the values of n >= 3 seeds are
    known, with standard deviation s, two new ones are less than ``t * s * sqrt(2)`` apart in 95 of 100 cases (the
    prediction interval of a difference of normal variables; t: Student's, n - 1 degrees of freedom). The widest of all
    main metrics is taken; the default where nothing is known, or all are equal.
    """
    usual = default_tolerance(record.settings)
    known = known_seeds(client, record)
    if known is None or len(known.values) < FEWEST_SEEDS:
        return usual
    count = len(known.values)
    spread = max(statistics.stdev(known.of(metric)) for metric in record.main_metrics)
    if spread == 0:  # of a metric that has yet to move
        return usual
    band = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread * math.sqrt(2)
    source = f"{CONFIDENCE:.0%} of pairs are closer, by the deviation of {spread:.2f} over {count} recorded seeds"
    return Tolerance(usual.rtol, band, usual.rtol_source, source)


def new_seeds(client: MlflowClient, record: Record, count: int) -> list[int]:
    """The smallest seeds that no run of these settings has finished with."""
    known = known_seeds(client, record)
    used = {int(record.settings[SEED])} | (set() if known is None else set(known.values))
    return list(itertools.islice((seed for seed in itertools.count() if seed not in used), count))


@dataclass
class SeedRun:
    """One run of a sweep, as it stands."""

    seed: int
    run_id: str
    status: str = "RUNNING"
    reason: str | None = None


def sweep(
    client: MlflowClient,
    record: Record,
    seeds: Sequence[int],
    folder: Path,
    files: Mapping[str, str],
    console: Console,
    *,
    resources: TrialResources,
    on_cpu: bool = False,
) -> list[SeedRun]:
    """Trains a run again with every seed, as many at once as the machine has room for, and records each in MLflow.

    A signal ends it in order: runs that had not ended are recorded as killed, and those that had are complete.

    Args:
        client: of the store.
        record: the run.
        seeds: that it is trained with.
        folder: each run gets one below it.
        files: of ``source_files()``.
        console: is told as each ends.
        resources: of each.
        on_cpu: see ``repeat``.

    Raises:
        Interrupted: on SIGINT or SIGTERM.
    """
    # Ray takes seconds to import: what is refused is told before.
    from tune.reproduction.repetition import Repetition, repeat

    started: dict[Path, SeedRun] = {}

    def runs() -> Iterator[Repetition]:
        for seed in seeds:
            of_seed = folder / f"seed-{seed}"
            of_seed.mkdir()
            started[of_seed] = SeedRun(seed, _begin(client, record, seed, files, resources))
            yield Repetition(of_seed, {**record.settings, SEED: seed}, record.stopped_at)

    at_once = resources.concurrency([this_machine()], len(seeds))
    try:
        with closing(repeat(runs(), resources, at_once=at_once, on_cpu=on_cpu)) as ended:
            for run, reason in ended:
                each = started[run.folder]
                each.status, each.reason = ("FINISHED", None) if reason is None else ("FAILED", reason)
                _finish(client, run.folder, each)
                console.print(f"  seed {each.seed}: {reason or 'done'}", markup=False, soft_wrap=True, highlight=False)
    finally:
        for of_seed, each in started.items():
            if each.status == "RUNNING":
                each.status, each.reason = "KILLED", "the sweep ended before this run"
                _finish(client, of_seed, each)
    return list(started.values())


def _begin(client: MlflowClient, record: Record, seed: int, files: Mapping[str, str], resources: TrialResources) -> str:
    tags = {"kind": "seed", "seed_of": record.run_id} | provenance(files) | record.tags_of_repetition(resources)
    mark = {"run_key": uuid.uuid4().hex}
    run_id = find_or_create(client, record.experiment_id, f"seed {seed} of {record.name}", time.time(), mark, tags)
    describe(client, run_id, {SOURCES_FILE: dict(files)}, {})
    return run_id


def _finish(client: MlflowClient, folder: Path, run: SeedRun) -> None:
    Delivery(client, run.run_id, folder).deliver()
    if run.reason is not None:
        set_tags(client, run.run_id, {"reason": run.reason})
    client.set_terminated(run.run_id, run.status)


def print_seeds(console: Console, record: Record, known: SeedValues) -> None:
    """A line per seed, the spread of the others, and where the run itself stands among them."""
    own = int(record.settings[SEED])
    others = SeedValues(known.step, {seed: values for seed, values in known.values.items() if seed != own})
    table = Table("seed", *record.main_metrics, box=None, pad_edge=False)
    for seed, values in sorted(known.values.items()):
        label = f"{seed} (the run)" if seed == own else str(seed)
        table.add_row(label, *(f"{values[metric]:.2f}" for metric in record.main_metrics))
    console.print(f"\nAt step {known.step}", highlight=False)
    console.print(table)
    if others.values:
        for metric in record.main_metrics:
            place = _place(metric, known.values[own][metric], others.of(metric))
            console.print(place, soft_wrap=True, highlight=False)


def _place(metric: str, own: float, others: Sequence[float]) -> str:
    """A run's value among those of other seeds, in words."""
    mean, higher = statistics.fmean(others), sum(value > own for value in others)
    deviation = f"{statistics.stdev(others):.2f}" if len(others) > 1 else "unknown"
    return (
        f"{metric}: mean {mean:.2f}, standard deviation {deviation}, from {min(others):.2f} to {max(others):.2f} over "
        f"{len(others)} other seeds; the run's {own:.2f} is {own - mean:+.2f} from the mean, and {higher} are higher"
    )
