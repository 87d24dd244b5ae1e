"""Examples of one task to a batch: everything is padded to the longest, and nothing of it is lost."""

from dataclasses import replace

import pytest
import torch

from psalm.constants import CLASS_TASKS, REGION_TASKS, TASKS
from psalm.data.collator import Collator

COMMON = {
    "task",
    "pixel_values",
    "image_sizes",
    "original_sizes",
    "sample_ids",
    "random_keys",
    "input_ids",
    "attention_mask",
    "prompt_length",
    "mask_labels",
}
WORDS, CLASSES, REGIONS = (
    {"prompt_ids", "prompt_mask"},
    {"class_order", "class_labels"},
    {"region_masks", "region_labels"},
)
KEYS = {
    **dict.fromkeys(CLASS_TASKS, COMMON | WORDS | CLASSES),
    "referring": COMMON | WORDS,
    "region": COMMON | REGIONS,
    "cross_image": COMMON | REGIONS | {"prompt_pixel_values"},
}


@pytest.fixture
def pair_of(examples_of, records):
    """Task -> two examples of different prompts: a shorter one first."""

    def make(task):
        record = records[task]
        examples = examples_of(record)
        if task == "referring":
            return [examples.evaluation(record, question) for question in (1, 2)]
        first, second = (examples.training(record, key) for key in (3, 4))
        if task in REGION_TASKS:
            fewer = examples_of(records["region"]).narrowed(records["region"], "mask")
            short = replace(record, prompt=fewer, answers=record.answers[[0, 2]]) if task == "cross_image" else fewer
            first = examples.training(short, 3)
        if task in CLASS_TASKS:
            first = replace(first, prompt_ids=[ids[-4:] for ids in first.prompt_ids], input_ids=first.input_ids[9:])
        return [first, second]

    return make


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_holds_what_its_task_needs(pair_of, task):
    assert Collator(0)(pair_of(task)).keys() == KEYS[task]


@pytest.mark.parametrize("task", TASKS)
def test_images_and_numbers_are_stacked(pair_of, task):
    first, second = pair_of(task)
    batch = Collator(0)([first, replace(second, sample_id=2**40, random_key=2**63 - 1, original_size=(3, 4))])
    assert batch["task"] == task
    assert torch.equal(batch["pixel_values"], torch.stack([first.pixel_values, second.pixel_values]))
    assert batch["image_sizes"].tolist() == [list(first.image_size), list(second.image_size)]
    assert batch["original_sizes"].tolist() == [list(first.original_size), [3, 4]]
    assert batch["sample_ids"].tolist() == [first.sample_id, 2**40]
    assert batch["random_keys"].tolist() == [first.random_key, 2**63 - 1]
    assert [masks is example.masks for masks, example in zip(batch["mask_labels"], (first, second), strict=True)]


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_padded_at_the_right(pair_of, task):
    examples = pair_of(task)
    examples[0] = replace(examples[0], input_ids=torch.tensor([5, -200, 6]))
    batch = Collator(77)(examples)
    length = len(examples[1].input_ids)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [[5, -200, 6] + [77] * (length - 3), examples[1].input_ids.tolist()]
    assert batch["attention_mask"].tolist() == [[True] * 3 + [False] * (length - 3), [True] * length]


@pytest.mark.parametrize("task", [*CLASS_TASKS, "referring"])
def test_words_are_padded_at_the_right(pair_of, task):
    examples = pair_of(task)
    batch = Collator(77)(examples)
    longest = max(len(ids) for example in examples for ids in example.prompt_ids)
    asked = 1 if task == "referring" else 5
    assert batch["prompt_ids"].shape == batch["prompt_mask"].shape == (2, asked, longest)
    for row, example in enumerate(examples):
        for position, ids in enumerate(example.prompt_ids):
            padding = longest - len(ids)
            assert batch["prompt_ids"][row, position].tolist() == ids.tolist() + [77] * padding
            assert batch["prompt_mask"][row, position].tolist() == [True] * len(ids) + [False] * padding


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("pad_token_id", [0, 5])
def test_prompt_length_counts_the_tokens_of_the_longest_prompt(pair_of, task, pad_token_id):
    """Text tokens (all ids that are no sentinel) and what is asked: tokens of words, or one per region."""
    examples = pair_of(task)
    lengths = []
    for example in examples:
        text = [token for token in example.input_ids.tolist() if token >= 0]
        words = [token for ids in example.prompt_ids for token in ids.tolist()]
        regions = 0 if example.region_masks is None else len(example.region_masks)
        lengths.append(len(text) + len(words) + regions)
    assert lengths[0] < lengths[1]
    collate = Collator(pad_token_id)
    assert [collate([example])["prompt_length"] for example in examples] == lengths
    assert collate(examples)["prompt_length"] == lengths[1]


def test_the_longest_prompt_is_not_longest_in_each_part(pair_of):
    """One example has more text, the other more words: lengths are of one example, not of the parts' maxima."""
    first, second = pair_of("referring")
    first = replace(first, input_ids=torch.arange(30), prompt_ids=[torch.arange(10)])
    second = replace(second, input_ids=torch.arange(10), prompt_ids=[torch.arange(35)])
    assert Collator(0)([first, second])["prompt_length"] == 45


@pytest.mark.parametrize("task", CLASS_TASKS)
def test_classes(pair_of, task):
    examples = pair_of(task)
    batch = Collator(0)(examples)
    assert batch["class_order"].tolist() == [example.class_order.tolist() for example in examples]
    assert [labels.tolist() for labels in batch["class_labels"]] == [example.labels.tolist() for example in examples]


@pytest.mark.parametrize("task", REGION_TASKS)
def test_regions_are_listed_by_image(pair_of, task):
    examples = pair_of(task)
    batch = Collator(0)(examples)
    assert [len(masks) for masks in batch["region_masks"]] == [2, 3]
    for row, example in enumerate(examples):
        assert torch.equal(batch["region_masks"][row], example.region_masks)
        assert torch.equal(batch["region_labels"][row], example.region_labels)


def test_prompt_images_are_stacked(pair_of):
    first, second = pair_of("cross_image")
    second = replace(second, prompt_pixel_values=-first.prompt_pixel_values)
    pixels = Collator(0)([first, second])["prompt_pixel_values"]
    assert torch.equal(pixels, torch.stack([first.prompt_pixel_values, -first.prompt_pixel_values]))


@pytest.mark.parametrize(("task", "other"), [("panoptic", "semantic"), ("referring", "region")])
def test_mixed_tasks_are_refused(pair_of, task, other):
    with pytest.raises(ValueError, match=rf"exactly one task, but got \['{task}', '{other}'\]"):
        Collator(0)([pair_of(other)[0], pair_of(task)[0]])


def test_different_numbers_of_classes_are_refused(pair_of):
    example = pair_of("panoptic")[0]
    with pytest.raises(ValueError, match=r"equally many classes, but got \[4, 5\]"):
        Collator(0)([example, replace(example, prompt_ids=example.prompt_ids[1:])])
