"""Files that are handed out field by field, and what COCO's formats have in common."""

import json
from pathlib import Path
from typing import Any

import pytest

from psalm.data.coco_format import (
    DataFile,
    ImageInfo,
    checked_segmentation,
    read_classes,
    read_image_info,
    read_json,
    rows_by_id,
)
from psalm.data.errors import DataError


def file_of(content: Any) -> DataFile:
    return DataFile(Path("some.json"), "such JSON", content)


def test_fields():
    file = file_of({"name": "cat", "id": 0, "share": 0.5, "iscrowd": 1})
    assert file.field(file.content, "name", str) == "cat"
    assert file.field(file.content, "id", int) == 0
    assert file.field(file.content, "share", (int, float)) == 0.5
    assert file.flag(file.content, "iscrowd") is True


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        ([], int, "some.json: a[3].b must be an object, but is list (such JSON is expected)"),
        ({}, int, "some.json: a[3].b has no key 'id' (such JSON is expected)"),
        ({"id": "7"}, int, "some.json: a[3].b.id must be int, but is '7' (such JSON is expected)"),
        ({"id": True}, int, "some.json: a[3].b.id must be int, but is True (such JSON is expected)"),
        ({"id": None}, (list, dict), "some.json: a[3].b.id must be list or dict, but is None (such JSON is expected)"),
        ({"id": "x" * 99}, int, f"some.json: a[3].b.id must be int, but is '{'x' * 59} (such JSON is expected)"),
    ],
)
def test_fields_that_are_not_there_or_of_another_type(record, kind, message):
    with pytest.raises(DataError) as caught:
        file_of(None).field(record, "id", kind, "a", 3, "b")
    assert str(caught.value) == message


def test_flags_that_are_neither():
    with pytest.raises(DataError, match=r"^some\.json: a\.iscrowd must be 0 or 1, but is 2 \(such JSON is expected\)$"):
        file_of(None).flag({"iscrowd": 2}, "iscrowd", "a")


def test_without_a_place_the_file_fails():
    with pytest.raises(DataError, match=r"^some\.json: the file has no image \(such JSON is expected\)$"):
        file_of(None).fail("has no image")


def test_json_is_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": [1, "é"]}))
    assert read_json(path, "such JSON") == DataFile(path, "such JSON", {"a": [1, "é"]})


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1,]", b"\xff\xfe\xfa", b"[" * 100_000, b"9" * 10_000], ids=lambda data: str(data[:3])
)
def test_what_is_not_json(tmp_path, data):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.json is not JSON: ") as caught:
        read_json(path, "such JSON")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"none\.json is missing: such JSON is expected there"):
        read_json(tmp_path / "none.json", "such JSON")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\): such JSON is expected there"):
        read_json(tmp_path, "such JSON")


CATEGORIES = {"categories": [{"id": 9, "name": "sky", "isthing": 0}, {"id": 2, "name": "cat", "isthing": 1}]}


def test_classes():
    classes = read_classes(file_of(CATEGORIES))
    assert [(info.name, info.isthing, info.id) for info in classes] == [("sky", False, 9), ("cat", True, 2)]


def test_classes_where_all_are_things():
    classes = read_classes(file_of({"categories": [{"id": 9, "name": "dog"}]}), things_only=True)
    assert [(info.name, info.isthing, info.id) for info in classes] == [("dog", True, 9)]


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "categories must not be empty"),
        ([{"id": 1, "name": "a"}], r"categories\[0\] has no key 'isthing'"),
        ([{**CATEGORIES["categories"][0]}] * 2, "categories must have unique ids and names"),
    ],
)
def test_categories_that_cannot_be_told_apart(categories, message):
    with pytest.raises(DataError, match=message):
        read_classes(file_of({"categories": categories}))


def test_rows_by_id():
    assert rows_by_id(file_of({"images": [{"id": 5}, {"id": 3}]}), "images") == {5: 0, 3: 1}


def test_an_id_that_comes_twice():
    with pytest.raises(DataError, match=r"annotations\[2\] has the id 5 of an earlier annotation"):
        rows_by_id(file_of({"annotations": [{"id": 5}, {"id": 3}, {"id": 5}]}), "annotations")


def test_image_infos():
    record = {"id": 5, "file_name": "a.jpg", "height": 3, "width": 4, "img_id": 6, "image": "b.jpg"}
    assert read_image_info(file_of([]), record) == ImageInfo(5, "a.jpg", 3, 4)
    assert read_image_info(file_of([]), record, id_key="img_id", name_key="image") == ImageInfo(6, "b.jpg", 3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "5"}, r"images\[3\]\.id must be int, but is '5'"),
        ({"file_name": None}, r"images\[3\]\.file_name must be str, but is None"),
        ({"height": 2.5}, r"images\[3\]\.height must be int, but is 2.5"),
        ({"width": 0}, r"images\[3\] cannot be used: an image must have from 1 to 50331648 pixels, but this one has"),
        ({"width": 10**9}, r"images\[3\] cannot be used: an image must have from 1 to 50331648 pixels"),
    ],
)
def test_images_that_cannot_be(change, message):
    record = {"id": 5, "file_name": "a.jpg", "height": 3, "width": 4, **change}
    with pytest.raises(DataError, match=message):
        read_image_info(file_of([]), record, "images", 3)


def test_segmentations_are_checked():
    image = ImageInfo(5, "a.jpg", 3, 4)
    polygons = [[0, 0, 2, 0, 2, 2]]
    assert checked_segmentation(file_of([]), {"segmentation": polygons}, image, 8) is polygons
    with pytest.raises(
        DataError, match=r"some\.json: \[8\]\.segmentation cannot be used: the runs of an RLE cover 11 pix"
    ):
        checked_segmentation(file_of([]), {"segmentation": {"size": [3, 4], "counts": [11]}}, image, 8)
