"""Cross-image pairs: files made here, with everything that can be wrong with them, and real images."""

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from psalm.data.cross_image import CrossImageData
from psalm.data.errors import BadImageError, DataError
from psalm.data.masks import encode_mask
from psalm.data.visual_prompts import PROMPT_TYPES, prompt_key

SIZES = {"prompt": (6, 8), "target": (9, 5)}
CAT, DOG, COW = 17, 18, 21


def rle(image: str, *pixels: tuple[int, int]) -> dict[str, Any]:
    mask = np.zeros(SIZES[image], dtype=bool)
    for pixel in pixels:
        mask[pixel] = True
    return encode_mask(mask)


def prompted(annotation_id: int, category: int, **changes: Any) -> dict[str, Any]:
    prompts = {prompt_key(kind): rle("prompt", (1, 1)) for kind in PROMPT_TYPES}
    base = {"id": annotation_id, "category_id": category, "segmentation": rle("prompt", (1, 1), (2, annotation_id % 8))}
    return {**base, **prompts, **changes}


def there(category: int, *pixels: tuple[int, int], crowd: int = 0) -> dict[str, Any]:
    return {"id": 1, "category_id": category, "iscrowd": crowd, "segmentation": rle("target", *pixels)}


def pair(prompts: list[dict[str, Any]], objects: list[dict[str, Any]], number: int = 40) -> dict[str, Any]:
    infos = {
        name: {"image": f"{name}.png", "img_id": image_id, "height": SIZES[name][0], "width": SIZES[name][1]}
        for image_id, name in enumerate(SIZES)
    }
    return {
        "image_info": infos["prompt"],
        "image1_info": infos["target"],
        "annotations": prompts,
        "annotations1": objects,
        "new_img_id": number,
    }


@pytest.fixture
def make(tmp_path):
    for name, size in SIZES.items():
        Image.fromarray(np.full((*size, 3), 40, dtype=np.uint8)).save(tmp_path / f"{name}.png")

    def write(content: Any, **options: Any) -> CrossImageData:
        (tmp_path / "pairs.json").write_text(json.dumps(content))
        return CrossImageData(tmp_path / "pairs.json", (tmp_path,), **options)

    return write


def on(mask: np.ndarray) -> list[tuple[int, int]]:
    return [tuple(pixel) for pixel in np.argwhere(mask).tolist()]


def test_records(make):
    data = make([pair([prompted(3, DOG), prompted(4, CAT)], [there(CAT, (7, 2)), there(DOG, (0, 0), (8, 4))])])
    record = data.record(0)
    assert (data.task, len(data), record.sample_id) == ("cross_image", 1, 40)
    assert (record.image_id, record.file_name, record.image.shape) == (1, "target.png", (9, 5, 3))
    assert (record.prompt.image_id, record.prompt.file_name, record.prompt.image.shape) == (0, "prompt.png", (6, 8, 3))
    assert record.prompt.annotation_ids == (3, 4)
    assert [on(mask) for mask in record.prompt.masks] == [[(1, 1), (2, 3)], [(1, 1), (2, 4)]]
    assert [tuple(prompts) for prompts in record.prompt.prompts] == [PROMPT_TYPES, PROMPT_TYPES]
    assert [on(mask) for mask in record.masks] == [[(0, 0), (8, 4)], [(7, 2)]]
    assert (record.masks.dtype, record.answers.dtype) == (bool, np.int64)
    assert record.answers.tolist() == [0, 1]


def test_objects_of_a_category_are_joined_in_the_order_of_the_prompts(make):
    prompts = [prompted(1, COW), prompted(2, DOG), prompted(3, COW), prompted(4, CAT), prompted(5, DOG)]
    objects = [there(CAT, (0, 0)), there(DOG, (1, 1), (2, 2)), there(DOG, (2, 2), (3, 3))]
    record = make([pair(prompts, objects)]).record(0)
    assert record.answers.tolist() == [-1, 0, -1, 1, 0]
    assert [on(mask) for mask in record.masks] == [[(1, 1), (2, 2), (3, 3)], [(0, 0)]]


