"""The reader of official COCO panoptic data, on files made here, with everything that can be wrong with them."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from psalm.constants import PANOPTIC
from psalm.data.coco_panoptic import PanopticData
from psalm.data.errors import BadImageError, DataError

CATEGORIES = [
    {"id": 90, "name": "cat", "isthing": 1},
    {"id": 7, "name": "sky", "isthing": 0},
    {"id": 13, "name": "dog", "isthing": 1},
]


def colours(segment_map: np.ndarray) -> np.ndarray:
    """The three bytes of each id, by plain division."""
    rgb = np.zeros((*segment_map.shape, 3), dtype=np.uint8)
    for y, x in np.ndindex(segment_map.shape):
        rest = int(segment_map[y, x])
        for channel in range(3):
            rgb[y, x, channel] = rest % 256
            rest //= 256
    return rgb


def write(root: Path, inside: bool = True, images: str = "train2017") -> dict[str, Any]:
    """Three images of 6 x 5 pixels: a thing with a large id, stuff, a crowd, and void; returns the JSON's content."""
    maps = root / "annotations" / "panoptic_train2017" if inside else root / "panoptic_train2017"
    (root / "annotations").mkdir(parents=True)
    maps.mkdir()
    (root / images).mkdir(parents=True)
    content: dict[str, Any] = {"categories": CATEGORIES, "images": [], "annotations": []}
    for image_id in (11, 5, 8):
        segment_map = np.zeros((5, 6), dtype=np.int64)
        segment_map[:, 2:4] = 16_000_000 + image_id
        segment_map[:2, 4:] = 300
        segment_map[3:, 4:] = 70_000
        Image.fromarray(colours(segment_map)).save(maps / f"{image_id}.png")
        Image.fromarray(np.full((5, 6, 3), image_id, dtype=np.uint8)).save(root / images / f"{image_id}.jpg")
        content["images"].insert(0, {"id": image_id, "file_name": f"{image_id}.jpg", "height": 5, "width": 6})
        content["annotations"].append(
            {
                "image_id": image_id,
                "file_name": f"{image_id}.png",
                "segments_info": [
                    {"id": 16_000_000 + image_id, "category_id": 13, "iscrowd": 0, "area": 10},
                    {"id": 300, "category_id": 7, "iscrowd": 0, "area": 4},
                    {"id": 70_000, "category_id": 90, "iscrowd": 1, "area": 4},
                ],
            }
        )
    save(root, content)
    return content


