"""How tasks, their ratios and types of prompts are written, and what a run with them calls its metrics."""

from typing import Any

import pytest

from psalm.constants import TASKS
from psalm.train.fields import SettingError
from psalm.train.tasks import (
    METRICS,
    main_metric_names,
    metric_name,
    metric_names,
    parse_mask_types,
    parse_ratios,
    parse_tasks,
    ratios_of,
    tasks_of,
    with_mean,
)

PROMPTS = "point_visual_prompt_mask||box_visual_prompt_mask||scribble_visual_prompt_mask||mask_visual_prompt_mask"
NAMES = "panoptic, semantic, instance, referring, region, cross_image"


def settings(seg_task: str | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "seg_task": seg_task,
        "cross_image_seg_task": False,
        "data_ratio": None,
        "refer_expressions": "each",
    } | changes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("panoptic", "panoptic"),
        (" region , panoptic", "panoptic,region"),
        (["cross_image", "semantic"], "semantic,cross_image"),
        (("referring",), "referring"),
        (",".join(reversed(TASKS)), ",".join(TASKS)),
    ],
)
def test_tasks_are_read_in_every_notation(value: Any, expected: str) -> None:
    assert parse_tasks(value) == expected
    assert parse_tasks(parse_tasks(value)) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("panoptik", f"seg_task must be one or more of {NAMES}, but got 'panoptik'; did you mean 'panoptic'?"),
        ("panoptic,boxes", f"seg_task must be one or more of {NAMES}, but got 'boxes'; choose among them"),
        ("panoptic,", f"seg_task must be one or more of {NAMES}, but got ''; choose among them"),
        ("", f"seg_task must be one or more of {NAMES}, but got ''; choose among them"),
        ([], f"seg_task must be one or more of {NAMES}, but got ''; choose among them"),
        (True, f"seg_task must be one or more of {NAMES}, but got 'True'; choose among them"),
        (
            "region,panoptic,region",
            "seg_task must name each task once, but got region,panoptic,region; drop the repeated one",
        ),
    ],
)
def test_other_tasks_are_refused(value: Any, message: str) -> None:
    with pytest.raises(SettingError) as error:
        parse_tasks(value)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("panoptic=1", "panoptic=1"),
        (" region = 2 , panoptic = 0.5", "panoptic=0.5,region=2"),
        ({"cross_image": 1, "semantic": 1e-3}, "semantic=0.001,cross_image=1"),
        ({"region": "3"}, "region=3"),
    ],
)
def test_ratios_are_read_in_every_notation(value: Any, expected: str) -> None:
    assert parse_ratios(value) == expected
    assert parse_ratios(parse_ratios(value)) == expected


@pytest.mark.parametrize("value", ["panoptic", "=1", "", "panoptic=1,", "boxes=1", "panoptic=1,panoptic=2", {"box": 1}])
def test_ratios_of_no_task_or_of_one_twice_are_refused(value: Any) -> None:
    with pytest.raises(SettingError) as error:
        parse_ratios(value)
    assert str(error.value) == (
        "data_ratio must name each task once with its weight, as in panoptic=1,region=2, "
        f"but got {value!r}; tasks are {NAMES}"
    )


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "much", ""])
def test_ratios_that_are_no_numbers_above_0_are_refused(weight: str) -> None:
    with pytest.raises(SettingError) as error:
        parse_ratios(f"region=1,panoptic={weight}")
    assert str(error.value) == (
        f"data_ratio of panoptic must be a number above 0, but got {weight!r}; choose another value"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("box", "box_visual_prompt_mask"),
        ("box_visual_prompt_mask||point", "box_visual_prompt_mask||point_visual_prompt_mask"),
        ("mask, scribble", "mask_visual_prompt_mask||scribble_visual_prompt_mask"),
        (["point", "box_visual_prompt_mask", "point"], "point_visual_prompt_mask||box_visual_prompt_mask"),
        (PROMPTS, PROMPTS),
    ],
)
def test_types_of_prompts_are_read_in_every_notation(value: Any, expected: str) -> None:
    assert parse_mask_types(value) == expected


@pytest.mark.parametrize(("value", "got"), [("box||circle", "circle"), ("", ""), ([], ""), ("||", "||")])
def test_other_types_of_prompts_are_refused(value: Any, got: str) -> None:
    with pytest.raises(SettingError) as error:
        parse_mask_types(value)
    assert str(error.value) == f"region_mask_type: visual prompts must be some of {PROMPTS}, but got {got!r}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (settings(), ("panoptic",)),
        (settings("region"), ("region",)),
        (settings(cross_image_seg_task=True), ("cross_image",)),
        (settings("panoptic,region", cross_image_seg_task=True), ("panoptic", "region", "cross_image")),
        (settings("cross_image", cross_image_seg_task=True), ("cross_image",)),
    ],
)
def test_tasks_of_a_run(given: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert tasks_of(given) == expected


def test_ratios_of_a_run() -> None:
    assert ratios_of(settings()) == {}
    assert ratios_of(settings(data_ratio="panoptic=0.5,region=2")) == {"panoptic": 0.5, "region": 2.0}


@pytest.mark.parametrize("task", TASKS)
def test_metrics_of_one_task_are_named_by_themselves(task: str) -> None:
    given = settings(task)
    assert metric_names(given) == tuple(f"eval_{name}" for name in METRICS[task])
    assert main_metric_names(given) == metric_names(given)[:1]


def test_metrics_of_a_mixture_are_named_by_task_and_led_by_their_mean() -> None:
    given = settings("panoptic,region")
    assert main_metric_names(given) == ("eval_mean", "eval_panoptic_pq", "eval_region_ciou")
    names = metric_names(given)
    assert names[0] == "eval_mean"
    assert set(names[1:]) == {f"eval_{task}_{name}" for task in ("panoptic", "region") for name in METRICS[task]}
    assert metric_name("region", "box_miou", given, "test") == "test_region_box_miou"


def test_joined_expressions_are_another_protocol_and_have_other_names() -> None:
    alone, mixed = (settings(tasks, refer_expressions="joined") for tasks in ("referring", "panoptic,referring"))
    assert main_metric_names(alone) == ("eval_ciou_joined",)
    assert set(metric_names(alone)) == {f"eval_{name}_joined" for name in METRICS["referring"]}
    assert main_metric_names(mixed) == ("eval_mean", "eval_panoptic_pq", "eval_referring_ciou_joined")


def test_mean_is_that_of_the_main_metrics() -> None:
    given = settings("panoptic,instance,region")
    metrics = {"eval_panoptic_pq": 30.0, "eval_instance_ap": 0.0, "eval_region_ciou": 60.0, "eval_region_miou": 99.0}
    assert with_mean(metrics, given) == {"eval_mean": 30.0, **metrics}
    assert next(iter(with_mean(metrics, given))) == "eval_mean"
    other = {name.replace("eval", "test"): value for name, value in metrics.items()}
    assert with_mean(other, given, "test")["test_mean"] == 30.0


def test_without_a_main_metric_there_is_no_mean() -> None:
    metrics = {"eval_panoptic_pq": 30.0, "eval_region_miou": 99.0}
    assert with_mean(metrics, settings("panoptic,region")) == metrics


def test_one_task_has_no_mean() -> None:
    assert with_mean({"eval_pq": 30.0}, settings("panoptic")) == {"eval_pq": 30.0}
