"""The memory ladder: less memory at every rung, the same samples in every step."""

from itertools import pairwise
from typing import Any

import pytest

from psalm.train.argument_groups import ModelArguments
from psalm.train.arguments import argument_fields, with_defaults
from tune.space.dependents import Dependents
from tune.trials.ladder import WITHOUT_EFFECT, at_least_as_large, climb, height

NONE = Dependents()


def settings(batch: int, eval_batch: int = 1, accumulation: int = 1, checkpointing: bool = False) -> dict[str, Any]:
    return with_defaults(
        {
            "per_device_train_batch_size": batch,
            "per_device_eval_batch_size": eval_batch,
            "gradient_accumulation_steps": accumulation,
            "gradient_checkpointing": checkpointing,
        }
    )


def batches(of: dict[str, Any]) -> list[tuple[bool, int, int, int]]:
    """Checkpointing, micro-batch, accumulation, evaluation batch at every rung."""
    found = []
    for rungs in range(height(of) + 1):
        changed = of | climb(of, rungs)
        found.append(
            (
                changed["gradient_checkpointing"],
                changed["per_device_train_batch_size"],
                changed["gradient_accumulation_steps"],
                changed["per_device_eval_batch_size"],
            )
        )
    return found


def test_first_checkpointing_then_half_the_micro_batch_down_to_one() -> None:
    assert batches(settings(8, eval_batch=4, accumulation=3)) == [
        (False, 8, 3, 4),
        (True, 8, 3, 4),
        (True, 4, 6, 4),
        (True, 2, 12, 2),
        (True, 1, 24, 1),
    ]


def test_checkpointing_that_is_on_is_no_rung() -> None:
    assert batches(settings(2, checkpointing=True)) == [(True, 2, 1, 1), (True, 1, 2, 1)]


def test_a_batch_that_cannot_be_halved_is_cut_to_its_largest_divisor() -> None:
    assert [batch for _, batch, _, _ in batches(settings(6, checkpointing=True))] == [6, 3, 1]
    assert [batch for _, batch, _, _ in batches(settings(5, checkpointing=True))] == [5, 1]
    assert [batch for _, batch, _, _ in batches(settings(15, checkpointing=True))] == [15, 5, 1]


def test_evaluation_in_larger_batches_than_training_is_cut_too() -> None:
    assert batches(settings(1, eval_batch=8)) == [(False, 1, 1, 8), (True, 1, 1, 8), (True, 1, 1, 1)]


def test_with_nothing_left_there_is_no_rung() -> None:
    assert height(settings(1, checkpointing=True)) == 0


@pytest.mark.parametrize("batch", range(1, 33))
def test_every_rung_needs_less_and_takes_the_same_samples(batch: int) -> None:
    rungs = batches(settings(batch, eval_batch=7, accumulation=3))
    assert {micro * accumulation for _, micro, accumulation, _ in rungs} == {batch * 3}
    assert rungs[-1] == (True, 1, batch * 3, 1)
    for (was_on, micro, _, scored), (is_on, smaller, _, fewer) in pairwise(rungs):
        assert (is_on, -smaller, -fewer) > (was_on, -micro, -scored)
        assert smaller <= micro
        assert fewer <= scored


def test_only_what_differs_is_named() -> None:
    of = settings(2, eval_batch=1)
    assert climb(of, 0) == {}
    assert climb(of, 1) == {"gradient_checkpointing": True}
    assert climb(of, 2) == {
        "gradient_checkpointing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
    }


def larger(name: str, value: Any, than: Any, dependents: Dependents = NONE) -> bool:
    rest = {"learning_rate": 1e-3, "mm_n_points": 4}
    return at_least_as_large(rest | {name: value}, rest | {name: than}, dependents)


@pytest.mark.parametrize(
    ("name", "small", "large"),
    [
        ("mm_hidden_dim", 64, 128),
        ("mm_n_heads", 4, 8),
        ("image_size", 512, 1024),
        ("per_device_train_batch_size", 2, 4),
        ("per_device_eval_batch_size", 2, 4),
        ("oversample_ratio", 2.0, 3.0),
        ("swin_type", "tiny", "small"),
        ("swin_type", "small", "base"),
        ("swin_type", "base", "large"),
        ("train_backbone", False, True),
        ("freeze_backbone", True, False),
        ("gradient_checkpointing", True, False),
    ],
)
def test_what_needs_more_memory_is_larger(name: str, small: Any, large: Any) -> None:
    assert larger(name, large, small)
    assert larger(name, small, small)
    assert not larger(name, small, large)


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("mm_reference_points", "center", "learned"),
        ("model_name_or_path", "/phi-1.5", "/phi-2"),
        ("seg_task", "panoptic", "region"),
        ("bf16", True, False),
    ],
)
def test_what_cannot_be_ordered_must_be_equal(name: str, value: Any, other: Any) -> None:
    assert not larger(name, value, other)
    assert not larger(name, other, value)
    assert larger(name, value, value)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "warmup_ratio", "mask_weight", "seed"])
def test_what_needs_no_memory_is_not_compared(name: str) -> None:
    assert larger(name, 1, 2)
    assert larger(name, 2, 1)


def test_all_that_counts_must_be_as_large() -> None:
    assert not at_least_as_large(
        {"mm_hidden_dim": 128, "mm_n_points": 2}, {"mm_hidden_dim": 64, "mm_n_points": 4}, NONE
    )


def test_what_follows_a_searched_argument_counts_but_not_its_files() -> None:
    towers = Dependents({"swin_type": {"vision_tower": {"base": "/b.pkl", "large": "/l.pkl"}}})
    assert larger("swin_type", "large", "base", towers)
    batch = Dependents({"learning_rate": {"per_device_train_batch_size": {0.1: 8, 0.2: 4}}})
    assert larger("learning_rate", 0.1, 0.2, batch)
    assert not larger("learning_rate", 0.2, 0.1, batch)
    file = Dependents({"learning_rate": {"vision_tower": {0.1: "/b.pkl", 0.2: "/l.pkl"}}})
    assert not larger("learning_rate", 0.1, 0.2, file)


def test_every_argument_of_the_model_is_ordered_equal_or_without_effect() -> None:
    """A new argument counts unless the ladder is told that it has no effect."""
    samples: dict[type, tuple[Any, Any]] = {bool: (False, True), int: (1, 2), float: (0.5, 0.6), str: ("a", "b")}
    for name in ModelArguments.__dataclass_fields__:
        kind = argument_fields()[name].kinds[0]
        one, two = ("base", "large") if name == "swin_type" else samples[kind]
        both = at_least_as_large({name: one}, {name: two}, NONE), at_least_as_large({name: two}, {name: one}, NONE)
        if name in WITHOUT_EFFECT:
            assert both == (True, True), name
        elif kind is str and name != "swin_type":
            assert both == (False, False), name
        else:
            assert both[0] != both[1], name


def test_an_argument_that_only_one_setting_has_cannot_be_compared() -> None:
    """Without it a trial has a value that is not known here."""
    small, large = {"mm_hidden_dim": 64}, {"mm_hidden_dim": 128, "mm_n_points": 4}
    assert not at_least_as_large(large, small, NONE)
    assert not at_least_as_large(small | {"mm_n_points": 8}, small, NONE)
    assert not at_least_as_large({"mm_hidden_dim": 256}, large, NONE)
    assert at_least_as_large(small | {"learning_rate": 0.1}, small, NONE)
    batch = Dependents({"learning_rate": {"per_device_train_batch_size": {0.1: 8}}})
    assert not at_least_as_large(small | {"learning_rate": 0.1}, small, batch)
