"""What a search is asked to do: its YAML file and the command line, checked and merged."""

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psalm.train.arguments import argument_fields, check_inputs, check_setting, check_settings, with_defaults
from psalm.train.fields import expand_variables, nearest
from psalm.train.inputs import check_variables
from psalm.train.learning_rates import LEARNING_RATE_CHANGES
from psalm.train.tasks import direction, metric_names
from tune.errors import SearchError
from tune.reading import Section, as_number, read_assignments, read_yaml
from tune.space.dependents import Dependents
from tune.space.expressions import Expression
from tune.space.parameters import Parameter, Value, read_space
from tune.space.space import SearchSpace
from tune.study.objectives import COSTS, Objective
from tune.study.steps import evaluation_steps, first_evaluation_after_warmup
from tune.trials.resources import TrialResources, read_resources

SAMPLERS = ("tpe", "gp", "cmaes", "random", "qmc", "grid")
SCHEDULERS = ("asha", "hyperband", "median", "pbt", "none")

OWNED = {
    "output_dir": "every trial has its own folder below the search's",
    "report_to": "trials are recorded by the search",
    "checkpoint_budget_gb": "all trials share one; use --checkpoint-budget",
    "checkpoint_budget_dir": "all trials share one; use --checkpoint-budget",
}
"""Arguments that a search sets itself."""

DEFAULTS = {"eval_strategy": "steps", "disable_tqdm": True}
"""Arguments that differ in a search, unless its file says otherwise: the metric is needed more than once."""

CHECKPOINTS = {"save_strategy": "eval_strategy", "save_steps": "eval_steps"}
"""Unless its file says otherwise, a trial saves a checkpoint whenever it is evaluated: it may have to go on from it."""

MOST_IN_GRID = 10_000
"""Settings that a grid may have."""


@dataclass(frozen=True)
class SamplerConfig:
    """Who proposes settings. None proposes one twice, and all know the baselines.

    ====== ===================================================================================================
    tpe    Watanabe 2023, arXiv 2304.11127; multivariate. The default: any space, trials that are stopped early count,
           and dozens of trials are enough
    gp     a Gaussian process with the expected improvement in logarithms, Ament et al. 2023, arXiv 2310.20708. For few,
           dear trials over numbers. It learns from trials of full length only, so with the scheduler ``none``; every
           argument must be in every trial, whatever the others are
    cmaes  the covariance matrix adaptation evolution strategy, Hansen 2016, arXiv 1604.00772; after ``--warm-start`` it
           begins where earlier trials were best, Nomura et al. 2021, arXiv 2012.06932. For many trials, a hundred and
           more, over numbers that act together; listed values are taken as if in order. Every argument must be in
           every trial
    random Bergstra and Bengio 2012 (JMLR 13): what others are compared to; for many trials at a time
    qmc    scrambled Sobol points, Owen 1998 (Journal of Complexity 14): as random, but spread evenly. To learn how the
           metric depends on each argument, or before a search with ``--warm-start``
    grid   every setting once, in a random order. For small spaces without continuous arguments, to their end
    ====== ===================================================================================================

    Of several objectives, ``tpe`` (Ozaki et al. 2022, JAIR 73) and ``gp`` (expected improvement of the hypervolume)
    learn all values of completed trials, and nothing of those stopped early (``tune.study.study``); the others never
    look at values. ``cmaes`` is for one.
    """

    name: str = "tpe"
    n_startup_trials: int = 10
    """Of ``tpe`` and ``gp``: trials with results before the first that is not random."""


