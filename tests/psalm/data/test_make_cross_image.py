"""Making cross-image files: which images are paired, what is prompted, and what is there."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from psalm.data.cross_image import CrossImageData
from psalm.data.make_cross_image import cross_image_records, main
from psalm.data.make_interactive import interactive_records
from psalm.data.masks import segmentation_area
from psalm.data.visual_prompts import PROMPT_TYPES, prompt_key

CAT, DOG, COW, ANT = 17, 18, 21, 3


def square(annotation_id: int, image_id: int, category: int, side: int = 9, **changes: Any) -> dict[str, Any]:
    corners = [1, 1, 1 + side, 1, 1 + side, 1 + side, 1, 1 + side]
    base = {"id": annotation_id, "image_id": image_id, "category_id": category, "segmentation": [corners]}
    return {**base, **changes}


def instances(*annotations: dict[str, Any]) -> dict[str, Any]:
    numbers = sorted({each["image_id"] for each in annotations}, reverse=True)
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 40, "width": 50} for number in numbers]
    return {"images": images, "annotations": list(annotations)}


def ids(annotations: list[dict[str, Any]]) -> list[int]:
    return [each["id"] for each in annotations]


def between(records: Any, prompt: int, target: int) -> dict[str, Any]:
    return next(each for each in records if (each["image_info"]["id"], each["image1_info"]["id"]) == (prompt, target))


def test_records():
    content = instances(square(1, 5, CAT), square(2, 6, CAT, area=3))
    first, second = cross_image_records(content)
    assert (first["image_info"]["id"], first["image1_info"]["id"], first["new_img_id"]) == (6, 5, 0)
    assert (second["image_info"]["id"], second["image1_info"]["id"], second["new_img_id"]) == (5, 6, 1)
    assert first["image_info"] == {**content["images"][0], "image": "6.jpg", "img_id": 6}
    assert first["category_ids"] == [CAT]
    assert first["annotations1"] == [content["annotations"][0]]
    assert {key: first["annotations"][0][key] for key in content["annotations"][1]} == content["annotations"][1]
    assert first["annotations"][0].keys() > set(map(prompt_key, PROMPT_TYPES))


def test_only_shared_categories_are_prompted_and_all_of_them():
    content = instances(*(square(n, 1, c) for n, c in enumerate((DOG, CAT, COW))), square(8, 2, DOG), square(9, 2, CAT))
    record = between(cross_image_records(content), 1, 2)
    assert record["category_ids"] == [CAT, DOG]
    assert (ids(record["annotations"]), ids(record["annotations1"])) == ([1, 0], [8, 9])


def test_the_largest_are_prompted():
    crowd = square(1, 1, CAT, side=30, iscrowd=1)
    content = instances(
        crowd, square(2, 1, CAT, 10), square(4, 1, CAT, 12), square(3, 1, CAT, 12), square(9, 2, CAT), square(8, 2, CAT)
    )
    assert ids(between(cross_image_records(content), 1, 2)["annotations"]) == [3, 4]
    assert ids(between(cross_image_records(content, regions_per_category=1), 1, 2)["annotations"]) == [3]
    assert ids(between(cross_image_records(content, regions_per_category=9), 1, 2)["annotations"]) == [3, 4, 2]


def test_small_objects_are_not_prompted_but_are_answers():
    content = instances(square(1, 1, CAT, 8), square(2, 1, CAT, 7), square(3, 2, CAT, 7))
    (record,) = cross_image_records(content, min_area=64)
    assert (record["image_info"]["id"], ids(record["annotations"]), ids(record["annotations1"])) == (1, [1], [3])


def test_targets_have_all_annotations_with_a_pixel_of_what_is_asked_for():
    crowd, empty, other = square(4, 2, CAT, iscrowd=1), square(5, 2, CAT, segmentation=[]), square(6, 2, DOG)
    content = instances(square(1, 1, CAT), square(2, 2, CAT), square(3, 2, CAT, 2), crowd, empty, other)
    record = between(cross_image_records(content), 1, 2)
    assert ids(record["annotations1"]) == [2, 3, 4]
    assert record["annotations1"][2]["iscrowd"] == 1


def test_crowds_and_empty_masks_are_nothing_to_share():
    crowd, empty = square(2, 2, CAT, iscrowd=1), square(3, 3, CAT, segmentation=[])
    assert list(cross_image_records(instances(square(1, 1, CAT), crowd, empty))) == []


def many() -> dict[str, Any]:
    """Thirty images with one to three of four categories each, and one image that shares none."""
    rng = np.random.default_rng(0)
    annotations = [square(999, 99, 77)]
    for image_id in range(30):
        for category in rng.choice([CAT, DOG, COW, ANT], size=rng.integers(1, 4), replace=False).tolist():
            annotations += [square(len(annotations) + n, image_id, category) for n in range(rng.integers(1, 3))]
    return instances(*annotations)


def test_every_image_has_its_number_of_distinct_other_targets():
    for count in (1, 2, 5):
        records = list(cross_image_records(many(), pairs_per_image=count))
        pairs = [(each["image_info"]["id"], each["image1_info"]["id"]) for each in records]
        assert len(set(pairs)) == len(pairs)
        assert all(prompt != target for prompt, target in pairs)
        assert Counter(prompt for prompt, _ in pairs) == dict.fromkeys(range(30), count)
        assert [each["new_img_id"] for each in records] == list(range(30 * count))


def test_where_fewer_share_a_category_all_of_them_are_targets():
    content = instances(*(square(n, n, CAT) for n in range(4)))
    records = list(cross_image_records(content, pairs_per_image=10))
    pairs = {(each["image_info"]["id"], each["image1_info"]["id"]) for each in records}
    assert pairs == {(a, b) for a in range(4) for b in range(4) if a != b}


def test_targets_vary():
    records = cross_image_records(instances(*(square(n, n, CAT) for n in range(40))))
    assert len({each["image1_info"]["id"] for each in records}) > 25


def test_pairs_are_the_same_for_the_same_seed():
    first = list(cross_image_records(many(), absent_share=0.2))
    assert list(cross_image_records(many(), absent_share=0.2)) == first
    assert list(cross_image_records(many(), absent_share=0.2, seed=1)) != first


def test_prompts_are_those_of_interactive_data():
    made = {each["id"]: each for record in interactive_records(many(), seed=4) for each in record["anns"]}
    for record in cross_image_records(many(), seed=4):
        for each in record["annotations"]:
            assert each == made[each["id"]]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_absent_categories(share):
    content = many()
    records = list(cross_image_records(content, absent_share=share))
    with_absent = 0
    for record in records:
        there = {
            each["category_id"] for each in content["annotations"] if each["image_id"] == record["image1_info"]["id"]
        }
        absent = set(record["category_ids"]) - there
        assert len(absent) <= 1
        assert {each["category_id"] for each in record["annotations"]} == set(record["category_ids"])
        assert {each["category_id"] for each in record["annotations1"]} == set(record["category_ids"]) & there
        assert record["category_ids"] == sorted(record["category_ids"])
        with_absent += len(absent)
    assert with_absent == int(np.ceil(share * len(records)))


def test_a_category_of_which_the_target_has_a_crowd_is_not_absent():
    content = instances(square(1, 1, CAT), square(2, 1, DOG), square(3, 2, CAT), square(4, 2, DOG, iscrowd=1))
    assert between(cross_image_records(content, absent_share=1.0), 1, 2)["category_ids"] == [CAT]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs_per_image": 0}, "pairs_per_image must be at least 1, but got 0"),
        ({"regions_per_category": -1}, "regions_per_category must be at least 1, but got -1"),
        ({"min_area": 0}, "min_area must be at least 1, but got 0"),
        ({"seed": -1}, "seed must be at least 0, but got -1"),
        ({"absent_share": 1.5}, "absent_share must be from 0 to 1, but got 1.5"),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        cross_image_records(many(), **options)


def call(folder: Any, content: dict[str, Any], *options: str) -> int:
    (folder / "instances.json").write_text(json.dumps(content))
    return main(["--instances", str(folder / "instances.json"), "--output", str(folder / "pairs.json"), *options])


def test_the_command_writes_what_the_reader_reads(tmp_path, capsys):
    options = ("--pairs-per-image", "3", "--regions-per-category", "1", "--absent-share", "0.1", "--seed", "2")
    assert call(tmp_path, many(), *options, "--min-area", "80") == 0
    data = CrossImageData(tmp_path / "pairs.json", (tmp_path,))
    expected = list(cross_image_records(many(), 3, 1, 80, 0.1, 2))
    assert json.loads((tmp_path / "pairs.json").read_text()) == expected
    assert len(data) == len(expected) == 90
    prompts = sum(len(each["annotations"]) for each in expected)
    written, errors = capsys.readouterr()
    assert written == (
        f"wrote 90 pairs with {prompts} prompts to {tmp_path / 'pairs.json'}; 9 ask for an absent category\n"
    )
    assert errors == ""


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (instances(square(1, 1, CAT), square(2, 2, DOG)), (), "no two images that share a category: there is no pair"),
        (many(), ("--min-area", "0"), "min_area must be at least 1, but got 0"),
        ({"images": []}, (), "the file has no key 'annotations'"),
        (instances(square(1, 1, CAT, segmentation=[[1, 2]])), (), "the segmentation of annotation 1 cannot be used"),
    ],
)
def test_what_is_wrong_ends_with_one_line(tmp_path, capsys, content, options, message):
    assert call(tmp_path, content, *options) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["instances.json"]


def test_an_existing_file_is_refused(tmp_path, capsys):
    (tmp_path / "pairs.json").write_text("dear")
    assert call(tmp_path, many()) == 2
    assert "pairs.json is there already: give --overwrite to replace it" in capsys.readouterr().err
    assert (tmp_path / "pairs.json").read_text() == "dear"
    assert call(tmp_path, many(), "--overwrite") == 0


@pytest.mark.parametrize(("split", "pairs", "prompts", "absent"), [("train", 101, 270, 11), ("val", 47, 119, 5)])
def test_real_images(coco_real, tmp_path, split, pairs, prompts, absent):
    source = coco_real / "annotations" / f"instances_{split}2017.json"
    output = tmp_path / "pairs.json"
    assert main(["--instances", str(source), "--output", str(output), "--absent-share", "0.1"]) == 0
    data = CrossImageData(output, (coco_real / f"{split}2017",))
    records = [data.record(index) for index in range(len(data))]
    assert len(records) == pairs
    assert sum(len(record.prompt.prompts) for record in records) == prompts
    assert sum(bool((record.answers < 0).any()) for record in records) == absent
    for record, raw in zip(records, json.loads(output.read_text()), strict=True):
        assert len(record.masks) >= 1
        assert record.prompt.masks.sum(axis=(1, 2)).min() >= 64
        for mask, each in zip(record.prompt.masks, raw["annotations"], strict=True):
            assert mask.sum() == segmentation_area(each["segmentation"], *mask.shape)
