"""Records to examples: what the model is given is what the files say."""

import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from psalm.constants import CLASS_TASKS, SENTINELS, TASKS
from psalm.data.coco_instances import InstanceData
from psalm.data.examples import create_examples
from psalm.data.masks import encode_mask
from psalm.data.prompts import prompt_text
from psalm.data.samples import (
    CrossImageRecord,
    InstanceRecord,
    PanopticRecord,
    ReferringRecord,
    RegionRecord,
    Segment,
    SemanticRecord,
)
from psalm.data.transforms import resize_and_pad
from psalm.data.visual_prompts import PROMPT_TYPES

GREY = np.full((6, 8, 3), 90, dtype=np.uint8)


def dots(height: int, width: int, *pixels: tuple[int, int]) -> np.ndarray:
    """A mask bool [H, W] of these pixels."""
    mask = np.zeros((height, width), dtype=bool)
    for pixel in pixels:
        mask[pixel] = True
    return mask


def nearest(mask: np.ndarray, size: int) -> np.ndarray:
    """The mask at input size, pixel by pixel: what lies under the centre of each pixel; nothing in the padding."""
    height, width = mask.shape
    scale = size / max(height, width)
    h, w = math.floor(height * scale + 0.5), math.floor(width * scale + 0.5)
    resized = np.zeros((size, size), dtype=bool)
    for y in range(h):
        for x in range(w):
            resized[y, x] = mask[int((y + 0.5) * height / h), int((x + 0.5) * width / w)]
    return resized


def disc(mask: np.ndarray, radius: int) -> np.ndarray:
    """All pixels within a radius of those of the mask, one by one."""
    wide = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        wide[y, x] = any((y - row) ** 2 + (x - column) ** 2 <= radius**2 for row, column in np.argwhere(mask))
    return wide


def at_input_size(masks: Any, size: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([nearest(mask, size) for mask in masks]))


def panoptic_record() -> PanopticRecord:
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


def referring_record(*masks: np.ndarray) -> ReferringRecord:
    stacked = np.array(masks, dtype=bool).reshape(-1, 6, 8)
    return ReferringRecord(44, "44.jpg", GREY, 81, ("left dog", "the dog", "a cat's friend"), stacked)


def region_record(image: np.ndarray, masks: list[np.ndarray], prompts: list[dict[str, np.ndarray]]) -> RegionRecord:
    encoded = tuple({kind: encode_mask(mask) for kind, mask in kinds.items()} for kinds in prompts)
    return RegionRecord(44, "44.jpg", image, tuple(range(7, 7 + len(masks))), np.stack(masks), encoded)


def cross_record(masks: np.ndarray, answers: list[int]) -> CrossImageRecord:
    """A prompt image of 6 x 8 pixels with a box per answer, and a target image of the size of the masks [N, H, W]."""
    boxes = [dots(6, 8, (2, 1 + number)) for number in range(len(answers))]
    prompt = region_record(GREY, boxes, [{"box": box} for box in boxes])
    image = np.full((*masks.shape[1:], 3), 200, dtype=np.uint8)
    return CrossImageRecord(prompt, 45, "45.jpg", image, masks, np.array(answers), sample_id=3)


@pytest.mark.parametrize("task", TASKS)
def test_image_is_resized_and_named_by_its_sample(examples_of, records, task):
    record = records[task]
    example = examples_of(record).training(record, 5)
    pixels, image_size = resize_and_pad(record.image, 16)
    assert example.task == task
    assert torch.equal(example.pixel_values, pixels)
    assert (example.image_size, example.original_size) == (image_size, record.image.shape[:2])
    assert example.sample_id == {"referring": 81, "cross_image": 3}.get(task, 44)
    assert example.random_key == 5
    assert example.masks.dtype == torch.bool
    assert example.masks.shape[1:] == (16, 16)


