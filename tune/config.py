"""What a search is asked to do: its YAML file and the command line, checked and merged."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psalm.train.arguments import argument_fields, check_inputs, check_setting, check_settings, with_defaults
from psalm.train.fields import nearest
from psalm.train.tasks import direction, metric_names
from tune.errors import SearchError
from tune.parameters import Parameter, Value, parse_parameter
from tune.reading import Section, read_yaml
from tune.resources import TrialResources
from tune.space import SearchSpace

SAMPLERS = ("tpe", "random")
SCHEDULERS = ("asha", "none")

OWNED = {
    "output_dir": "every trial has its own folder below the search's",
    "report_to": "trials are recorded by the search",
}
"""Arguments that a search sets itself."""

DEFAULTS = {"eval_strategy": "steps", "disable_tqdm": True}
"""Arguments that differ in a search, unless its file says otherwise: the metric is needed more than once."""


@dataclass(frozen=True)
class SamplerConfig:
    """Who proposes settings: ``tpe`` (arXiv 2304.11127) after some random start-up trials, or ``random``."""

    name: str = "tpe"
    n_startup_trials: int = 10


@dataclass(frozen=True)
class SchedulerConfig:
    """Who stops trials early: ``asha`` (arXiv 1810.05934) or ``none``. Steps are global training steps."""

    name: str = "asha"
    grace_period: int = 1
    reduction_factor: float = 3.0


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
    baselines: tuple[dict[str, Value], ...]
    arguments: dict[str, Any]
    notes: tuple[str, ...] = ()
    """What the user should know before the start."""

    @property
    def max_steps(self) -> int:
        """Length of a full trial in global steps."""
        return int(self.arguments["max_steps"])

    def as_record(self) -> dict[str, Any]:
        """What identifies this search, as JSON holds it."""
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "notes"}
        record |= {name: dataclasses.asdict(record[name]) for name in ("sampler", "scheduler", "resources")}
        return record | {"space": self.space.describe(), "baselines": list(self.baselines)}


def load_config(
    path: Path,
    assignments: Iterable[str] = (),
    num_samples: int | None = None,
    max_concurrent: int | None = None,
    seed: int | None = None,
    metric: str | None = None,
) -> SearchConfig:
    """Read and check a search; ``assignments`` are the command line's ``name=value``.

    Paths in the file are relative to its folder where something is there, else to the working directory.

    Raises:
        SettingError: the file or an option is wrong, an argument is unknown, or a value is not allowed.
    """
    file = Section("", read_yaml(path), path)
    parameters = {str(n): parse_parameter(str(n), spec, check_setting) for n, spec in file.mapping("space").items()}
    given = {str(n): _argument(str(n), value, path.parent) for n, value in file.mapping("arguments", {}).items()}
    _refuse_conflicts(given, parameters)
    overrides = {name: _argument(name, value, Path()) for name, value in map(_assignment, assignments)}
    parameters = {name: parameter for name, parameter in parameters.items() if name not in overrides}
    arguments = {name: value for name, value in DEFAULTS.items() if name not in parameters} | given | overrides
    _check_length(arguments)

    file_seed = file.whole("seed", 0, low=0)
    seed = file_seed if seed is None else seed
    if "seed" not in parameters:
        arguments.setdefault("seed", seed)
    fixed = with_defaults(arguments)
    space = SearchSpace.build(parameters, fixed)
    baselines, notes = _baselines(file.sequence("baselines"), space, fixed, overrides)
    file_samples, file_concurrent = file.whole("num_samples", low=1), file.whole("max_concurrent", 1, low=1)
    metric = _metric(file, arguments, space, metric)
    config = SearchConfig(
        name=file.name("name"),
        metric=metric,
        mode=_mode(file, metric),
        num_samples=file_samples if num_samples is None else num_samples,
        max_concurrent=file_concurrent if max_concurrent is None else max_concurrent,
        seed=seed,
        sampler=_sampler(file.section("sampler")),
        scheduler=_scheduler(file.section("scheduler")),
        resources=_resources(file.section("resources")),
        space=space,
        baselines=baselines,
        arguments=arguments,
        notes=notes,
    )
    file.refuse_rest()
    for setting in (*baselines, *space.examples()):
        check_settings(arguments | setting)
    return config


def check_data(config: SearchConfig) -> None:
    """Files, folders and formats that the trials will read exist and fit; no model is built.

    Every searched word is tried once, because it may choose a file.

    Raises:
        SettingError: one of them is missing or not what it should be.
    """
    tried = []
    for setting in (*config.baselines, *config.space.examples()):
        words = {name: value for name, value in setting.items() if isinstance(value, str)}
        if words not in tried:
            tried.append(words)
            check_inputs(config.arguments | setting)


def _metric(file: Section, arguments: Mapping[str, Any], space: SearchSpace, given: str | None) -> str:
    """The metric that is searched: by default what a run with these tasks is judged by; every trial must have it."""
    allowed = [metric_names(with_defaults({**arguments, **setting})) for setting in space.examples()]
    of_file = file.get("metric")
    metric = given or of_file or allowed[0][0]
    if not isinstance(metric, str) or any(metric not in names for names in allowed):
        shared = [name for name in allowed[0] if all(name in names for names in allowed)]
        raise file.fail("metric", metric, f"a metric of every trial: {', '.join(shared)}{nearest(str(metric), shared)}")
    return metric


def _mode(file: Section, metric: str) -> str:
    """Which way the metric is better; a file may say it, but not otherwise."""
    known = direction(metric)
    mode = file.choice("mode", ("max", "min"), known)
    if mode != known and metric == file.content.get("metric"):
        raise file.fail("mode", mode, f"{known}, as {metric} is better that way; leave it out")
    return known


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise SearchError(f"--set {text!r} must be name=value")
    return name.strip(), value.strip()


def _argument(name: str, value: Any, folder: Path) -> Any:
    """A checked argument; a relative path is looked for in ``folder`` first."""
    if name in OWNED:
        raise SearchError(f"{name} = {value!r} cannot be set in a search: {OWNED[name]}")
    field = argument_fields().get(name)
    names_file = field is not None and (field.path or name == "deepspeed") and isinstance(value, str)
    if field is not None and names_file and value not in field.words and not os.path.isabs(value):
        beside = folder / value
        value = str(beside.resolve()) if beside.exists() else value
    return check_setting(name, value)


def _refuse_conflicts(arguments: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> None:
    for name in parameters:
        if name in OWNED:
            raise SearchError(f"space: {name} cannot be searched: {OWNED[name]}")
        if name in arguments:
            raise SearchError(f"{name} is both searched (space) and fixed (arguments); leave one out")


def _check_length(arguments: Mapping[str, Any]) -> None:
    rule = "a search needs the length of a full trial in global steps"
    if "max_steps" not in arguments:
        raise SearchError(f"arguments: max_steps is missing; {rule}")
    if arguments["max_steps"] < 1:
        raise SearchError(f"arguments: max_steps = {arguments['max_steps']} must be at least 1; {rule}")
    if arguments.get("eval_strategy") == "no":
        raise SearchError("arguments: eval_strategy = no; a search needs evaluations: use steps or epoch")


def _baselines(
    listed: list[Any], space: SearchSpace, fixed: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[tuple[dict[str, Value], ...], tuple[str, ...]]:
    """The baselines as settings of the searched arguments, and notes on those that ``--set`` rules out.

    A searched argument that a baseline does not name has its default there.
    """
    baselines, notes = [], []
    for number, raw in enumerate(listed, start=1):
        if not isinstance(raw, Mapping):
            raise SearchError(f"baseline {number} = {raw!r} must hold names with values")
        given = {str(name): check_setting(str(name), value) for name, value in raw.items()}
        for name, value in given.items():
            if name not in space.names and name not in overrides and fixed[name] != value:
                raise SearchError(
                    f"baseline {number}: {name} = {value}, but it is not searched and is {fixed[name]} in all trials; "
                    "leave it out, or search it"
                )
        setting = {name: given.get(name, fixed[name]) for name in space.names}
        refusal = space.refusal(setting)
        if refusal is None:
            baselines.append(setting)
        elif overrides:
            notes.append(f"baseline {number} is left out: {refusal}")
        else:
            raise SearchError(f"baseline {number}: {refusal}")
    return tuple(baselines), tuple(notes)


def _sampler(section: Section) -> SamplerConfig:
    config = SamplerConfig(
        name=section.choice("name", SAMPLERS, SamplerConfig.name),
        n_startup_trials=section.whole("n_startup_trials", SamplerConfig.n_startup_trials, low=1),
    )
    section.refuse_rest()
    return config


def _scheduler(section: Section) -> SchedulerConfig:
    config = SchedulerConfig(
        name=section.choice("name", SCHEDULERS, SchedulerConfig.name),
        grace_period=section.whole("grace_period", SchedulerConfig.grace_period, low=1),
        reduction_factor=section.number(
            "reduction_factor", SchedulerConfig.reduction_factor, lambda factor: factor > 1, "a number above 1"
        ),
    )
    section.refuse_rest()
    return config


def _resources(section: Section) -> TrialResources:
    resources = TrialResources(
        workers_per_trial=section.whole("workers_per_trial", TrialResources.workers_per_trial, low=1),
        cpus_per_worker=section.number(
            "cpus_per_worker", TrialResources.cpus_per_worker, lambda cpus: cpus > 0, "a number above 0"
        ),
        gpus_per_worker=section.number(
            "gpus_per_worker",
            TrialResources.gpus_per_worker,
            lambda gpus: 0 <= gpus <= 1 or (gpus > 1 and gpus % 1 == 0),
            "0, a fraction of 1, or a whole number",
        ),
    )
    section.refuse_rest()
    return resources
