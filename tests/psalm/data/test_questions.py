"""Evaluation asks every question about every sample once, always in the same way."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from psalm.constants import TASKS
from psalm.data.coco_instances import InstanceData, locate_instances
from psalm.data.coco_panoptic import PanopticData
from psalm.data.coco_semantic import SemanticData
from psalm.data.cross_image import CrossImageData
from psalm.data.dataset import JoinedData, TaskData
from psalm.data.examples import create_examples
from psalm.data.interactive import RegionData
from psalm.data.questions import Evaluation
from psalm.data.refer_coco import ReferringData
from psalm.data.samples import Example


def others(record: Any) -> list[Any]:
    """Three samples of a record's task, told apart by their numbers."""
    key = "sample_id" if hasattr(record, "sample_id") else "image_id"
    return [replace(record, **{key: number}) for number in (31, 5, 9)]


def assert_same(first: Example, second: Example) -> None:
    """In every field, bit by bit."""
    values, expected = ({k: v for k, v in vars(example).items() if k != "task"} for example in (first, second))
    assert first.task == second.task
    torch.testing.assert_close(values, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("task", "questions"),
    [
        ("panoptic", [None]),
        ("semantic", [None]),
        ("instance", [None]),
        ("referring", [0, 1, 2]),
        ("region", ["point", "box", "scribble", "mask"]),
        ("cross_image", [None]),
    ],
)
def test_every_question_about_every_sample_once_and_in_order(examples_of, records, task, questions):
    samples = others(records[task])
    evaluation = Evaluation(examples_of(*samples))
    asked = [evaluation[item] for item in range(len(evaluation))]
    assert [each.item for each in asked] == list(range(3 * len(questions)))
    assert [each.question for each in asked] == questions * 3
    assert [each.example.sample_id for each in asked] == [n for n in (31, 5, 9) for _ in questions]
    assert (evaluation.task, evaluation.data) == (task, evaluation.examples.data)


def test_joined_expressions_are_one_question(examples_of, records):
    evaluation = Evaluation(examples_of(*others(records["referring"]), refer_expressions="joined"))
    assert [evaluation[item].question for item in range(len(evaluation))] == [None] * 3
    assert len(evaluation[0].example.prompt_ids) == 1


@pytest.mark.parametrize("task", TASKS)
def test_examples_depend_on_record_and_question_only(examples_of, records, task):
    """Not on how often they are made, in which order, or what else is evaluated."""
    samples = others(records[task])
    evaluation = Evaluation(examples_of(*samples))
    backwards = Evaluation(examples_of(*samples[::-1]))
    by_question = {}
    for item in reversed(range(len(backwards))):
        asked = backwards[item]
        by_question[asked.example.sample_id, asked.question] = asked.example
    for item in range(len(evaluation)):
        asked = evaluation[item]
        assert_same(asked.example, evaluation[item].example)
        assert_same(asked.example, by_question[asked.example.sample_id, asked.question])
    assert len(by_question) == len(evaluation)


@pytest.mark.parametrize("task", TASKS)
def test_questions_have_keys_of_their_own(examples_of, records, task):
    evaluation = Evaluation(examples_of(*others(records[task])))
    assert len({evaluation[item].example.random_key for item in range(len(evaluation))}) == len(evaluation)


def test_records_are_narrowed_to_the_question(examples_of, records):
    evaluation = Evaluation(examples_of(records["region"]))
    regions = {}
    for item in range(len(evaluation)):
        asked = evaluation[item]
        regions[asked.question] = asked.record.annotation_ids
        assert len(asked.example.region_masks) == len(asked.record.masks) == len(asked.record.prompts)
    assert regions == {"point": (8,), "box": (7,), "scribble": (9,), "mask": (7, 9)}


def test_bad_images_are_left_out_with_all_their_questions(examples_of, records, monkeypatch):
    examples = examples_of(*others(records["referring"]))
    monkeypatch.setattr(examples.data, "good_indices", lambda: [0, 2])
    evaluation = Evaluation(examples)
    assert evaluation.items == [(index, question) for index in (0, 2) for question in range(3)]


READERS: dict[str, Callable[[Any, str], TaskData]] = {
    "panoptic": PanopticData,
    "semantic": SemanticData,
    "instance": lambda root, split: InstanceData(*locate_instances(root, split)),
    "referring": lambda root, split: ReferringData(root / f"refer_{split}_psalm.json", split, [root / f"{split}2017"]),
    "region": lambda root, split: RegionData(root / f"coco_interactive_{split}_psalm.json", [root / f"{split}2017"]),
    "cross_image": lambda root, split: CrossImageData(root / f"coco_cross_{split}.json", [root / f"{split}2017"]),
}


@pytest.mark.parametrize("task", TASKS)
def test_builtin_data_are_evaluated_whole(builtin_root, prompts, task):
    data = READERS[task](builtin_root, "val")
    evaluation = Evaluation(create_examples(data, prompts, 64))
    assert len(evaluation) == sum(len(data.questions(index)) for index in range(len(data))) >= 4
    for item in range(len(evaluation)):
        example = evaluation[item].example
        h, w = example.image_size
        assert example.masks[:, :h, :w].any(2).any(1).all()
        assert not example.masks[:, h:].any()
        assert not example.masks[:, :, w:].any()


def test_panoptic_targets_of_the_builtin_data_cover_the_image_once(builtin_root, prompts):
    evaluation = Evaluation(create_examples(PanopticData(builtin_root, "val"), prompts, 64))
    assert tuple(evaluation[item].example.sample_id for item in range(4)) == evaluation.data.image_ids
    for item in range(4):
        h, w = evaluation[item].example.image_size
        assert evaluation[item].example.masks.sum(0)[:h, :w].eq(1).all()


def test_joined_data_are_asked_as_their_parts(builtin_root, prompts):
    data = READERS["region"](builtin_root, "val")
    joined = JoinedData([data.select([2, 3]), data.select([0, 1])])
    evaluation, plain = (Evaluation(create_examples(each, prompts, 64)) for each in (joined, data))
    expected = {(asked.example.sample_id, asked.question): asked.example for asked in map(plain.__getitem__, range(16))}
    assert len(evaluation) == len(expected) == 16
    for item in range(16):
        asked = evaluation[item]
        assert_same(asked.example, expected[asked.example.sample_id, asked.question])
