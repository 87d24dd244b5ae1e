"""A plan as it is printed."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from psalm.doctor.units import gib
from psalm.train.disk import GB
from tune.config import SchedulerConfig, SearchConfig
from tune.plan.corners import Corner
from tune.plan.expectation import LIKELY
from tune.plan.plan import Plan
from tune.plan.probing import FIRST_STEPS, ProbedRun
from tune.progress import announce, clock, number
from tune.trials.limits import HOUR, duration


def print_plan(plan: Plan, console: Console) -> None:
    """Space, corners, what was measured, what is expected, disk, and how the search would run."""
    announce(plan.config, plan.folder, console)
    _print_corners(plan, console)
    _print_expected(plan, console)
    _print_rest(plan, console)


def _print_corners(plan: Plan, console: Console) -> None:
    """What they take of memory and, where they were tried, of time."""
    console.print("Corners of the space", style="bold")
    runs = _runs(plan)
    names = list(dict.fromkeys(name for corner in plan.corners for name in corner.params))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    measured = ("s a\nstep", "s an eval-\nuation", "peak\nmemory") if runs else ()
    for heading in (*names, "parameters", "memory,\nestimated", "fits", *measured):
        table.add_column(heading.replace("_", "_\n"), justify="right", vertical="bottom", no_wrap=True)
    for index, corner in enumerate(plan.corners):
        table.add_row(
            *(number(corner.params.get(name)) for name in names),
            f"{corner.parameters / 1e6:,.1f} M",
            "-" if corner.need is None else gib(corner.need),
            _fits(plan, corner),
            *(_measured(runs.get(index)) if runs else ()),
        )
    console.print(table)
    memory = plan.memory
    if memory is None:
        _line(console, "The trials' devices are not on this machine, so nothing is known of their memory.")
    else:
        _line(
            console,
            f"{gib(memory.available)} for {memory.words}; an estimate counts {gib(memory.overhead)} for libraries.",
        )
    for index, corner in enumerate(plan.corners):
        _print_ladder(corner, console)
        run = runs.get(index)
        if isinstance(run, str):
            _line(console, f"The probe of {_words(corner.params)} failed: {run}", "red")


def _runs(plan: Plan) -> dict[int, ProbedRun | str]:
    """What the probe has of the corners, by their places."""
    if plan.probe is None:
        return {}
    return {plan.corners.index(corner): run for corner, run in zip(plan.probed, plan.probe.runs, strict=True)}


def _fits(plan: Plan, corner: Corner) -> str:
    if plan.memory is None or corner.need is None:
        return "?"
    return "no" if corner.rung is None else f"at rung {corner.rung}" if corner.rung else "yes"


def _measured(run: ProbedRun | str | None) -> tuple[str, str, str]:
    if not isinstance(run, ProbedRun):
        return "-" if run is None else "failed", "-", "-"
    return f"{run.step_seconds:.3g}", f"{run.evaluation_seconds:.3g}", gib(run.peak_bytes)


def _print_ladder(corner: Corner, console: Console) -> None:
    """What the search would do where a corner does not fit as configured."""
    if corner.rung is None:
        _line(console, f"{_words(corner.params)}: does not fit at any rung of the memory ladder; it would fail", "red")
    elif corner.rung:
        assert corner.need_at_rung is not None, "it was estimated"
        _line(
            console,
            f"{_words(corner.params)}: would run out of memory, and then run with {_words(corner.changes)} "
            f"({gib(corner.need_at_rung)})",
            "yellow",
        )


def _print_expected(plan: Plan, console: Console) -> None:
    """Trials and time."""
    if plan.probe is None:
        _line(console, "\nNothing was measured, so nothing is said of time.")
        return
    if plan.expected is None:
        _line(console, "\nNo probed setting could be trained, so nothing is said of time.", "red")
        return
    each, gpus = plan.config.resources, plan.config.resources.gpus_per_worker > 0
    console.print(f"\n{plan.config.num_samples} trials, {plan.at_once} at a time", style="bold", highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False)
    confirm = plan.config.confirm is not None
    trials = ("completed", "stopped early", *(("confirming runs",) if confirm else ()))
    for heading in ("", *trials, "GPU-hours" if gpus else "CPU-hours", "time"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, expected in plan.expected.items():
        counts = (expected.completed, expected.stopped, *((expected.confirmations,) if confirm else ()))
        figures = (f"{figure:.3g}" for figure in (*counts, plan.device_hours(expected)))
        table.add_row(name, *figures, clock(plan.seconds(expected)))
    console.print(table)
    _line(
        console,
        "low: all but the first are stopped as early as can be; likely: ranked at random; high: none is stopped.",
    )
    probe = plan.probe
    asked = min(run.questions for run in probe.measured)
    _line(
        console,
        f"From a probe of {probe.seconds:.0f} s: {probe.processes} processes at once, some steps after the first "
        f"{FIRST_STEPS}, one evaluation of {'all' if asked == 1 else f'{asked:.0%} of the'} questions."
        + (" Communication between a trial's workers is not in it." if each.workers_per_trial > 1 else ""),
    )
    _print_limits(plan, console)


def _print_limits(plan: Plan, console: Console) -> None:
    """Which limits the search would probably come to."""
    assert plan.expected is not None, "the caller has looked"
    limits, likely = plan.limits, plan.expected[LIKELY]
    worker_hours = likely.lane_seconds / HOUR * limits.resources.workers_per_trial
    budget = None if limits.time_budget is None else duration(limits.time_budget)
    for flag, shown, limit, needed in (
        ("--time-budget", budget, limits.time_budget, plan.seconds(likely)),
        ("--gpu-hours", limits.gpu_hours, limits.gpu_hours, worker_hours * limits.resources.gpus_per_worker),
        ("--cpu-hours", limits.cpu_hours, limits.cpu_hours, worker_hours * limits.resources.cpus_per_worker),
    ):
        if limit is not None and needed > limit:
            _line(console, f"{flag} {shown} would probably end the search before its last trial.", "yellow")


def _print_rest(plan: Plan, console: Console) -> None:
    """Disk, resources, rules, places."""
    room, config, each = plan.room, plan.config, plan.config.resources
    console.print("\nDisk, resources, places", style="bold")
    for line in (
        f"disk: up to {room.needed / GB:.3g} GB ({room.trials} trials at a time x 2 checkpoints x "
        f"{room.checkpoint / GB:.3g} GB, {room.models} final models x {room.model / GB:.3g} GB)",
        f"a trial: {each.workers_per_trial} workers, each with {each.cpus_per_worker:g} CPUs and "
        f"{each.gpus_per_worker:g} GPUs",
        f"sampler {config.sampler.name} with seed {config.seed}; {_scheduler(config.scheduler)}; {_sought(config)}",
        f"MLflow: {plan.tracking_uri}",
    ):
        _line(console, f"  {line}")
    _line(console, "Nothing was recorded. Without --plan the search starts.")


def _sought(config: SearchConfig) -> str:
    """What is best, in words."""
    if config.objectives:
        return f"the front of {', '.join(map(str, config.objectives))}"
    return f"the {'largest' if config.mode == 'max' else 'smallest'} {config.metric} is best"


def _scheduler(scheduler: SchedulerConfig) -> str:
    """Who is stopped early, in words."""
    if scheduler.name == "none":
        return "no trial is stopped early"
    if scheduler.name == "pbt":
        return (
            f"pbt stops the worst {scheduler.quantile:.0%} and forks the best from step {scheduler.grace_period} on, "
            f"once {scheduler.population} have begun; who is stopped is not in these figures, which are upper bounds"
        )
    reduction = f", reduction factor {scheduler.reduction_factor:g}" if scheduler.name != "median" else ""
    return f"{scheduler.name} stops trials from step {scheduler.grace_period} on{reduction}"


def _words(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={number(value)}" for name, value in values.items())


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
