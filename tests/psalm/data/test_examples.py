"""Records to examples to batches: what the model is given is what the files say."""

import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from psalm.constants import CLS_TOKEN_INDEX
from psalm.data.coco_panoptic import PanopticDataset
from psalm.data.collator import Collator
from psalm.data.examples import PanopticEvaluation, PanopticExamples, panoptic_example
from psalm.data.prompts import PromptBuilder
from psalm.data.samples import ClassInfo, PanopticRecord, Segment
from psalm.data.schedule import TrainingSchedule

CLASSES = tuple(ClassInfo(name, True, 10 * i) for i, name in enumerate(["cat", "dog", "large grey horse", "owl"]))


def record() -> PanopticRecord:
    """6 x 8 pixels: a dog, a crowd of cats, an owl, void."""
    segment_map = np.zeros((6, 8), dtype=np.int32)
    segment_map[:3, :4] = 500
    segment_map[:3, 4:] = 9
    segment_map[4:, :] = 70_000
    segments = (
        Segment(500, 1, True, False, 12),
        Segment(9, 0, True, True, 12),
        Segment(70_000, 3, True, False, 16),
    )
    return PanopticRecord(44, "44.jpg", np.zeros((6, 8, 3), dtype=np.uint8), segment_map, segments)


@pytest.fixture(scope="module")
def prompts(tokenizer) -> PromptBuilder:
    return PromptBuilder(tokenizer)


def test_evaluation_keeps_the_order_of_the_classes(prompts):
    example = panoptic_example(record(), CLASSES, prompts, 16, None)
    assert example.class_order.tolist() == [0, 1, 2, 3]
    assert example.labels.tolist() == [1, 3]
    assert (example.image_size, example.original_size, example.sample_id) == ((12, 16), (6, 8), 44)
    assert example.random_key == panoptic_example(record(), CLASSES, prompts, 16, None).random_key


def test_crowd_void_and_padding_are_no_targets(prompts):
    masks = panoptic_example(record(), CLASSES, prompts, 16, None).masks
    assert masks.shape == (2, 16, 16)
    assert masks.dtype == torch.bool
    expected = torch.zeros(2, 16, 16, dtype=torch.bool)
    expected[0, :6, :8] = True
    expected[1, 8:12, :] = True
    assert torch.equal(masks, expected)


def test_labels_follow_the_shuffled_names(prompts, tokenizer):
    orders = set()
    for key in range(20):
        example = panoptic_example(record(), CLASSES, prompts, 16, key)
        orders.add(tuple(example.class_order.tolist()))
        names = [tokenizer.decode(ids[:-1]) for ids in example.class_ids]
        assert [names[label] for label in example.labels.tolist()] == ["dog", "owl"]
        assert [CLASSES[index].name for index in example.class_order.tolist()] == names[:-1]
        assert names[-1] == "background"
        assert example.input_ids.tolist().count(CLS_TOKEN_INDEX) == len(names) == 5
    assert len(orders) > 5


def test_segment_that_resizing_leaves_nothing_of(prompts):
    tiny = record()
    tiny.segment_map[3, 0] = 1
    tiny = replace(tiny, segments=(*tiny.segments, Segment(1, 2, True, False, 1)))
    assert panoptic_example(tiny, CLASSES, prompts, 8, None).labels.tolist() == [1, 3, 2]
    assert panoptic_example(tiny, CLASSES, prompts, 2, None).labels.tolist() in ([1, 3], [1])


def test_image_without_targets(prompts):
    empty = replace(record(), segment_map=np.zeros((6, 8), dtype=np.int32), segments=())
    example = panoptic_example(empty, CLASSES, prompts, 16, 5)
    assert example.masks.shape == (0, 16, 16)
    assert example.labels.shape == (0,)
    assert example.labels.dtype == torch.int64


def test_batch(prompts):
    long = (*CLASSES[:3], ClassInfo("extraordinarily long name", True, 40))
    examples = [
        panoptic_example(record(), CLASSES, prompts, 16, 3),
        replace(panoptic_example(record(), long, prompts, 16, 4), input_ids=torch.tensor([5, -200, 6])),
    ]
    batch = Collator(prompts.pad_token_id)(examples)
    length = len(examples[0].input_ids)
    assert batch["task"] == "panoptic"
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["image_sizes"].tolist() == [[12, 16]] * 2
    assert batch["original_sizes"].tolist() == [[6, 8]] * 2
    assert batch["sample_ids"].tolist() == [44, 44]
    assert batch["random_keys"].tolist() == [3, 4]
    assert batch["input_ids"][1].tolist() == [5, -200, 6] + [prompts.pad_token_id] * (length - 3)
    assert batch["attention_mask"].sum(1).tolist() == [length, 3]
    assert batch["class_ids"].shape == batch["class_mask"].shape == (2, 5, 26)
    for row, example in enumerate(examples):
        for position, ids in enumerate(example.class_ids):
            shown = batch["class_ids"][row, position][batch["class_mask"][row, position]]
            assert torch.equal(shown, ids)
            assert torch.equal(batch["class_ids"][row, position, : len(ids)], ids)
    assert batch["class_order"].shape == (2, 4)
    assert [tuple(masks.shape) for masks in batch["mask_labels"]] == [(2, 16, 16)] * 2
    assert [labels.tolist() for labels in batch["class_labels"]] == [e.labels.tolist() for e in examples]


def test_batch_refusals(prompts):
    example = panoptic_example(record(), CLASSES, prompts, 16, 3)
    collate = Collator(0)
    with pytest.raises(ValueError, match=r"exactly one task, but got \['panoptic', 'region'\]"):
        collate([example, replace(example, task="region")])
    with pytest.raises(ValueError, match=r"equally many classes, but got \[4, 5\]"):
        collate([example, replace(example, class_ids=example.class_ids[1:])])


def test_builtin_data_through_the_whole_pipeline(builtin_root, prompts):
    train = PanopticExamples(PanopticDataset(builtin_root, "train"), prompts, 64)
    schedule = TrainingSchedule({"panoptic": train}, seed=0, total_steps=3, samples_per_step=4)
    batch = Collator(prompts.pad_token_id)([pickle.loads(pickle.dumps(schedule))[i] for i in range(4)])
    assert batch["pixel_values"].shape == (4, 3, 64, 64)
    evaluation = PanopticEvaluation(PanopticDataset(builtin_root, "val"), prompts, 64)
    assert [example.sample_id for example in (evaluation[i] for i in range(len(evaluation)))] == list(
        evaluation.dataset.image_ids
    )
    for example in (evaluation[i] for i in range(len(evaluation))):
        h, w = example.image_size
        assert example.masks.sum(0)[:h, :w].eq(1).all()  # every pixel of the image belongs to exactly one segment
        assert not example.masks[:, h:].any()
        assert not example.masks[:, :, w:].any()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_bad_images_met_by_workers_are_replaced_and_counted_here(builtin_root, tmp_path, prompts, start):
    root = shutil.copytree(builtin_root, tmp_path / "copy")
    (root / "train2017" / "000000100003.jpg").unlink()
    dataset = PanopticDataset(root, "train", skip_bad_images=True)
    schedule = TrainingSchedule({"panoptic": PanopticExamples(dataset, prompts, 32)}, 0, 5, 2)
    loader = DataLoader(schedule, batch_size=2, num_workers=1, collate_fn=list, multiprocessing_context=start)
    samples = [example.sample_id for batch in loader for example in batch]
    assert len(samples) == 10
    assert set(samples) == set(dataset.image_ids) - {100003}
    assert dataset.bad_images == ("000000100003.jpg",)