@dataclass(frozen=True)
class SchedulerConfig:
    """Who stops trials early, and how. Steps are global training steps.

    ========= ================================================================================================
    asha      Li et al. 2018, arXiv 1810.05934: at each rung the best third goes on. The default: most compute saved;
              right where early values tell the final ranking (``tune.simulate`` prints their correlation)
    hyperband Li et al. 2017, arXiv 1603.06560, asynchronously: some trials skip the early rungs, some all of them.
              Where it is not known whether early values can be trusted: dearer than ASHA, never far off
    median    Golovin et al. 2017 (Vizier): stops what is worse than half of the others. Cautious; for curves that
              cross, or few trials
    pbt       Jaderberg et al. 2017, arXiv 1711.09846: the worst are stopped, and the best are forked with another
              learning rate from there on (``tune.study.population``). Where the right rate changes in the course of a
              training: for long trainings and many trials at a time, at least four
    none      every trial runs to its end: to record curves, or where a trial is cheap
    ========= ================================================================================================

    Of several objectives all but ``none`` look at the first only, and may stop a trial that would be good in another:
    ``none`` is the default then.
    """

    name: str = "asha"
    grace_period: int = 1
    """Nobody is stopped before this step. A file that does not say it means the first evaluation after the warm-up."""
    reduction_factor: float = 3.0
    """Of ``asha`` and ``hyperband``: one in so many goes on after a rung, and rungs are so many times apart."""
    population: int = 4
    """Of ``pbt``: trials that the sampler proposes, the baselines among them, before any is forked.

    As many should run at a time."""
    quantile: float = 0.25
    """Of ``pbt``: the share of the worst that are stopped, and of the best that are forked."""
    interval: int = 1
    """Of ``pbt``: trials are stopped at evaluations whose step is a multiple of it; by default at each."""


@dataclass(frozen=True)
class Confirm:
    """What is run again when all trials have ended: the best settings and the baseline, each with new seeds."""

    best: int
    seeds: int


@dataclass(frozen=True)
class SearchConfig:
    """A checked search: every name is a training argument, every value allowed for it."""

    name: str
    metric: str
    mode: str
    num_samples: int
    max_concurrent: int
    seed: int
    sampler: SamplerConfig
    scheduler: SchedulerConfig
    resources: TrialResources
    space: SearchSpace
    dependents: Dependents
    baselines: tuple[dict[str, Value], ...]
    arguments: dict[str, Any]
    confirm: Confirm | None = None
    notes: tuple[str, ...] = ()
    """What the user should know before the start."""
    objectives: tuple[Objective, ...] = ()
    """Two or more where the search is for the front of several; the first is ``metric``, by which trials are ranked."""

    @property
    def max_steps(self) -> int:
        """Length of a full trial in global steps."""
        return int(self.arguments["max_steps"])

    @property
    def most_trials(self) -> float:
        """As many as there are settings, as only baselines may be listed twice; infinite with a continuous argument.

        Forks of ``pbt`` have learning rates that are not in the space, without end.
        """
        if self.space.continuous or self.scheduler.name == "pbt":
            return math.inf
        return self.space.size + len(self.baselines) - len({frozenset(each.items()) for each in self.baselines})

    def examples(self) -> list[dict[str, Any]]:
        """All arguments of trials in which every baseline, and every value of the space, occurs."""
        settings = (*self.baselines, *self.space.examples())
        return [self.dependents.complete(self.arguments, setting) for setting in settings]

    def as_record(self) -> dict[str, Any]:
        """What identifies this search, as JSON holds it."""
        apart = ("dependents", "notes", "objectives")
        record = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in apart
        }
        record |= {name: dataclasses.asdict(record[name]) for name in ("sampler", "scheduler", "resources")}
        record["confirm"] = None if self.confirm is None else dataclasses.asdict(self.confirm)
        if self.objectives:
            record["objectives"] = [{each.name: each.mode} for each in self.objectives]
        described = {
            "space": self.space.describe(),
            "require": list(self.space.rules),
            "dependent": self.dependents.as_record(),
        }
        return record | described | {"baselines": list(self.baselines)}