@pytest.mark.parametrize("task", TASKS)
def test_fields_of_other_tasks_are_absent(examples_of, records, task):
    example = examples_of(records[task]).training(records[task], 5)
    with_classes, with_regions = task in CLASS_TASKS, task in ("region", "cross_image")
    assert len(example.prompt_ids) == (5 if with_classes else 0 if with_regions else 1)
    assert [example.labels is not None, example.class_order is not None] == [with_classes] * 2
    assert [example.region_masks is not None, example.region_labels is not None] == [with_regions] * 2
    assert (example.prompt_pixel_values is not None) == (task == "cross_image")


@pytest.mark.parametrize(
    ("task", "asked"),
    [
        ("panoptic", ["<image>", *["<cls>"] * 5, "<seg>"]),
        ("semantic", ["<image>", *["<cls>"] * 5, "<seg>"]),
        ("instance", ["<image>", *["<cls>"] * 5, "<seg>"]),
        ("referring", ["<image>", "<refer>", "<seg>"]),
        ("region", ["<image>", *["<region>"] * 3, "<seg>"]),
        ("cross_image", ["<image>", *["<region>"] * 3, "<image1>", "<seg>"]),
    ],
)
def test_sentinels_stand_where_the_prompt_has_them(examples_of, records, tokenizer, task, asked):
    """The prompt is walked through character by character: with this tokenizer each is a token."""
    ids = examples_of(records[task]).training(records[task], 5).input_ids.tolist()
    text = prompt_text(task, classes=5, regions=3)
    one_token = {**SENTINELS, **{name: tokenizer.convert_tokens_to_ids(name) for name in ("[SEG]", "<|endoftext|>")}}
    expected, sentinels = [], []
    while text:
        special = next((name for name in one_token if text.startswith(name)), None)
        if special in SENTINELS:
            sentinels.append(special)
        character = {" ": "Ġ", "\n": "Ċ"}.get(text[0], text[0])  # as byte-level BPE writes them
        expected.append(one_token[special] if special else tokenizer.convert_tokens_to_ids(character))
        text = text[len(special or text[0]) :]
    assert ids == expected
    assert sentinels == asked


@pytest.mark.parametrize("task", CLASS_TASKS)
def test_labels_follow_the_shuffled_names(examples_of, records, tokenizer, task):
    examples = examples_of(records[task])
    classes = [info.name for info in examples.data.classes]
    shown = {"panoptic": ["dog", "owl"], "semantic": ["cat", "dog", "owl"], "instance": ["cat", "dog"]}[task]
    orders = set()
    for key in range(20):
        example = examples.training(records[task], key)
        orders.add(tuple(example.class_order.tolist()))
        names = [tokenizer.decode(ids[:-1]) for ids in example.prompt_ids]
        assert [names[label] for label in example.labels.tolist()] == shown
        assert [classes[index] for index in example.class_order.tolist()] == names[:-1]
        assert names[-1] == "background"
    assert len(orders) > 5


