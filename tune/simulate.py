"""Compare ways to search in simulated time: ``python -m tune.simulate``; ``--help`` explains the options."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from psalm.train.arguments import with_defaults
from psalm.train.fields import SettingError
from tune.config import SAMPLERS, SCHEDULERS, SearchConfig, check_sampler, load_config
from tune.errors import SearchError
from tune.options import DEFAULT_CONFIG
from tune.progress import create_console
from tune.simulation.check import check, print_check, refuse_objectives
from tune.simulation.curve_file import Curves
from tune.simulation.curves import load_curves
from tune.simulation.report import HOUR, draw, print_comparison, print_correlations
from tune.simulation.simulation import Costs
from tune.simulation.ways import Comparison, Way, run_all
from tune.study.steps import evaluation_steps
from tune.tracking.ledger import TrackingError
from tune.tracking.store import DEFAULT_STORE

DEFAULT_CURVES = DEFAULT_CONFIG.parents[1] / "curves" / "panoptic.jsonl"
SIMULATED = tuple(name for name in SCHEDULERS if name != "pbt")
"""Schedulers whose trials recorded curves can answer."""
BUDGETS = (6, 12, 24)
"""Trials of full length that take the device-hours of the default budgets."""


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print, draw. Returns the exit code."""
    options = parse_options(argv)
    console = create_console()
    try:
        if options.check is not None:
            print_check(*check(options.check), console)
            return 0
        config = load_config(options.config, options.assignments)
        refuse_objectives(config)
        curves = load_curves(options.curves, options.tracking_uri)
        steps = evaluation_steps(with_defaults(config.arguments))
        refuse_misfit(curves, config, steps)
        for sampler in (*options.samplers, options.reference[0]):
            check_sampler(sampler, config.space)
    except (SettingError, TrackingError) as mistake:
        sys.stderr.write(f"tune.simulate: {' '.join(str(mistake).split())}\n")
        return 2

    config = dataclasses.replace(
        config,
        num_samples=options.num_samples or len(curves.settings),
        baselines=() if options.no_baselines else config.baselines,
    )
    costs = Costs(curves.startup_seconds, curves.overhead_seconds if options.overhead is None else options.overhead)
    budgets = default_budgets(curves, steps, costs)
    if options.budget is not None:
        budgets = sorted(hours * HOUR for hours in options.budget)
    ways, reference = ways_of(options, config)
    searches = run_all(ways, options.seeds, config, curves, costs, budgets[-1], console)
    comparison = Comparison(curves, searches, reference, budgets)
    print_comparison(comparison, console)
    print_correlations(curves, console)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(comparison, options.output)
    console.print(f"Best so far over device-hours is drawn in {options.output}", markup=False, soft_wrap=True)
    return 0


def refuse_misfit(curves: Curves, config: SearchConfig, steps: Sequence[int]) -> None:
    """Curves can answer a search only if they are of its metric, length and space.

    Raises:
        SearchError: they are not.
    """
    for name, given, wanted in (
        ("metric", curves.metric, config.metric),
        ("max_steps", curves.max_steps, config.max_steps),
    ):
        if given != wanted:
            raise SearchError(
                f"the curves have {name} = {given}, but the search has {wanted}; give the --config of one with {given}"
            )
    if missing := [step for step in steps if step not in curves.steps]:
        raise SearchError(
            f"the search evaluates at step {missing[0]}, but the curves have {', '.join(map(str, curves.steps))}; "
            "give --set eval_steps=N"
        )
    for runs in curves.settings:
        params = runs[0].params
        refusal = config.space.refusal(params)
        if refusal is not None:
            shown = ", ".join(f"{name} = {value}" for name, value in params.items())
            raise SearchError(
                f"the curves have a run with {shown}, but {refusal}; give the --config of a search of their space"
            )


def default_budgets(curves: Curves, steps: Sequence[int], costs: Costs) -> list[float]:
    """Seconds of all lanes that some numbers of trials of full length take."""
    seconds = [run.step_seconds * curves.max_steps + run.evaluation_seconds * len(steps) for run in curves.runs]
    trial = sum(seconds) / len(seconds) + costs.overhead
    return [count * trial for count in BUDGETS if count <= len(curves.settings)] or [len(curves.settings) * trial]