def load_config(
    path: Path,
    assignments: Iterable[str] = (),
    num_samples: int | None = None,
    max_concurrent: int | None = None,
    seed: int | None = None,
    metric: str | None = None,
    resources: Iterable[str] = (),
    confirm: str | None = None,
    base: Path | None = None,
) -> SearchConfig:
    """Read and check a search; ``assignments`` and ``resources`` are the command line's ``name=value``.

    Paths in the file are relative to its folder, or to ``base``, where something is there, else to the working
    directory.

    Raises:
        SettingError: the file or an option is wrong, an argument is unknown, or a value is not allowed.
    """
    file = Section("", read_yaml(path), path)
    parameters, conditions, dependents, arguments, overrides = _read_arguments(file, base or path.parent, assignments)
    required = [Expression.parse("require", text, argument_fields()) for text in file.sequence("require")]
    _check_length(arguments)

    file_seed = file.whole("seed", 0, low=0)
    seed = file_seed if seed is None else seed
    if "seed" not in {*parameters, *dependents.leaders}:
        arguments.setdefault("seed", seed)
    fixed = with_defaults(arguments)
    space = SearchSpace.build(parameters, fixed, dependents, conditions, required)
    dependents = dependents.without(space.unsearched)
    listed = file.sequence("baselines")
    baselines, notes = (
        _baselines(listed, space, fixed, overrides, dependents)
        if "baselines" in file.content
        else _recommended(space, fixed)
    )
    file_samples, file_concurrent = file.whole("num_samples", low=1), file.whole("max_concurrent", 1, low=1)
    examples = [dependents.complete(arguments, setting) for setting in space.examples()]
    objectives = _objectives(file, examples, metric)
    metric = objectives[0].name if objectives else _metric(file, examples, metric)
    config = SearchConfig(
        name=file.name("name"),
        metric=metric,
        mode=objectives[0].mode if objectives else _mode(file, metric),
        num_samples=file_samples if num_samples is None else num_samples,
        max_concurrent=file_concurrent if max_concurrent is None else max_concurrent,
        seed=seed,
        sampler=_sampler(file.section("sampler"), space, objectives),
        scheduler=_scheduler(file.section("scheduler"), arguments, dependents, space, objectives),
        resources=_resources(file.section("resources"), resources),
        space=space,
        dependents=dependents,
        baselines=baselines,
        arguments=arguments,
        confirm=_confirm(file, confirm, arguments),
        notes=notes,
        objectives=objectives,
    )
    file.refuse_rest()
    if objectives and config.scheduler.name != "none":
        note = (
            f"{config.scheduler.name} stops trials by {metric} alone: the sampler learns nothing of those, and none of "
            "them is on the front"
        )
        config = dataclasses.replace(config, notes=(*config.notes, note))
    if config.num_samples > config.most_trials:
        most = int(config.most_trials)
        note = (
            f"num_samples = {config.num_samples}, but there are settings for {most} only: the search ends after those"
        )
        config = dataclasses.replace(config, num_samples=most, notes=(*config.notes, note))
    if config.scheduler.name == "pbt":
        _check_population(config)
        if config.max_concurrent < config.scheduler.population:
            note = (
                f"scheduler: population = {config.scheduler.population}, but max_concurrent = {config.max_concurrent}: "
                "a trial that has ended is forked no more, so the whole population should run at a time"
            )
            config = dataclasses.replace(config, notes=(*config.notes, note))
    for settings in config.examples():
        check_settings(settings)
        if settings["eval_strategy"] == "no":
            raise SearchError("eval_strategy = no, but a search needs evaluations; use steps")
    return config


def check_data(config: SearchConfig) -> None:
    """Files, folders and formats that the trials will read exist and fit; no model is built.

    Every word that differs between trials is tried once, because it may choose a file.

    Raises:
        SettingError: one of them is missing or not what it should be.
    """
    examples = config.examples()
    check_variables(*examples)
    tried = []
    for settings in examples:
        words = {name: value for name, value in settings.items() if isinstance(value, str)}
        if words not in tried:
            tried.append(words)
            check_inputs(settings)


def _read_arguments(
    file: Section, folder: Path, assignments: Iterable[str]
) -> tuple[dict[str, Parameter], dict[str, Expression], Dependents, dict[str, Any], dict[str, Any]]:
    """What is searched, when, what follows it, what is the same in all trials, and what of that the command line says.

    An argument that is searched in some trials, or follows one that is, may have a value for the others.
    """
    parameters, conditions = read_space(file.mapping("space"), check_setting, argument_fields())
    given = {str(n): _argument(str(n), value, folder) for n, value in file.mapping("arguments", {}).items()}
    _refuse_conflicts(given, parameters, conditions)
    dependents = Dependents.build(
        file.mapping("dependent", {}),
        parameters,
        given,
        lambda name, value: _argument(name, value, folder),
        conditions,
    )

    overrides = {n: _argument(n, value, Path()) for n, value in read_assignments("--set", assignments).items()}
    given |= dependents.of(overrides) | overrides
    parameters = {name: parameter for name, parameter in parameters.items() if name not in overrides}
    conditions = {name: condition for name, condition in conditions.items() if name not in overrides}
    dependents = dependents.without(overrides)
    varying = {name for name in parameters if name not in conditions}
    varying |= {name for name, leader in dependents.leaders.items() if leader not in conditions}
    arguments = {name: value for name, value in DEFAULTS.items() if name not in varying} | given
    for name, follows in CHECKPOINTS.items():
        if follows in arguments and name not in varying:
            arguments.setdefault(name, arguments[follows])
    return parameters, conditions, dependents, arguments, overrides