def save(root: Path, content: Any) -> None:
    (root / "annotations" / "panoptic_train2017.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "coco")
    return tmp_path / "coco"


def test_records(root):
    dataset = PanopticData(root, "train")
    assert [(info.name, info.isthing, info.id) for info in dataset.classes] == [
        ("cat", True, 90),
        ("sky", False, 7),
        ("dog", True, 13),
    ]
    assert dataset.image_ids == (11, 5, 8)
    record = dataset.record(1)
    assert (record.image_id, record.file_name) == (5, "5.jpg")
    assert abs(record.image.astype(int) - 5).max() <= 2
    assert record.segment_map.dtype == np.int32
    assert record.segment_map[0].tolist() == [0, 0, 16_000_005, 16_000_005, 300, 300]
    fields = [(s.id, s.category, s.isthing, s.iscrowd, s.area) for s in record.segments]
    assert fields == [(16_000_005, 2, True, False, 10), (300, 1, False, False, 4), (70_000, 0, True, True, 4)]


def test_pngs_beside_annotations(tmp_path):
    write(tmp_path, inside=False)
    assert len(PanopticData(tmp_path, "train").record(0).segments) == 3


@pytest.mark.parametrize("folder", ["pictures", "pictures/train2017"])
def test_image_folder(tmp_path, folder):
    write(tmp_path / "coco", images=f"../{folder}")
    dataset = PanopticData(tmp_path / "coco", "train", image_folder=tmp_path / "pictures")
    assert dataset.record(2).image_id == 8


def test_selected_samples(root):
    dataset = PanopticData(root, "train", skip_bad_images=True)
    chosen = dataset.select([2, 0]).select([0, 1, 1])
    assert len(chosen) == 3
    assert chosen.image_ids == (8, 11, 11)
    assert [chosen.record(index).image_id for index in range(3)] == [8, 11, 11]
    assert [segment.id for segment in chosen.truth(0)[1]] == [16_000_008, 300, 70_000]
    assert pickle.loads(pickle.dumps(chosen)).image_ids == (8, 11, 11)
    (root / "train2017" / "8.jpg").unlink()
    assert chosen.good_indices() == [1, 2]
    assert dataset.bad_images == ("8.jpg",)


def test_task_and_files(root):
    dataset = PanopticData(root, "train")
    assert dataset.task == PANOPTIC
    assert dataset.annotation_files == (root / "annotations" / "panoptic_train2017.json",)
    assert dataset.files(1) == (
        ("image", root / "train2017" / "5.jpg"),
        ("panoptic PNG", root / "annotations" / "panoptic_train2017" / "5.png"),
    )
    assert dataset.image_names(1) == ("5.jpg",)


def test_check_reads_no_image(root):
    (root / "train2017" / "11.jpg").unlink()
    dataset = PanopticData(root, "train")
    dataset.check(0)
    truncate(root / "annotations" / "panoptic_train2017" / "11.png")
    with pytest.raises(BadImageError, match=r"panoptic PNG .*11\.png is truncated"):
        dataset.check(0)
    assert dataset.bad_images == ("11.jpg",)


def test_grey_images_are_read_as_rgb(root):
    Image.fromarray(np.full((5, 6), 50, dtype=np.uint8)).save(root / "train2017" / "11.jpg")
    assert PanopticData(root, "train").record(0).image.shape == (5, 6, 3)


def test_copies_are_light_and_parse_once(root):
    dataset = PanopticData(root, "train")
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.index is dataset.index
    assert len(pickle.dumps(dataset)) < 3000
    assert copy.record(0).image_id == 11


def test_changed_file_is_read_again(root):
    before = PanopticData(root, "train")
    content = json.loads(before.located.annotations.read_text())
    content["annotations"].pop()
    save(root, content)
    assert len(PanopticData(root, "train")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "the file has no key 'categories'"),
        (lambda c: c.update(images={}), "images must be list, but is {}"),
        (lambda c: c.update(annotations=[]), "annotations must not be empty"),
        (lambda c: c["categories"][1].pop("isthing"), r"categories\[1\] has no key 'isthing'"),
        (lambda c: c["categories"][1].update(isthing=2), r"categories\[1\].isthing must be 0 or 1, but is 2"),
        (lambda c: c["categories"][1].update(id=90), "categories must have unique ids and names"),
        (lambda c: c["images"][2].update(file_name=3), r"images\[2\].file_name must be str, but is 3"),
        (lambda c: c["images"][2].update(id=8), r"images\[2\] has the id 8 of an earlier image"),
        (lambda c: c["annotations"][1].pop("segments_info"), r"annotations\[1\] has no key 'segments_info'"),
        (lambda c: c["annotations"][1].update(image_id=77), r"annotations\[1\] names image 77, which is not among"),
        (lambda c: c["annotations"][1].update(image_id=11), "annotations has more than one record for image 11"),
        (lambda c: c["annotations"].insert(0, "x"), r"annotations\[0\] must be an object, but is str"),
        (lambda c: segment(c).update(category_id=1), r"\[0\].segments_info\[2\].category_id is 1, which is not among"),
        (lambda c: segment(c).update(id="70000"), r"segments_info\[2\].id must be int, but is '70000'"),
        (lambda c: segment(c).update(id=True), r"segments_info\[2\].id must be int, but is True"),
        (lambda c: segment(c).update(id=0), r"segments_info\[2\].id must be 1 to 16777215, but is 0"),
        (lambda c: segment(c).update(id=300), r"annotations\[0\] has a segment id twice"),
        (lambda c: segment(c).update(iscrowd="no"), r"segments_info\[2\].iscrowd must be int or bool, but is 'no'"),
    ],
)
def test_wrong_format_is_named_by_file_and_place(root, change, message):
    content = json.loads((root / "annotations" / "panoptic_train2017.json").read_text())
    change(content)
    save(root, content)
    with pytest.raises(DataError, match=message) as caught:
        PanopticData(root, "train")
    text = str(caught.value)
    assert text.startswith(str(root / "annotations" / "panoptic_train2017.json"))
    assert "COCO panoptic JSON is expected" in text
    assert "\n" not in text


def segment(content: dict[str, Any]) -> dict[str, Any]:
    return content["annotations"][0]["segments_info"][2]