def test_crowds_and_objects_without_a_pixel_are_no_answer(make):
    objects = [there(CAT, (0, 0), crowd=1), there(DOG), there(COW, (1, 1), crowd=1), there(COW, (2, 2))]
    record = make([pair([prompted(1, CAT), prompted(2, DOG), prompted(3, COW)], objects)]).record(0)
    assert record.answers.tolist() == [-1, -1, 0]
    assert [on(mask) for mask in record.masks] == [[(2, 2)]]


def test_a_target_without_anything_that_is_asked_for(make):
    record = make([pair([prompted(1, CAT)], [there(DOG, (2, 2))])]).record(0)
    assert record.answers.tolist() == [-1]
    assert record.masks.shape == (0, 9, 5)


def test_pairs_that_cannot_be_asked_for_are_left_out(make):
    empty = {prompt_key(kind): rle("prompt") for kind in PROMPT_TYPES}
    unusable = [prompted(1, CAT, iscrowd=1), prompted(2, CAT, **empty), prompted(3, CAT, segmentation=rle("prompt"))]
    objects = [there(CAT, (0, 0))]
    data = make([pair(unusable, objects, 7), pair([*unusable, prompted(4, CAT)], objects, 8)])
    assert data.rows.tolist() == [0]
    record = data.record(0)
    assert (record.sample_id, record.prompt.annotation_ids, record.answers.tolist()) == (8, (4,), [0])


def test_only_the_types_that_are_asked_for(make):
    no_box = prompted(1, CAT, box_visual_prompt_mask=None)
    data = make([pair([no_box, prompted(2, DOG)], [there(CAT, (0, 0)), there(DOG, (1, 1))])], prompt_types=("box",))
    record = data.record(0)
    assert (record.prompt.annotation_ids, record.answers.tolist()) == ((2,), [0])
    assert [tuple(prompts) for prompts in record.prompt.prompts] == [("box",)]
    assert [on(mask) for mask in record.masks] == [[(1, 1)]]


def test_cocos_own_names_and_the_place_in_the_file(make):
    content = [pair([prompted(1, CAT)], []), pair([prompted(1, CAT)], [])]
    for each in content:
        del each["new_img_id"]
        for info in (each["image_info"], each["image1_info"]):
            info["file_name"], info["id"] = info.pop("image"), info.pop("img_id") + 10
    record = make(content).record(1)
    assert (record.sample_id, record.image_id, record.prompt.image_id) == (1, 11, 10)
    assert (record.file_name, record.prompt.file_name) == ("target.png", "prompt.png")


def test_files(make, tmp_path):
    data = make([pair([prompted(1, CAT)], [])])
    assert data.files(0) == (("target image", tmp_path / "target.png"), ("prompt image", tmp_path / "prompt.png"))
    assert data.image_names(0) == ("target.png", "prompt.png")
    assert data.annotation_files == (tmp_path / "pairs.json",)


@pytest.mark.parametrize("name", ["target", "prompt"])
def test_bad_images_are_named(make, tmp_path, name):
    data = make([pair([prompted(1, CAT)], [there(CAT, (0, 0))])])
    (tmp_path / f"{name}.png").unlink()
    with pytest.raises(BadImageError, match=rf"image .*{name}\.png is missing"):
        data.record(0)
    assert data.bad_images == ("target.png",)
    data.check(0)