def _metric(file: Section, examples: Sequence[Mapping[str, Any]], given: str | None) -> str:
    """The metric that is searched: by default what a run with these tasks is judged by; every trial must have it."""
    of_file = file.get("metric")
    metric = given or of_file or metric_names(with_defaults(examples[0]))[0]
    shared = _shared_metrics(examples)
    if metric not in shared:
        raise file.fail("metric", metric, f"a metric of every trial: {', '.join(shared)}{nearest(str(metric), shared)}")
    return str(metric)


def _shared_metrics(examples: Iterable[Mapping[str, Any]]) -> list[str]:
    """The metrics that every trial has."""
    allowed = [metric_names(with_defaults(settings)) for settings in examples]
    return [name for name in allowed[0] if all(name in names for names in allowed)]


def _objectives(file: Section, examples: Sequence[Mapping[str, Any]], option: str | None) -> tuple[Objective, ...]:
    """Several objectives, if the file has them: metrics of every trial, then also costs; each the way it is better."""
    listed = file.sequence("objectives")
    if "objectives" not in file.content:
        return ()
    if option is not None or "metric" in file.content or "mode" in file.content:
        given = "metric and mode" if option is None else f"--metric {option}"
        raise SearchError(f"{file.source}: objectives say what is searched for, and so do {given}; leave one out")
    if len(listed) < 2 or not all(isinstance(each, Mapping) and len(each) == 1 for each in listed):
        raise file.fail(
            "objectives", listed, "two or more, as in [{eval_pq: max}, {step_ms: min}]; for one, give metric"
        )
    shared = _shared_metrics(examples)
    objectives: list[Objective] = []
    for number, ((name, mode),) in enumerate((each.items() for each in listed), start=1):
        left = [each for each in (*shared, *COSTS) if each not in [other.name for other in objectives]]
        allowed, rule = (left, "one of ") if objectives else (shared, "a metric of every trial: ")
        if name not in allowed:
            raise file.fail(f"objective {number}", name, f"{rule}{', '.join(allowed)}{nearest(str(name), allowed)}")
        better = "min" if name in COSTS else direction(name)
        if mode != better:
            raise file.fail(f"objectives.{name}", mode, f"{better}, as it is better that way")
        objectives.append(Objective(name, better))
    for settings in map(with_defaults, examples):
        _check_logs(settings, objectives)
    return tuple(objectives)


def _check_logs(settings: Mapping[str, Any], objectives: Iterable[Objective]) -> None:
    """What is measured while training is known from the logs."""
    measured = [each.name for each in objectives if each.name in ("step_ms", "peak_memory")]
    is_logged = settings["logging_strategy"] != "no" and settings["logging_steps"] <= settings["max_steps"]
    if measured and not is_logged:
        raise SearchError(
            f"objectives: {measured[0]} is taken from a trial's logs, but with logging_strategy = "
            f"{settings['logging_strategy']}, logging_steps = {settings['logging_steps']:g} and max_steps = "
            f"{settings['max_steps']} there are none; lower logging_steps"
        )


def _mode(file: Section, metric: str) -> str:
    """Which way the metric is better; a file may say it, but not otherwise."""
    known = direction(metric)
    mode = file.choice("mode", ("max", "min"), known)
    if mode != known and metric == file.content.get("metric"):
        raise file.fail("mode", mode, f"{known}, as {metric} is better that way; leave it out")
    return known


def _argument(name: str, value: Any, folder: Path) -> Any:
    """A checked argument; a relative path is looked for in ``folder`` first."""
    if name in OWNED:
        raise SearchError(f"{name} = {value!r} cannot be set in a search: {OWNED[name]}")
    field = argument_fields().get(name)
    if field is not None and (field.path or name == "deepspeed") and isinstance(value, str):
        value = expand_variables(value)
        beside = folder / value
        if value not in field.words and not os.path.isabs(value) and beside.exists():
            value = str(beside.resolve())
    return check_setting(name, value)


def _refuse_conflicts(
    arguments: Mapping[str, Any], parameters: Mapping[str, Parameter], conditions: Mapping[str, Expression]
) -> None:
    for name in parameters:
        if name in OWNED:
            raise SearchError(f"space: {name} cannot be searched: {OWNED[name]}")
        if name in arguments and name not in conditions:
            raise SearchError(f"{name} is both searched (space) and fixed (arguments); leave one out")


