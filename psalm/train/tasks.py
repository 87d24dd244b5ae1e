"""The tasks of a run: how they are written in settings, and what they are scored by.

Names of metrics: ``eval_pq`` where a run has one task, ``eval_panoptic_pq`` where it has several; those of referring
end with ``_joined`` where all expressions of a sample are asked at once, because their protocol is another one.
"""

from collections.abc import Mapping
from typing import Any, Literal

from psalm.constants import CROSS_IMAGE, INSTANCE, PANOPTIC, REFERRING, REGION, SEMANTIC, TASKS
from psalm.data.visual_prompts import parse_prompt_types
from psalm.train.fields import SettingError, nearest

METRICS: dict[str, tuple[str, ...]] = {
    PANOPTIC: tuple(f"{name}{group}" for name in ("pq", "sq", "rq") for group in ("", "_things", "_stuff")),
    SEMANTIC: ("miou", "fwiou", "pixel_accuracy"),
    INSTANCE: ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    REFERRING: ("ciou", "giou", "pr50", "pr70", "pr90", "n_acc", "t_acc"),
    REGION: (
        "ciou",
        "miou",
        *(f"{kind}_{name}" for kind in ("point", "box", "scribble", "mask") for name in ("ciou", "miou")),
    ),
    CROSS_IMAGE: ("miou", "ciou", "location_error"),
}
"""Metrics of each task, in percent; the first is its main one. Those of groups that the data do not have are absent."""

LOWER_IS_BETTER = ("location_error",)
"""Of all others, more is better."""

MEAN = "eval_mean"
"""The mean of the tasks' main metrics."""
JOINED = "_joined"
PER_CLASS_FILE = "per_class.json"
"""Among a run's artifacts: task -> class -> metric -> percent, at the last evaluation."""


def parse_tasks(value: Any) -> str:
    """One or more tasks, as text with commas or a list -> their names in the order of ``TASKS``, with commas.

    Raises:
        SettingError: an unknown task, one twice, or none.
    """
    names = [str(name).strip() for name in (value if isinstance(value, (list, tuple)) else str(value).split(","))]
    for name in names or [""]:
        if name not in TASKS:
            hint = nearest(name, TASKS) or "; choose among them"
            raise SettingError(f"seg_task must be one or more of {', '.join(TASKS)}, but got {name!r}{hint}")
    if len(set(names)) < len(names):
        raise SettingError(f"seg_task must name each task once, but got {','.join(names)}; drop the repeated one")
    return ",".join(task for task in TASKS if task in names)


def parse_ratios(value: Any) -> str:
    """``panoptic=1,region=2`` or a mapping -> the same as text, in the order of ``TASKS``.

    Raises:
        SettingError: it cannot be read, or names an unknown task, or a ratio is no number above 0.
    """
    pairs = value.items() if isinstance(value, Mapping) else [pair.split("=", 1) for pair in str(value).split(",")]
    ratios: dict[str, float] = {}
    for pair in pairs:
        task, ratio = (str(part).strip() for part in pair) if len(pair) == 2 else ("", "")
        if task not in TASKS or task in ratios:
            raise SettingError(
                f"data_ratio must name each task once with its weight, as in panoptic=1,region=2, but got {value!r}; "
                f"tasks are {', '.join(TASKS)}"
            )
        ratios[task] = _positive(task, ratio)
    return ",".join(f"{task}={ratios[task]:g}" for task in TASKS if task in ratios)


def parse_mask_types(value: Any) -> str:
    """Types of visual prompts as text or a list -> their names in data files, separated by ``||``.

    Raises:
        SettingError: an unknown type, or none.
    """
    try:
        kinds = parse_prompt_types("||".join(value) if isinstance(value, (list, tuple)) else str(value))
    except ValueError as error:
        raise SettingError(f"region_mask_type: {error}") from error
    return "||".join(f"{kind}_visual_prompt_mask" for kind in kinds)


def _positive(task: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise SettingError(f"data_ratio of {task} must be a number above 0, but got {text!r}; choose another value")
    return number


def tasks_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks of a run: those of ``seg_task``, and cross-image if its flag is set; panoptic if neither is given."""
    named = set((settings["seg_task"] or "").split(",")) | (
        {CROSS_IMAGE} if settings["cross_image_seg_task"] else set()
    )
    return tuple(task for task in TASKS if task in named) or (PANOPTIC,)


def ratios_of(settings: Mapping[str, Any]) -> dict[str, float]:
    """Task -> weight, for those that ``data_ratio`` names."""
    pairs = (pair.split("=") for pair in (settings["data_ratio"] or "").split(",") if pair)
    return {task: float(ratio) for task, ratio in pairs}


def metric_name(task: str, metric: str, settings: Mapping[str, Any], prefix: str = "eval") -> str:
    """What a run calls a task's metric."""
    of_task = f"{task}_" if len(tasks_of(settings)) > 1 else ""
    joined = JOINED if task == REFERRING and settings["refer_expressions"] == "joined" else ""
    return f"{prefix}_{of_task}{metric}{joined}"


def main_metric_names(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """What a run is judged by: the main metric of its task, or the mean of its tasks' and then each of them."""
    names = tuple(metric_name(task, METRICS[task][0], settings) for task in tasks_of(settings))
    return (MEAN, *names) if len(names) > 1 else names


def metric_names(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Every metric that a run with these settings can have; the first is what it is judged by."""
    tasks = tasks_of(settings)
    names = [metric_name(task, metric, settings) for task in tasks for metric in METRICS[task]]
    return (MEAN, *names) if len(tasks) > 1 else tuple(names)


def direction(name: str) -> Literal["max", "min"]:
    """Which way a metric is better, by the name that a run gives it."""
    return "min" if name.endswith(LOWER_IS_BETTER) else "max"


def with_mean(metrics: Mapping[str, float], settings: Mapping[str, Any], prefix: str = "eval") -> dict[str, float]:
    """The metrics of a run, with the mean of its tasks' main metrics first where it has several tasks.

    Without it where a main metric is missing: a mean over fewer tasks would be another number under the same name.
    """
    tasks = tasks_of(settings)
    main = [metrics.get(metric_name(task, METRICS[task][0], settings, prefix)) for task in tasks]
    if len(tasks) == 1 or None in main:
        return dict(metrics)
    return {MEAN.replace("eval", prefix): sum(value for value in main if value is not None) / len(tasks), **metrics}
