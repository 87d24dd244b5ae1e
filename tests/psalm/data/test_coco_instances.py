"""The reader of COCO instances, in the official JSON and in PSALM's, with everything that can be wrong with them."""

import contextlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from psalm.constants import INSTANCE
from psalm.data.coco_categories import COCO_THINGS
from psalm.data.coco_instances import InstanceData, locate_instances
from psalm.data.errors import BadImageError, DataError

HEIGHT, WIDTH = 6, 8


def rectangle(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def polygon(x: int, y: int, width: int, height: int) -> list[int]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def runs(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed RLE by hand: column-major, beginning with a run of zeros."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def official() -> dict[str, Any]:
    """Image 30: two dogs, one of two parts, and a cat; image 10: a crowd of cats; image 20: nothing with a pixel."""

    def annotation(number: int, image_id: int, category_id: int, segmentation: Any, iscrowd: int = 0) -> dict[str, Any]:
        return {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "segmentation": segmentation,
            "iscrowd": iscrowd,
        }

    return {
        "images": [
            {"id": image_id, "file_name": f"{image_id}.jpg", "height": HEIGHT, "width": WIDTH}
            for image_id in (30, 10, 20)
        ],
        "annotations": [
            annotation(0, 30, 18, [polygon(1, 1, 3, 2), polygon(5, 3, 2, 2)]),
            annotation(1, 10, 17, runs(rectangle(0, 2, 8, 3)), iscrowd=1),
            annotation(2, 30, 17, rle(rectangle(2, 3, 2, 3))),
            annotation(3, 20, 17, []),
            annotation(4, 30, 18, runs(rectangle(0, 0, 1, 6))),
            annotation(5, 20, 18, [[1, 1, 1, 1, 1, 1]]),
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
    }


def as_psalm(content: dict[str, Any]) -> list[dict[str, Any]]:
    """One record per image, its annotations in the order of the categories' ids."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    records = []
    for number, image in enumerate(content["images"]):
        own = sorted(
            (a for a in content["annotations"] if a["image_id"] == image["id"]), key=lambda a: a["category_id"]
        )
        records.append(
            {
                "image": image["file_name"],
                "image_info": image,
                "instruction": "Please segment all of objects in this image",
                "new_img_id": number,
                "anns": own,
                "mask_classes": [names[a["category_id"]] for a in own],
                "mask_classes_id": [[a["category_id"]] for a in own],
            }
        )
    return records


def save(root: Path, content: Any) -> Path:
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    for image_id in (10, 20, 30):
        Image.new("RGB", (WIDTH, HEIGHT), (image_id, 0, 0)).save(root / "train2017" / f"{image_id}.jpg")
    save(root, official())
    return root


def load(root: Path, **options: Any) -> InstanceData:
    return InstanceData(*locate_instances(root, "train"), **options)


def test_records(root):
    data = load(root)
    assert (data.task, len(data), data.image_ids) == (INSTANCE, 3, (30, 10, 20))
    assert [(info.name, info.id, info.isthing) for info in data.classes] == [("dog", 18, True), ("cat", 17, True)]
    record = data.record(0)
    assert (record.image_id, record.file_name, record.image.shape) == (30, "30.jpg", (HEIGHT, WIDTH, 3))
    expected = [
        rectangle(1, 1, 3, 2) | rectangle(5, 3, 2, 2),
        rectangle(2, 3, 2, 3),
        rectangle(0, 0, 1, 6),
    ]
    assert record.masks.dtype == bool
    assert np.array_equal(record.masks, expected)
    assert record.categories.dtype == np.int64
    assert record.categories.tolist() == [0, 1, 0]


@pytest.mark.parametrize("index", [1, 2])
def test_crowds_and_objects_without_a_pixel_are_left_out(root, index):
    record = load(root).record(index)
    assert record.masks.shape == (0, HEIGHT, WIDTH)
    assert (record.masks.dtype, record.categories.shape) == (bool, (0,))


def test_training_leaves_out_images_without_objects(root):
    content = official()
    content["annotations"][5]["segmentation"] = []
    save(root, content)
    assert load(root, training=True).image_ids == (30,)
    assert load(root).image_ids == (30, 10, 20)


def test_nothing_to_train_on(root):
    content = official()
    content["annotations"] = content["annotations"][1:2]
    save(root, content)
    with pytest.raises(DataError, match=r"instances_train2017\.json: the file has no image with an object that is no"):
        load(root, training=True)


def test_selected_and_copied_samples(root):
    data = load(root, skip_bad_images=True)
    chosen = pickle.loads(pickle.dumps(data.select([2, 0])))
    assert chosen.image_ids == (20, 30)
    assert len(chosen.record(1).masks) == 3
    truth = chosen.ground_truth()
    assert [image["id"] for image in truth["images"]] == [20, 30]
    assert {annotation["image_id"] for annotation in truth["annotations"]} == {20, 30}


def test_files(root):
    data = load(root)
    assert data.files(1) == (("image", root / "train2017" / "10.jpg"),)
    assert data.annotation_files == (root / "annotations" / "instances_train2017.json",)


def test_images_in_several_folders(root):
    other = root / "other"
    other.mkdir()
    (root / "train2017" / "10.jpg").rename(other / "10.jpg")
    data = InstanceData(root / "annotations" / "instances_train2017.json", [root / "train2017", other])
    assert data.record(1).image_id == 10
    assert data.record(0).image_id == 30


def test_ground_truth_is_official(root):
    truth = load(root).ground_truth()
    assert truth["categories"] == [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]
    assert truth["images"][1] == {"id": 10, "file_name": "10.jpg", "height": HEIGHT, "width": WIDTH}
    found = [(a["id"], a["image_id"], a["category_id"], a["iscrowd"], a["area"]) for a in truth["annotations"]]
    assert found == [(1, 30, 18, 0, 10), (2, 30, 17, 0, 6), (3, 30, 18, 0, 6), (4, 10, 17, 1, 24), (5, 20, 18, 0, 0)]
    assert [a["bbox"] for a in truth["annotations"]] == [
        [1, 1, 6, 4],
        [2, 3, 2, 3],
        [0, 0, 1, 6],
        [0, 2, 8, 3],
        [0, 0, 0, 0],
    ]


def test_annotated_areas_and_boxes_are_kept(root):
    content = official()
    content["annotations"][0] |= {"area": 9.5, "bbox": [1.25, 1, 5.5, 4]}
    content["annotations"][2] |= {"area": 5.5}
    save(root, content)
    first, second = load(root).ground_truth()["annotations"][:2]
    assert (first["area"], first["bbox"]) == (9.5, [1.25, 1, 5.5, 4])
    assert (second["area"], second["bbox"]) == (5.5, [2, 3, 2, 3])


def coco_stats(truth: dict[str, Any], results: list[dict[str, Any]]) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_perfect_results_have_ap_1_though_an_annotation_has_id_0(root):
    data = load(root)
    record = data.record(0)
    results = [
        {"image_id": 30, "category_id": data.classes[category].id, "segmentation": rle(mask), "score": 0.5}
        for mask, category in zip(record.masks, record.categories.tolist(), strict=True)
    ]
    assert coco_stats(data.select([0]).ground_truth(), results)[0] == 1


def test_ap_of_real_images_is_that_of_the_official_file(coco_real):
    data = InstanceData(*locate_instances(coco_real, "val"))
    generator = np.random.default_rng(0)
    results = []
    for index in range(len(data)):
        record = data.record(index)
        for mask, category in zip(record.masks, record.categories.tolist(), strict=True):
            shifted = np.roll(mask, generator.integers(-4, 5, size=2), axis=(0, 1))
            category_id = data.classes[category].id if generator.random() > 0.2 else 1
            result = {"image_id": record.image_id, "category_id": category_id, "score": generator.random()}
            results.append({**result, "segmentation": rle(shifted)})
    raw = json.loads((coco_real / "annotations" / "instances_val2017.json").read_text())
    expected = coco_stats(raw, [dict(result) for result in results])
    assert 0.1 < expected[0] < 0.9
    assert np.array_equal(coco_stats(data.ground_truth(), results), expected)


@pytest.mark.parametrize(("split", "images", "objects"), [("train", 57, 601), ("val", 30, 330)])
def test_real_images(coco_real, split, images, objects):
    data = InstanceData(*locate_instances(coco_real, split))
    assert len(data) == images
    records = [data.record(index) for index in range(images)]
    coco = COCO()
    coco.dataset = json.loads((coco_real / "annotations" / f"instances_{split}2017.json").read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    for record in records:
        annotations = coco.imgToAnns[record.image_id]
        expected = [coco.annToRLE(each) for each in annotations if not each["iscrowd"]]
        expected = [each for each in expected if coco_mask.area(each)]
        assert len(record.masks) == len(expected)
        for mask, each in zip(record.masks, expected, strict=True):
            assert coco_mask.iou([rle(mask)], [each], [0]) == 1
    assert sum(len(record.masks) for record in records) == objects


def test_things_are_the_official_ones(coco_real):
    raw = json.loads((coco_real / "annotations" / "instances_train2017.json").read_text())
    assert [(info.id, info.name) for info in COCO_THINGS] == [(c["id"], c["name"]) for c in raw["categories"]]
    assert all(info.isthing for info in COCO_THINGS)


def test_psalm_format_says_the_same(coco_real, tmp_path):
    official_path, folders = locate_instances(coco_real, "train")
    path = tmp_path / "instance_train_psalm.json"
    path.write_text(json.dumps(as_psalm(json.loads(official_path.read_text()))))
    first, second = InstanceData(official_path, folders), InstanceData(path, folders)
    assert second.classes == first.classes
    assert second.image_ids == first.image_ids
    for index in range(0, len(first), 5):
        ours, theirs = first.record(index), second.record(index)
        order = np.argsort(ours.categories, kind="stable")
        assert theirs.categories.tolist() == ours.categories[order].tolist()
        assert np.array_equal(theirs.masks, ours.masks[order])


def ann(content: list[Any]) -> dict[str, Any]:
    return content[0]["anns"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: ann(c).update(category_id=26),
            r"\[0\]\.anns\[1\]\.category_id is 26, which is not among COCO's 80 th",
        ),
        (lambda c: ann(c).pop("category_id"), r"\[0\]\.anns\[1\] has no key 'category_id'"),
        (lambda c: c[1]["image_info"].update(id=30), r"\[1\]\.image_info has the id 30 of an earlier image"),
        (lambda c: c[1].pop("image"), r"\[1\] has no key 'image'"),
        (lambda c: c[1].update(anns={}), r"\[1\]\.anns must be list, but is {}"),
        (
            lambda c: c[1].update(mask_classes=["aerosol can"]),
            r"\[1\]\.mask_classes must be \['cat'\], as the category ids of anns say, but is \['aerosol can'\]",
        ),
        (lambda c: c.clear(), "the file has no image"),
    ],
)
def test_wrong_psalm_format_is_named_by_file_and_place(root, change, message):
    content = as_psalm(official())
    change(content)
    path = save(root, content)
    with pytest.raises(DataError, match=message) as caught:
        load(root)
    assert str(caught.value).startswith(f"{path}: ")
    assert "PSALM's instance JSON is expected" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "the file has no key 'images'"),
        (lambda c: c.update(images=[], annotations=[]), "the file has no image"),
        (lambda c: c["images"][2].pop("height"), r"images\[2\] has no key 'height'"),
        (lambda c: c["images"][2].update(width=0), r"images\[2\] cannot be used: an image must have from 1 to"),
        (lambda c: c["images"][2].update(id=30), r"images\[2\] has the id 30 of an earlier image"),
        (lambda c: c.update(categories=[]), "categories must not be empty"),
        (lambda c: c["categories"][1].update(id=18), "categories must have unique ids and names"),
        (
            lambda c: c["annotations"][3].update(image_id=4),
            r"annotations\[3\] names image 4, which is not among images",
        ),
        (
            lambda c: c["annotations"][3].update(category_id=1),
            r"annotations\[3\].category_id is 1, which is not among ca",
        ),
        (lambda c: c["annotations"][3].update(iscrowd=2), r"annotations\[3\].iscrowd must be 0 or 1, but is 2"),
        (lambda c: c["annotations"][3].pop("segmentation"), r"annotations\[3\] has no key 'segmentation'"),
        (lambda c: c["annotations"][3].update(area="5"), r"annotations\[3\].area must be int or float, but is '5'"),
        (
            lambda c: c["annotations"][3].update(segmentation=[[1, 2, 3, 4]]),
            r"annotations\[3\]\.segmentation cannot be used: a polygon must be a list of at least 3 x, y pairs",
        ),
        (
            lambda c: c["annotations"][2]["segmentation"].update(size=[8, 6]),
            r"annotations\[2\]\.segmentation cannot be used: an RLE of size \[8, 6\] does not fit its image",
        ),
        (
            lambda c: c["annotations"][2]["segmentation"].update(counts="9zz"),
            r"annotations\[2\]\.segmentation cannot be used: the counts of an RLE must be compressed run lengths",
        ),
        (
            lambda c: c["annotations"][1]["segmentation"]["counts"].append(7),
            r"annotations\[1\]\.segmentation cannot be used: the runs of an RLE cover 55 pixels, but its image has 48",
        ),
    ],
)
def test_wrong_official_format_is_named_by_file_and_place(root, change, message):
    content = official()
    change(content)
    path = save(root, content)
    with pytest.raises(DataError, match=message) as caught:
        load(root)
    assert str(caught.value).startswith(f"{path}: ")
    assert "COCO instances JSON is expected" in str(caught.value)


def test_image_of_another_size(root):
    Image.new("RGB", (3, 4)).save(root / "train2017" / "30.jpg")
    message = r"image .*30\.jpg is 3 x 4 pixels, but image 30 of .*instances_train2017\.json is 8 x 6 pixels"
    with pytest.raises(DataError, match=message):
        load(root).record(0)


def test_bad_images_are_named(root):
    data = load(root)
    (root / "train2017" / "30.jpg").unlink()
    data.check(0)
    with pytest.raises(BadImageError, match=r"image .*train2017.30\.jpg is missing"):
        data.record(0)
    assert data.bad_images == ("30.jpg",)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (".", r"is not a folder: a folder with annotations/instances_train2017\.json in it is expected"),
        (
            "annotations/instances_train2017.json",
            r"instances_train2017\.json is missing: COCO instances JSON is expected",
        ),
        ("train2017", "the images of the train split are missing: a folder .*train2017 is expected"),
    ],
)
def test_missing_folder_or_file(root, gone, message):
    (root / gone).rename(root.parent / "elsewhere")
    with pytest.raises(DataError, match=message):
        load(root)


def test_no_image_folder_of_any_file(root):
    path = root / "annotations" / "instances_train2017.json"
    with pytest.raises(DataError, match=r"the images of .*json are missing: a folder .*a or .*b is expected"):
        InstanceData(path, [root / "a", root / "b"])


def test_unknown_split(root):
    with pytest.raises(ValueError, match="split must be one of train, val, but got 'test'"):
        locate_instances(root, "test")  # type: ignore[arg-type]