def _check_length(arguments: Mapping[str, Any]) -> None:
    rule = "a search needs the length of a full trial in global steps"
    if "max_steps" not in arguments:
        raise SearchError(f"arguments: max_steps is missing; {rule}")
    if arguments["max_steps"] < 1:
        raise SearchError(f"arguments: max_steps = {arguments['max_steps']} must be at least 1; {rule}")


def _recommended(space: SearchSpace, fixed: Mapping[str, Any]) -> tuple[tuple[dict[str, Value], ...], tuple[str, ...]]:
    """The one baseline of a search that lists none: what the trials' arguments are where nothing is searched."""
    setting = space.applicable({name: fixed[name] for name in space.names})
    refusal = space.refusal(setting)
    if refusal is None:
        return (setting,), ()
    return (), (f"no baseline: the recommended setting is not in the space: {refusal}",)


def _baselines(
    listed: list[Any],
    space: SearchSpace,
    fixed: Mapping[str, Any],
    overrides: Mapping[str, Any],
    dependents: Dependents,
) -> tuple[tuple[dict[str, Value], ...], tuple[str, ...]]:
    """The baselines as settings of the searched arguments, and notes on those that ``--set`` rules out.

    A searched argument that a baseline does not name has its default there, unless it is not searched there.
    """
    baselines, notes = [], []
    for number, raw in enumerate(listed, start=1):
        if not isinstance(raw, Mapping):
            raise SearchError(f"baseline {number} = {raw!r} must hold names with values")
        given = {str(name): check_setting(str(name), value) for name, value in raw.items()}
        for name, value in given.items():
            if name in dependents.leaders:
                raise SearchError(f"baseline {number}: {name} follows {dependents.leaders[name]}; leave it out")
            ruled_out = name in overrides or (overrides and name in space.unsearched)
            if name not in space.names and not ruled_out and fixed[name] != value:
                raise SearchError(
                    f"baseline {number}: {name} = {value}, but it is not searched and is {fixed[name]} in all trials; "
                    "leave it out, or search it"
                )
        setting = space.applicable({name: given.get(name, fixed[name]) for name in space.names})
        refusal = space.refusal(setting)
        absent = [name for name in given if name in space.conditions and name not in setting]
        if absent and not overrides:
            name = absent[0]
            refusal = f"{name} = {given[name]}, but it is searched only when {space.conditions[name]}; leave it out"
        if overrides and setting in baselines:
            refusal = "with what --set fixes it is the same as one before it"
        if refusal is None:
            baselines.append(setting)
        elif overrides:
            notes.append(f"baseline {number} is left out: {refusal}")
        else:
            raise SearchError(f"baseline {number}: {refusal}")
    return tuple(baselines), tuple(notes)


def _sampler(section: Section, space: SearchSpace, objectives: Sequence[Objective]) -> SamplerConfig:
    config = SamplerConfig(
        name=section.choice("name", SAMPLERS, SamplerConfig.name),
        n_startup_trials=section.whole("n_startup_trials", SamplerConfig.n_startup_trials, low=1),
    )
    section.refuse_rest()
    check_sampler(config.name, space)
    if config.name == "cmaes" and objectives:
        raise SearchError("sampler: name = cmaes searches for one objective, but there are several; use tpe or gp")
    return config


def check_sampler(name: str, space: SearchSpace) -> None:
    """Whether a sampler can be used on a space.

    Raises:
        SearchError: it cannot.
    """
    if name == "grid" and space.continuous:
        raise SearchError(
            f"sampler: name = grid tries every setting, but {', '.join(space.continuous)} cannot be tried value by "
            "value; use choice or int for that, or the sampler qmc"
        )
    if name == "grid" and space.size > MOST_IN_GRID:
        raise SearchError(
            f"sampler: name = grid tries every setting, but the space has {space.size:,}, of at most {MOST_IN_GRID:,}; "
            "use the sampler qmc"
        )
    if name in ("gp", "cmaes") and space.conditional:
        names = [name for group in space.linked if group.conditional for name in group.names]
        raise SearchError(
            f"sampler: name = {name} needs arguments that do not depend on each other, but {', '.join(names)} do; "
            "use the sampler tpe"
        )