def ways_of(options: argparse.Namespace, config: SearchConfig) -> tuple[list[Way], dict[int, Way]]:
    """The ways to compare, the reference of each number of lanes first; and these by lanes."""
    startup_trials = options.startup_trials or [config.sampler.n_startup_trials]
    graces = options.grace or [config.scheduler.grace_period]
    reductions = options.reduction or [config.scheduler.reduction_factor]
    sampler, scheduler = options.reference
    ways: dict[tuple[str, ...], Way] = {}
    reference = {}
    for lanes in options.workers:
        reference[lanes] = Way(sampler, startup_trials[0], scheduler, graces[0], reductions[0], lanes)
        others = product(
            options.samplers, startup_trials, options.schedulers, graces, reductions, [lanes], options.earlier
        )
        for way in (reference[lanes], *(Way(*each) for each in others)):
            ways.setdefault(way.words, way)
    return list(ways.values()), reference


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what is None follows from the search or the curves."""
    parser = _Parser(
        prog="python -m tune.simulate",
        description="Search recorded learning curves instead of training: compare samplers, schedulers, budgets and "
        "numbers of trials at a time in seconds, over many seeds. Proposals and stops are made by the code of a real "
        "search; the nearest recorded setting answers. Lists are separated by commas, and all combinations are run.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--curves",
        default=str(DEFAULT_CURVES),
        metavar="FILE_OR_EXPERIMENT",
        help="A file of recorded curves, or the name of an MLflow experiment. The default is the shipped file.",
    )
    add(
        "--tracking-uri",
        default=DEFAULT_STORE,
        metavar="URI",
        help=f"The MLflow store of the experiment. The default is {DEFAULT_STORE}.",
    )
    add(
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="The search's file. What the options below do not say is as it says. The default is that of a search.",
    )
    add("--set", action="append", default=[], dest="assignments", metavar="NAME=VALUE", help="As of a search.")
    add("--samplers", type=_words(SAMPLERS), default=["tpe", "random"], metavar="NAMES", help=_list(SAMPLERS))
    add("--startup-trials", type=_numbers(int, 1), metavar="N,...", help="Random trials before a sampler's own.")
    add("--schedulers", type=_schedulers, default=["asha", "none"], metavar="NAMES", help=_list(SIMULATED))
    add("--grace", type=_numbers(int, 1), metavar="STEPS,...", help="The schedulers' grace periods.")
    add("--reduction", type=_numbers(float, 1), metavar="N,...", help="The schedulers' reduction factors, above 1.")
    add("--workers", type=_numbers(int, 1), default=[2], metavar="N,...", help="Trials at a time. The default is 2.")
    add(
        "--earlier",
        type=_numbers(int, 0),
        default=[0],
        metavar="N,...",
        help="Trials of an earlier search that the sampler is told of, as by --warm-start: recorded settings drawn at "
        "random, with the value that another training seed came to. The default is 0.",
    )
    add("--seeds", type=int, default=20, metavar="N", help="Searches in each way. The default is 20.")
    add(
        "--budget",
        type=_numbers(float, 0),
        metavar="HOURS,...",
        help="Device-hours at which answers are compared, an hour of each trial at a time; a search ends with the "
        f"last. The default is what {', '.join(map(str, BUDGETS))} trials of full length take.",
    )
    add("--num-samples", type=int, metavar="N", help="End a search after N trials. The default is no limit.")
    add("--overhead", type=float, metavar="SECONDS", help="Of every trial. The default is the median of the curves'.")
    add(
        "--reference",
        type=_reference,
        default=("random", "none"),
        metavar="SAMPLER/SCHEDULER",
        help="What the others are compared to, with as many trials at a time. The default is random/none.",
    )
    add(
        "--no-baselines",
        action="store_true",
        help="Begin with a suggestion: what a search finds where no good setting is known before.",
    )
    add(
        "--output",
        type=Path,
        default=Path("runs/simulation.png"),
        metavar="PNG",
        help="The picture. The default is runs/simulation.png.",
    )
    add(
        "--check",
        type=Path,
        metavar="DIR",
        help="Instead, run a real search that has ended through the simulator, from its own records, and compare.",
    )
    return parser.parse_args(argv)


def _list(known: Sequence[str]) -> str:
    return f"Of {', '.join(known)}."


def _words(known: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} must be one of {', '.join(known)}")
        return words

    return read


def _schedulers(text: str) -> list[str]:
    if "pbt" in text.split(","):
        raise argparse.ArgumentTypeError("pbt changes learning rates midway, which no recorded curve can answer")
    return _words(SIMULATED)(text)


def _numbers(kind: type[int] | type[float], low: float) -> Callable[[str], list[Any]]:
    def read(text: str) -> list[Any]:
        rule = "a whole number of at least" if kind is int else "a number above"
        numbers = []
        for part in text.split(","):
            try:
                number = kind(part)
            except ValueError:
                number = kind(-1)
            if number < low or (kind is float and not low < number < math.inf):
                raise argparse.ArgumentTypeError(f"{part!r} must be {rule} {low:g}")
            numbers.append(number)
        return numbers

    return read


def _reference(text: str) -> tuple[str, str]:
    sampler, _, scheduler = text.partition("/")
    (sampler,), (scheduler,) = _words(SAMPLERS)(sampler), _schedulers(scheduler)
    return sampler, scheduler


if __name__ == "__main__":
    sys.exit(main())