@pytest.mark.parametrize("task", CLASS_TASKS)
def test_order_of_the_classes_is_drawn_by_the_key(examples_of, records, task):
    first, second = (examples_of(records[task]).training(records[task], 11).class_order.tolist() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("task", CLASS_TASKS)
def test_evaluation_keeps_the_order_of_the_classes(examples_of, records, task):
    example = examples_of(records[task]).evaluation(records[task], None)
    assert example.class_order.tolist() == [0, 1, 2, 3]
    assert example.labels.tolist() == {"panoptic": [1, 3], "semantic": [0, 1, 3], "instance": [0, 1]}[task]


def test_crowd_void_and_padding_are_no_panoptic_targets(examples_of):
    masks = examples_of(panoptic_record()).evaluation(panoptic_record(), None).masks
    expected = torch.zeros(2, 16, 16, dtype=torch.bool)
    expected[0, :6, :8] = True
    expected[1, 8:12, :] = True
    assert torch.equal(masks, expected)


def test_segment_that_resizing_leaves_nothing_of(examples_of):
    tiny = panoptic_record()
    tiny.segment_map[3, 0] = 1
    tiny = replace(tiny, segments=(*tiny.segments, Segment(1, 2, True, False, 1)))
    assert examples_of(tiny, size=8).evaluation(tiny, None).labels.tolist() == [1, 3, 2]
    example = examples_of(tiny, size=4).evaluation(tiny, None)
    assert example.labels.tolist() == [1, 3]
    assert example.masks.shape == (2, 4, 4)


def test_one_semantic_mask_per_class_wherever_it_is(examples_of):
    label_map = np.full((6, 8), -1, dtype=np.int32)
    label_map[0, :3], label_map[5, 6:], label_map[2:4, :] = 2, 2, 0
    record = SemanticRecord(44, "44.jpg", GREY, label_map)
    example = examples_of(record).evaluation(record, None)
    assert example.labels.tolist() == [0, 2]
    assert torch.equal(example.masks, at_input_size([label_map == 0, label_map == 2], 16))


def test_void_and_padding_are_no_semantic_targets(examples_of):
    label_map = np.full((6, 8), -1, dtype=np.int32)
    label_map[:3] = 0
    record = SemanticRecord(44, "44.jpg", GREY, label_map)
    (mask,) = examples_of(record).evaluation(record, None).masks
    assert mask[:6].all()
    assert not mask[6:].any()


def test_class_that_resizing_leaves_nothing_of(examples_of):
    label_map = np.zeros((6, 8), dtype=np.int32)
    label_map[0, 0] = 3
    record = SemanticRecord(44, "44.jpg", GREY, label_map)
    assert examples_of(record, size=8).evaluation(record, None).labels.tolist() == [0, 3]
    assert examples_of(record, size=4).evaluation(record, None).labels.tolist() == [0]


def test_instances_may_overlap_and_share_a_class(examples_of):
    masks = np.stack([dots(6, 8, (0, 0), (0, 1)), dots(6, 8, (0, 1), (5, 7)), dots(6, 8, (3, 3))])
    record = InstanceRecord(44, "44.jpg", GREY, masks, np.array([3, 1, 3]))
    example = examples_of(record).evaluation(record, None)
    assert example.labels.tolist() == [3, 1, 3]
    assert torch.equal(example.masks, at_input_size(masks, 16))


def test_instance_that_resizing_leaves_nothing_of(examples_of):
    masks = np.stack([dots(6, 8, (1, 1)), dots(6, 8, (0, 0)), dots(6, 8, (3, 3))])  # size 4 keeps odd rows and columns
    record = InstanceRecord(44, "44.jpg", GREY, masks, np.array([3, 2, 1]))
    example = examples_of(record, size=4).evaluation(record, None)
    assert example.labels.tolist() == [3, 1]
    assert torch.equal(example.masks, at_input_size(masks[[0, 2]], 4))


def test_crowds_of_a_file_are_no_instance_targets(tmp_path, prompts):
    Image.fromarray(GREY).save(tmp_path / "44.png")
    annotations = [
        {"id": number, "image_id": 44, "category_id": 5, "iscrowd": crowd, "segmentation": encode_mask(mask)}
        for number, (crowd, mask) in enumerate([(0, dots(6, 8, (0, 0))), (1, dots(6, 8, (2, 2), (2, 3)))])
    ]
    content = {
        "images": [{"id": 44, "file_name": "44.png", "height": 6, "width": 8}],
        "annotations": annotations,
        "categories": [{"id": 5, "name": "cat"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    examples = create_examples(InstanceData(tmp_path / "instances.json", (tmp_path,)), prompts, 8)
    assert torch.equal(examples.example(0, 5).masks, at_input_size([dots(6, 8, (0, 0))], 8))


@pytest.mark.parametrize(
    "nothing",
    [
        PanopticRecord(44, "44.jpg", GREY, np.zeros((6, 8), dtype=np.int32), ()),
        SemanticRecord(44, "44.jpg", GREY, np.full((6, 8), -1, dtype=np.int32)),
        InstanceRecord(44, "44.jpg", GREY, np.zeros((0, 6, 8), dtype=bool), np.zeros(0, dtype=np.int64)),
    ],
    ids=CLASS_TASKS,
)
def test_image_without_targets(examples_of, nothing):
    example = examples_of(nothing).training(nothing, 5)
    assert (example.masks.shape, example.masks.dtype) == ((0, 16, 16), torch.bool)
    assert (example.labels.shape, example.labels.dtype) == ((0,), torch.int64)


def test_one_expression_is_drawn_where_each_is_asked(examples_of, tokenizer):
    record = referring_record(dots(6, 8, (0, 0)))
    examples = examples_of(record)
    asked = Counter(tokenizer.decode(examples.training(record, key).prompt_ids[0]) for key in range(300))
    assert asked.keys() == {" left dog.[SEG]", " the dog.[SEG]", " a cat's friend.[SEG]"}
    assert min(asked.values()) > 100 - 4 * math.sqrt(300 * 1 / 3 * 2 / 3)


def test_the_key_draws_the_expression(examples_of):
    record = referring_record(dots(6, 8, (0, 0)))
    for key in range(10):
        first, second = (examples_of(record).training(record, key).prompt_ids[0].tolist() for _ in range(2))
        assert first == second


@pytest.mark.parametrize(
    ("question", "text"), [(0, " left dog."), (1, " the dog."), (None, " left dog. the dog. a cat's friend.")]
)
def test_evaluation_asks_the_expression_or_all(examples_of, tokenizer, question, text):
    record = referring_record(dots(6, 8, (0, 0)))
    (ids,) = examples_of(record).evaluation(record, question).prompt_ids
    assert tokenizer.decode(ids) == f"{text}[SEG]"


def test_joined_expressions_are_asked_together(examples_of, tokenizer):
    record = referring_record(dots(6, 8, (0, 0)))
    for key in range(5):
        (ids,) = examples_of(record, refer_expressions="joined").training(record, key).prompt_ids
        assert tokenizer.decode(ids) == " left dog. the dog. a cat's friend.[SEG]"


def test_every_object_that_is_meant_is_a_target(examples_of):
    masks = [dots(6, 8, (1, 1)), dots(6, 8, (0, 0)), dots(6, 8, (1, 1), (5, 7))]
    record = referring_record(*masks)
    assert torch.equal(examples_of(record).training(record, 5).masks, at_input_size(masks, 16))
    left = at_input_size([masks[0], masks[2]], 4)  # of the second, resizing leaves nothing
    assert torch.equal(examples_of(record, size=4).training(record, 5).masks, left)


def test_expressions_that_mean_nothing(examples_of):
    record = referring_record()
    for example in (examples_of(record).training(record, 5), examples_of(record).evaluation(record, 1)):
        assert (example.masks.shape, example.masks.dtype) == ((0, 16, 16), torch.bool)


def test_each_region_is_shown_by_one_of_its_own_prompts(examples_of):
    dot = dots(6, 8, (0, 0))
    prompts = [
        {"box": dots(6, 8, (1, 1)), "mask": dots(6, 8, (2, 2))},
        {"mask": dots(6, 8, (3, 3))},
        {"box": dots(6, 8, (4, 4)), "mask": dots(6, 8, (5, 5))},
    ]
    record = region_record(GREY, [dot] * 3, prompts)
    examples = examples_of(record, size=8)
    shown = Counter(
        tuple(tuple(mask.nonzero()[0].tolist()) for mask in examples.training(record, key).region_masks)
        for key in range(200)
    )
    assert shown.keys() == {(first, (3, 3), last) for first in [(1, 1), (2, 2)] for last in [(4, 4), (5, 5)]}
    assert min(shown.values()) > 50 - 4 * math.sqrt(200 * 1 / 4 * 3 / 4)


def test_the_key_draws_the_prompts(examples_of, records):
    examples = examples_of(records["region"])
    for key in range(5):
        first, second = (examples.training(records["region"], key).region_masks for _ in range(2))
        assert torch.equal(first, second)


def test_prompts_are_widened_at_the_size_of_the_image_and_then_resized(examples_of):
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    line = [(22, column) for column in range(20, 41)]
    shapes = {
        "point": dots(40, 60, (9, 50)),
        "box": dots(40, 60, *[(y, x) for y in range(5, 20) for x in range(3, 18)]),
        "scribble": dots(40, 60, *line),
        "mask": dots(40, 60, *[(y, x) for y in range(40) for x in range(60) if 3 * y > 2 * x]),
    }
    record = region_record(image, [dots(40, 60, (0, 0))] * 4, [{kind: mask} for kind, mask in shapes.items()])
    shown = [disc(shapes["point"], 10), shapes["box"], disc(shapes["scribble"], 5), shapes["mask"]]
    assert torch.equal(examples_of(record, size=24).training(record, 5).region_masks, at_input_size(shown, 24))


@pytest.mark.parametrize(("question", "regions"), [("box", [7]), ("point", [8]), ("scribble", [9]), ("mask", [7, 9])])
def test_evaluation_is_about_the_regions_that_have_the_type(examples_of, records, question, regions):
    record = records["region"]
    examples = examples_of(record)
    narrowed = examples.narrowed(record, question)
    example = examples.evaluation(narrowed, question)
    kept = [number - 7 for number in regions]
    assert narrowed.annotation_ids == tuple(regions)
    assert np.array_equal(narrowed.masks, record.masks[kept])
    assert [prompts[question] for prompts in narrowed.prompts] == [record.prompts[row][question] for row in kept]
    assert len(example.region_masks) == len(example.masks) == len(regions)
    assert example.region_labels.tolist() == list(range(len(regions)))


def test_evaluation_shows_every_region_by_the_type_that_is_asked(examples_of):
    shapes = {kind: dots(6, 8, (1, 1), (row, 5)) for row, kind in enumerate(PROMPT_TYPES, start=2)}
    record = region_record(GREY, [dots(6, 8, (0, 0))] * 2, [shapes, dict(reversed(shapes.items()))])
    expected = {**shapes, "point": np.ones((6, 8), dtype=bool), "scribble": disc(shapes["scribble"], 5)}
    for kind in PROMPT_TYPES:
        shown = examples_of(record, size=8).evaluation(record, kind).region_masks
        assert torch.equal(shown, at_input_size([expected[kind]] * 2, 8)), kind


@pytest.mark.parametrize("height", [16, 13])
@pytest.mark.parametrize("size", [3, 5, 6])
def test_prompt_of_which_resizing_leaves_nothing_keeps_its_pixel(examples_of, height, size):
    """One pixel each: the pixel that holds its centre."""
    image = np.zeros((height, 16, 3), dtype=np.uint8)
    h = math.floor(height * size / 16 + 0.5)
    vanished = 0
    for y, x in np.ndindex(height, 16):
        mask = dots(height, 16, (y, x))
        record = region_record(image, [mask], [{"mask": mask}])
        (shown,) = examples_of(record, size=size).training(record, 5).region_masks
        vanished += not nearest(mask, size).any()
        assert shown.nonzero().tolist() == [[int((y + 0.5) * h / height), int((x + 0.5) * size / 16)]]
    assert vanished > 100


def test_the_pixel_that_is_kept_is_one_of_the_prompt(examples_of):
    """Size 4 sees rows and columns 2, 6, 10 and 14 only; between the prompt's pixels lies something else."""
    mask = dots(16, 16, (0, 0), (0, 15), (1, 0), (14, 15))
    record = region_record(np.zeros((16, 16, 3), dtype=np.uint8), [mask], [{"mask": mask}])
    (shown,) = examples_of(record, size=4).training(record, 5).region_masks
    (kept,) = shown.nonzero().tolist()
    assert kept in [[0, 0], [0, 3], [3, 3]]


def test_regions_whose_targets_vanish_have_no_answer(examples_of):
    masks = [dots(6, 8, (0, 0)), dots(6, 8, (1, 1)), dots(6, 8, (2, 2)), dots(6, 8, (5, 7))]
    record = region_record(GREY, masks, [{"box": np.ones((6, 8), dtype=bool)}] * 4)
    assert examples_of(record, size=8).training(record, 5).region_labels.tolist() == [0, 1, 2, 3]
    example = examples_of(record, size=4).training(record, 5)
    assert example.region_labels.tolist() == [-1, 0, -1, 1]
    assert torch.equal(example.masks, at_input_size([masks[1], masks[3]], 4))
    assert example.region_masks.shape == (4, 4, 4)


def test_no_target_left(examples_of):
    record = region_record(GREY, [dots(6, 8, (0, 0))], [{"box": np.ones((6, 8), dtype=bool)}])
    example = examples_of(record, size=4).training(record, 5)
    assert example.masks.shape == (0, 4, 4)
    assert (example.region_labels.tolist(), example.region_labels.dtype) == ([-1], torch.int64)


def test_regions_share_masks_and_some_have_none(examples_of):
    masks = np.stack([dots(12, 4, (0, 0), (11, 3)), dots(12, 4, (5, 2))])
    record = cross_record(masks, [1, -1, 0, 1])
    for example in (examples_of(record).training(record, 5), examples_of(record).evaluation(record, None)):
        assert example.region_labels.tolist() == [1, -1, 0, 1]
        assert example.region_labels.dtype == torch.int64
        assert torch.equal(example.masks, at_input_size(masks, 16))


def test_prompts_lie_on_the_prompt_image_whatever_its_size(examples_of):
    record = cross_record(dots(12, 4, (5, 2))[None], [0, 0])
    example = examples_of(record).training(record, 5)
    prompt_pixels, _ = resize_and_pad(record.prompt.image, 16)
    assert torch.equal(example.prompt_pixel_values, prompt_pixels)
    assert torch.equal(example.region_masks, at_input_size([dots(6, 8, (2, 1)), dots(6, 8, (2, 2))], 16))
    assert (example.image_size, example.original_size) == ((16, 5), (12, 4))


def test_answers_are_renumbered_after_a_mask_vanishes(examples_of):
    masks = np.stack([dots(16, 16, (2, 2)), dots(16, 16, (0, 0)), dots(16, 16, (6, 6))])  # size 4: 2, 6, 10 and 14
    record = cross_record(masks, [2, 0, 1, -1, 2])
    example = examples_of(record, size=4).training(record, 5)
    assert example.region_labels.tolist() == [1, 0, -1, -1, 1]
    assert torch.equal(example.masks, at_input_size(masks[[0, 2]], 4))


def test_target_without_anything_that_is_asked_for(examples_of):
    record = cross_record(np.zeros((0, 12, 4), dtype=bool), [-1, -1])
    example = examples_of(record).training(record, 5)
    assert example.masks.shape == (0, 16, 16)
    assert (example.region_labels.tolist(), example.region_labels.dtype) == ([-1, -1], torch.int64)


def test_evaluation_draws_prompts_by_the_pairs_number(examples_of, records):
    shown = set()
    for number in range(20):
        record = replace(records["cross_image"], sample_id=number)
        first, second = (examples_of(record).evaluation(record, None).region_masks for _ in range(2))
        assert torch.equal(first, second)
        shown.add(first.numpy().tobytes())
    assert len(shown) == 4  # the first and the last region have two types, the other one