def _scheduler(
    section: Section,
    arguments: Mapping[str, Any],
    dependents: Dependents,
    space: SearchSpace,
    objectives: Sequence[Objective],
) -> SchedulerConfig:
    examples = (with_defaults(dependents.complete(arguments, setting)) for setting in space.examples())
    grace_period = max(first_evaluation_after_warmup(settings) for settings in examples)
    config = SchedulerConfig(
        name=section.choice("name", SCHEDULERS, "none" if objectives else SchedulerConfig.name),
        grace_period=section.whole("grace_period", grace_period, low=1),
        reduction_factor=section.number(
            "reduction_factor", SchedulerConfig.reduction_factor, lambda factor: factor > 1, "a number above 1"
        ),
        population=section.whole("population", SchedulerConfig.population, low=2),
        quantile=section.number(
            "quantile", SchedulerConfig.quantile, lambda share: 0 < share <= 0.5, "above 0 and at most 0.5"
        ),
        interval=section.whole("interval", SchedulerConfig.interval, low=1),
    )
    section.refuse_rest()
    return config


def _check_population(config: SearchConfig) -> None:
    """Whether ``pbt`` can fork trials.

    Raises:
        SearchError: it cannot.
    """
    scheduler, settings = config.scheduler, with_defaults(config.arguments)
    name, population = "scheduler: name = pbt", f"scheduler: population = {scheduler.population}"
    if "learning_rate" not in config.space.names or "learning_rate" in config.space.conditions:
        raise SearchError(
            f"{name} changes the learning rate, but learning_rate is not searched in every trial; add it to the space"
        )
    if LEARNING_RATE_CHANGES in {*config.arguments, *config.space.names, *config.dependents.leaders}:
        raise SearchError(f"{name} sets {LEARNING_RATE_CHANGES} itself; leave it out")
    if scheduler.population >= config.num_samples:
        raise SearchError(
            f"{population} leaves none of num_samples = {config.num_samples} to fork; lower it, or raise num_samples"
        )
    plain = dataclasses.replace(config, scheduler=SchedulerConfig("none"))
    if scheduler.population > plain.most_trials:
        raise SearchError(f"{population}, but there are settings for {int(plain.most_trials)} only; lower it")
    if settings["save_strategy"] == "no":
        raise SearchError(f"{name} forks trials at their checkpoints, but save_strategy = no; leave that out")
    steps = [step for step in _steps_before_end(config) if step >= scheduler.grace_period]
    save = (
        settings["save_steps"] if settings["save_steps"] >= 1 else math.ceil(settings["save_steps"] * config.max_steps)
    )
    if steps and not any(step % save == 0 for step in steps):
        raise SearchError(
            f"{name} forks trials at their checkpoints, but save_steps = {settings['save_steps']} saves none at an "
            "evaluation before the end; leave that out"
        )
    if not any(step % scheduler.interval == 0 for step in steps):
        raise SearchError(
            f"{name}: no trial is evaluated at a multiple of interval = {scheduler.interval} between grace_period = "
            f"{scheduler.grace_period} and its end, step {config.max_steps}; lower one of them, or eval_steps"
        )


def _steps_before_end(config: SearchConfig) -> set[int]:
    """Steps at which trials are evaluated before their last."""
    steps = {step for settings in config.examples() for step in evaluation_steps(with_defaults(settings))}
    return steps - {config.max_steps}


def _confirm(file: Section, option: str | None, arguments: Mapping[str, Any]) -> Confirm | None:
    """What is confirmed: as the command line says it, else the file; nothing by default."""
    given = file.get("confirm") if option is None else option
    if given is None:
        return None
    found = re.fullmatch(r"(\d+)x(\d+)", str(given))
    best, seeds = map(int, found.groups()) if found else (0, 0)
    if best < 1 or seeds < 1:
        raise SearchError(f"confirm = {given!r} must be settings x seeds, both at least 1, e.g. 3x3")
    if "seed" not in arguments:
        raise SearchError(f"confirm = {given}, but seed is searched, so trials differ by it already; leave one out")
    return Confirm(best, seeds)


def _resources(section: Section, options: Iterable[str]) -> TrialResources:
    """A trial's resources; the command line wins over the file."""
    of_file = read_resources(section, TrialResources())
    numbers = {name: as_number(value) for name, value in read_assignments("--resources", options).items()}
    return read_resources(Section("", numbers, "--resources"), of_file)