def test_not_json(root):
    (root / "annotations" / "panoptic_train2017.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"panoptic_train2017\.json is not JSON: Expecting value: line 1"):
        PanopticData(root, "train")


def test_a_list_at_the_top(root):
    save(root, [])
    with pytest.raises(DataError, match="the file must be an object, but is list"):
        PanopticData(root, "train")


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (".", r"is not a folder: a folder with annotations/panoptic_train2017\.json in it is expected"),
        ("annotations/panoptic_train2017.json", r"panoptic_train2017\.json is missing: COCO panoptic JSON"),
        ("annotations/panoptic_train2017", "the panoptic PNGs of the train split are missing: a folder .* is expected"),
        ("train2017", "the images of the train split are missing: a folder .*train2017 is expected"),
    ],
)
def test_missing_folder_or_file(root, gone, message):
    (root / gone).rename(root.parent / "elsewhere")
    with pytest.raises(DataError, match=message):
        PanopticData(root, "train")


def test_unknown_split(root):
    with pytest.raises(ValueError, match="split must be one of train, val, but got 'test'"):
        PanopticData(root, "test")  # type: ignore[arg-type]


def test_png_with_an_id_that_is_not_annotated(root):
    content = json.loads((root / "annotations" / "panoptic_train2017.json").read_text())
    content["annotations"][0]["segments_info"].pop(1)
    save(root, content)
    with pytest.raises(DataError, match=r"11\.png has pixels of id 300, which is not in segments_info of image 11"):
        PanopticData(root, "train").record(0)


def test_annotated_id_without_pixels(root):
    content = json.loads((root / "annotations" / "panoptic_train2017.json").read_text())
    content["annotations"][0]["segments_info"].append({"id": 4, "category_id": 7, "iscrowd": 0})
    save(root, content)
    with pytest.raises(DataError, match=r"11\.png has no pixel of id 4, which is in segments_info of image 11"):
        PanopticData(root, "train").record(0)


def test_image_of_another_size(root):
    Image.new("RGB", (3, 4)).save(root / "train2017" / "11.jpg")
    with pytest.raises(DataError, match=r"11\.png is 6 x 5 pixels, but its image .*11\.jpg is 3 x 4 pixels"):
        PanopticData(root, "train").record(0)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def test_bad_images_are_named(root):
    dataset = PanopticData(root, "train")
    (root / "train2017" / "11.jpg").unlink()
    with pytest.raises(BadImageError, match=r"image .*11\.jpg is missing"):
        dataset.record(0)
    truncate(root / "train2017" / "5.jpg")
    with pytest.raises(BadImageError, match=r"image .*5\.jpg is truncated or not an image"):
        dataset.record(1)
    truncate(root / "annotations" / "panoptic_train2017" / "8.png")
    with pytest.raises(BadImageError, match=r"panoptic PNG .*8\.png is truncated or not an image"):
        dataset.record(2)
    assert dataset.bad_images == ("11.jpg", "5.jpg", "8.jpg")


def test_bad_images_are_logged_once(root, caplog):
    (root / "train2017" / "5.jpg").unlink()
    dataset = PanopticData(root, "train", skip_bad_images=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(BadImageError):
                dataset.record(1)
    assert [record.getMessage().startswith("skipped: image") for record in caplog.records] == [True]


def test_evaluation_leaves_bad_images_out(root):
    truncate(root / "train2017" / "5.jpg")
    dataset = PanopticData(root, "train", skip_bad_images=True)
    assert dataset.good_indices() == [0, 2]
    assert dataset.bad_images == ("5.jpg",)
    assert PanopticData(root, "train").good_indices() == [0, 1, 2]


def test_no_image_left_for_evaluation(root):
    for name in ("5.jpg", "8.jpg", "11.jpg"):
        (root / "train2017" / name).unlink()
    with pytest.raises(
        DataError, match=r"every image of .*json is missing or truncated, e\.g\. image .*11\.jpg is missing"
    ):
        PanopticData(root, "train", skip_bad_images=True).good_indices()


@pytest.mark.parametrize(("split", "images", "segments"), [("train", 57, 607), ("val", 30, 344)])
def test_real_images(coco_real, split, images, segments):
    dataset = PanopticData(coco_real, split)
    raw = json.loads((coco_real / "annotations" / f"panoptic_{split}2017.json").read_text())
    id_of = {index: info.id for index, info in enumerate(dataset.classes)}
    assert len(dataset) == images
    assert len(dataset.classes) == 133
    seen = 0
    for index, annotation in enumerate(raw["annotations"]):
        record = dataset.record(index)
        assert record.image_id == annotation["image_id"]
        expected = [(s["id"], s["category_id"], bool(s["iscrowd"])) for s in annotation["segments_info"]]
        assert [(s.id, id_of[s.category], s.iscrowd) for s in record.segments] == expected
        seen += len(record.segments)
    assert seen == segments