@pytest.mark.parametrize(("name", "key"), [("target", "image1_info"), ("prompt", "image_info")])
def test_image_of_another_size(make, tmp_path, name, key):
    data = make([pair([prompted(1, CAT)], [there(CAT, (0, 0))])])
    Image.new("RGB", (3, 4)).save(tmp_path / f"{name}.png")
    with pytest.raises(
        DataError, match=rf"{name}\.png is 3 x 4 pixels, but \[0\]\.{key} of .*pairs\.json says [58] x [69]"
    ):
        data.record(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[1].pop("image1_info"), r"\[1\] has no key 'image1_info'"),
        (lambda c: c[1].pop("annotations1"), r"\[1\] has no key 'annotations1'"),
        (lambda c: c[1].update(annotations=None), r"\[1\]\.annotations must be list, but is None"),
        (lambda c: c[1].update(new_img_id="a"), r"\[1\]\.new_img_id must be int, but is 'a'"),
        (lambda c: c[1]["image1_info"].pop("image"), r"\[1\]\.image1_info has no key 'file_name'"),
        (lambda c: c[1]["image_info"].update(img_id="x"), r"\[1\]\.image_info\.img_id must be int, but is 'x'"),
        (lambda c: c[1]["annotations"][0].pop("category_id"), r"\[1\]\.annotations\[0\] has no key 'category_id'"),
        (lambda c: c[1]["annotations1"][0].pop("category_id"), r"\[1\]\.annotations1\[0\] has no key 'category_id'"),
        (
            lambda c: c[1]["annotations1"][0].update(segmentation=rle("prompt", (0, 0))),
            r"\[1\]\.annotations1\[0\]\.segmentation cannot be used: an RLE of size \[6, 8\] does not fit its image",
        ),
        (
            lambda c: c[1]["annotations1"][0]["segmentation"].update(counts="oO" * 3),
            r"\[1\]\.annotations1\[0\]\.segmentation cannot be used: the counts of an RLE are damaged",
        ),
        (
            lambda c: c[1]["annotations"][0].update(box_visual_prompt_mask=rle("target", (0, 0))),
            r"\[1\]\.annotations\[0\]\.box_visual_prompt_mask cannot be used: an RLE of size \[9, 5\] does not fit",
        ),
    ],
)
def test_wrong_format_is_named_by_file_and_place(make, change, message):
    content = [pair([prompted(1, CAT)], [there(CAT, (0, 0))]) for _ in range(2)]
    change(content)
    with pytest.raises(DataError, match=rf"pairs\.json: {message}.* \(cross-image JSON is expected\)$"):
        make(content)


def test_nothing_to_ask_for(make):
    with pytest.raises(DataError, match=r"pairs\.json has no object with a visual prompt"):
        make([pair([], [there(CAT, (0, 0))])])


@pytest.mark.parametrize(("split", "pairs", "prompts", "targets"), [("train", 66, 170, 120), ("val", 44, 111, 79)])
def test_real_images(coco_real, split, pairs, prompts, targets):
    path = coco_real / f"coco_cross_{split}.json"
    data = CrossImageData(path, (coco_real / f"{split}2017",))
    assert len(data) == pairs
    records = []
    for index, raw in enumerate(json.loads(path.read_text())):
        data.check(index)
        record = data.record(index)
        records.append(record)
        assert (record.sample_id, record.image_id) == (raw["new_img_id"], raw["image1_info"]["id"])
        assert record.prompt.annotation_ids == tuple(each["id"] for each in raw["annotations"])
        for answer, each in zip(record.answers, raw["annotations"], strict=True):
            height, width = record.image.shape[:2]
            rles = []
            for other in raw["annotations1"]:
                if other["category_id"] == each["category_id"] and not other["iscrowd"]:
                    polygons = isinstance(other["segmentation"], list)
                    rles += (
                        coco_mask.frPyObjects(other["segmentation"], height, width)
                        if polygons
                        else [other["segmentation"]]
                    )
            assert coco_mask.iou([encode_mask(record.masks[answer])], [coco_mask.merge(rles)], [0]) == 1
    assert sum(len(record.prompt.prompts) for record in records) == prompts
    assert sum(len(record.masks) for record in records) == targets
    assert any(record.image.shape != record.prompt.image.shape for record in records)
