"""COCO-Interactive: files made here, with everything that can be wrong with them, and real images."""

import json
import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from psalm.data.errors import BadImageError, DataError
from psalm.data.interactive import RegionData
from psalm.data.masks import encode_mask
from psalm.data.visual_prompts import PROMPT_TYPES, prompt_key, prompt_mask

HEIGHT, WIDTH = 6, 8
SQUARE = [[1, 1, 4, 1, 4, 4, 1, 4]]
NOTHING = encode_mask(np.zeros((HEIGHT, WIDTH), dtype=bool))


def rle(top: int, left: int) -> dict[str, Any]:
    """Two by two pixels."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top : top + 2, left : left + 2] = True
    return encode_mask(mask)


def annotation(annotation_id: int, **changes: Any) -> dict[str, Any]:
    prompts = {prompt_key(kind): rle(number, annotation_id % 5) for number, kind in enumerate(PROMPT_TYPES)}
    base = {"id": annotation_id, "category_id": 3, "iscrowd": 0, "segmentation": SQUARE, "image_id": 0}
    return {**base, **prompts, **changes}


def sample(image_id: int, *annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "image": f"{image_id}.png",
        "image_info": {"id": image_id, "height": HEIGHT, "width": WIDTH, "file_name": "not this one"},
        "new_img_id": 99,
        "anns": list(annotations),
    }


@pytest.fixture
def make(tmp_path):
    """Writes samples and their images, and reads them."""

    def write(content: Any, **options: Any) -> RegionData:
        (tmp_path / "images").mkdir(exist_ok=True)
        for each in content if isinstance(content, list) else []:
            if isinstance(each, dict) and isinstance(each.get("image"), str):
                image = np.full((HEIGHT, WIDTH, 3), 40, dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / "images" / each["image"])
        (tmp_path / "regions.json").write_text(json.dumps(content))
        return RegionData(tmp_path / "regions.json", (tmp_path / "none", tmp_path / "images"), **options)

    return write


def test_records(make):
    data = make([sample(5, annotation(11), annotation(12, segmentation=rle(3, 3))), sample(6, annotation(13))])
    assert (len(data), data.task, data.classes) == (2, "region", ())
    record = data.record(0)
    assert (record.image_id, record.file_name, record.annotation_ids) == (5, "5.png", (11, 12))
    assert record.image.shape == (HEIGHT, WIDTH, 3)
    expected = np.zeros((2, HEIGHT, WIDTH), dtype=bool)
    expected[0, 1:4, 1:4] = True
    expected[1, 3:5, 3:5] = True
    assert record.masks.dtype == bool
    assert np.array_equal(record.masks, expected)
    assert [tuple(prompts) for prompts in record.prompts] == [PROMPT_TYPES, PROMPT_TYPES]
    box = prompt_mask("box", record.prompts[0]["box"], HEIGHT, WIDTH)
    assert [tuple(pixel) for pixel in np.argwhere(box)] == [(1, 1), (1, 2), (2, 1), (2, 2)]


@pytest.mark.parametrize(
    "left_out",
    [
        {"iscrowd": 1},
        {"segmentation": NOTHING},
        {"segmentation": []},
        {"segmentation": [[2, 2, 2.1, 2, 2.1, 2.1]]},
        {prompt_key(kind): NOTHING for kind in PROMPT_TYPES},
        {prompt_key(kind): None for kind in PROMPT_TYPES},
    ],
)
def test_regions_that_cannot_be_asked_for_are_left_out(make, left_out):
    data = make([sample(5, annotation(11, **left_out), annotation(12)), sample(6, annotation(13, **left_out))])
    assert len(data) == 1
    assert data.record(0).annotation_ids == (12,)


def test_without_iscrowd_it_is_no_crowd(make):
    without = annotation(11)
    del without["iscrowd"]
    assert make([sample(5, without)]).record(0).annotation_ids == (11,)


@pytest.mark.parametrize(
    "info",
    [
        {"image": "5.png", "img_id": 5, "file_name": "other.png", "id": 99},
        {"file_name": "5.png", "id": 5},
        {"image": "5.png", "id": 5},
    ],
)
def test_samples_like_half_a_pair(make, info):
    content = [{"image_info": {**info, "height": HEIGHT, "width": WIDTH}, "annotations": [annotation(11)]}]
    make([sample(5, annotation(11))])  # writes the image
    record = make(content).record(0)
    assert (record.image_id, record.file_name, record.annotation_ids) == (5, "5.png", (11,))
    assert np.count_nonzero(record.masks) == 9
    assert tuple(record.prompts[0]) == PROMPT_TYPES


def test_places_in_samples_like_half_a_pair(make):
    info = {"image": "5.png", "img_id": 5, "height": HEIGHT, "width": WIDTH}
    broken = annotation(11, segmentation=[[1, 2]])
    with pytest.raises(
        DataError, match=r"regions\.json: \[0\]\.annotations\[0\]\.segmentation cannot be used: a polygon"
    ):
        make([{"image_info": info, "annotations": [broken]}])


def test_samples_that_remain_are_counted_through(make):
    data = make([sample(4, annotation(1, iscrowd=1)), sample(5), sample(6, annotation(2)), sample(7, annotation(3))])
    assert data.rows.tolist() == [0, 1]
    assert [data.record(index).image_id for index in range(2)] == [6, 7]
    assert data.select([1]).record(0).image_id == 7


def test_only_the_types_that_are_asked_for(make):
    no_box, no_point = annotation(11), annotation(12, point_visual_prompt_mask=NOTHING)
    del no_box["box_visual_prompt_mask"]
    content = [sample(5, no_box, no_point, annotation(13, box_visual_prompt_mask=None)), sample(6, no_box)]
    data = make(content, prompt_types=("box", "mask"))
    assert [tuple(prompts) for prompts in data.record(0).prompts] == [("mask",), ("box", "mask"), ("mask",)]
    assert [data.questions(index) for index in range(2)] == [("box", "mask"), ("mask",)]
    boxes = make(content, prompt_types=("box",))
    assert len(boxes) == 1
    assert boxes.record(0).annotation_ids == (12,)
    assert boxes.questions(0) == ("box",)


def test_files(make, tmp_path):
    data = make([sample(5, annotation(11))])
    assert data.files(0) == (("image", tmp_path / "images" / "5.png"),)
    assert data.image_names(0) == ("5.png",)
    assert data.annotation_files == (tmp_path / "regions.json",)


def test_copies_read_the_same(make):
    data = make([sample(5, annotation(11))])
    assert pickle.loads(pickle.dumps(data)).record(0).annotation_ids == data.record(0).annotation_ids


def test_bad_images_are_named(make, tmp_path):
    data = make([sample(5, annotation(11))])
    (tmp_path / "images" / "5.png").unlink()
    with pytest.raises(BadImageError, match=r"image .*5\.png is missing"):
        data.record(0)
    assert data.bad_images == ("5.png",)
    data.check(0)


def test_image_of_another_size(make, tmp_path):
    data = make([sample(4), sample(5, annotation(11))])
    Image.new("RGB", (3, 4)).save(tmp_path / "images" / "5.png")
    with pytest.raises(
        DataError, match=r"image .*5\.png is 3 x 4 pixels, but \[1\]\.image_info of .*regions\.json says 8 x 6"
    ):
        data.record(0)


def info(content: Any) -> dict[str, Any]:
    return content[1]["image_info"]


def ann(content: Any) -> dict[str, Any]:
    return content[1]["anns"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.insert(0, 3), r"\[0\] must be an object, but is int"),
        (lambda c: c[1].update(image=5), r"\[1\]\.image must be str, but is 5"),
        (lambda c: c[1].update(image1_info={}), r"\[1\] has image1_info, as cross-image data have"),
        (lambda c: c[1].pop("anns"), r"\[1\] has no key 'anns'"),
        (lambda c: c[1].pop("image_info"), r"\[1\] has no key 'image_info'"),
        (lambda c: c[1].update(anns={}), r"\[1\]\.anns must be list, but is {}"),
        (lambda c: info(c).pop("id"), r"\[1\]\.image_info has no key 'id'"),
        (lambda c: info(c).update(width="8"), r"\[1\]\.image_info\.width must be int, but is '8'"),
        (lambda c: info(c).update(height=0), r"\[1\]\.image_info cannot be used: an image must .* height 0 and"),
        (lambda c: ann(c).pop("id"), r"\[1\]\.anns\[1\] has no key 'id'"),
        (lambda c: ann(c).pop("segmentation"), r"\[1\]\.anns\[1\] has no key 'segmentation'"),
        (lambda c: ann(c).update(segmentation=7), r"\[1\]\.anns\[1\]\.segmentation must be list or dict, but is 7"),
        (lambda c: ann(c).update(segmentation=[[1, 2]]), r"anns\[1\]\.segmentation cannot be used: a polygon must be"),
        (lambda c: ann(c).update(iscrowd=2), r"\[1\]\.anns\[1\]\.iscrowd must be 0 or 1, but is 2"),
        (
            lambda c: ann(c).update(mask_visual_prompt_mask=[]),
            r"\[1\]\.anns\[1\]\.mask_visual_prompt_mask must be dict, but is \[\]",
        ),
        (
            lambda c: ann(c).update(box_visual_prompt_mask={"size": [8, 6], "counts": "1"}),
            r"anns\[1\]\.box_visual_prompt_mask cannot be used: an RLE of size \[8, 6\] does not fit its image",
        ),
        (
            lambda c: ann(c).update(scribble_visual_prompt_mask={"size": [HEIGHT, WIDTH], "counts": "999"}),
            r"anns\[1\]\.scribble_visual_prompt_mask cannot be used: the runs of an RLE cover 27 pixels, but its image",
        ),
    ],
)
def test_wrong_format_is_named_by_file_and_place(make, change, message):
    content = [sample(5, annotation(11)), sample(6, annotation(12), annotation(13))]
    change(content)
    with pytest.raises(DataError, match=message) as caught:
        make(content)
    assert "COCO-Interactive JSON is expected" in str(caught.value)
    assert "regions.json: [" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_object_at_the_top(make):
    with pytest.raises(DataError, match=r"regions\.json: the file must be a list of records, but is dict"):
        make({"images": []})


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.json is missing: COCO-Interactive JSON is expected there"):
        RegionData(tmp_path / "none.json", (tmp_path,))


def test_nothing_to_ask_for(make):
    expected = r"regions\.json has no object with a visual prompt: .* box_visual_prompt_mask or mask_visual_prompt_mask"
    without = annotation(11, box_visual_prompt_mask=NOTHING, mask_visual_prompt_mask=None)
    with pytest.raises(DataError, match=expected):
        make([sample(5, without)], prompt_types=("box", "mask"))


def test_unknown_type(make):
    with pytest.raises(ValueError, match="must be one of point, box, scribble, mask, but got 'circle'"):
        make([sample(5, annotation(11))], prompt_types=("circle",))


@pytest.mark.parametrize(("split", "samples", "regions"), [("train", 57, 601), ("val", 30, 330)])
def test_real_images(coco_real, split, samples, regions, capsys):
    data = RegionData(coco_real / f"coco_interactive_{split}_psalm.json", (coco_real / f"{split}2017",))
    official = COCO(coco_real / "annotations" / f"instances_{split}2017.json")
    capsys.readouterr()
    assert len(data) == samples
    seen = 0
    for index in range(len(data)):
        data.check(index)
        record = data.record(index)
        assert data.questions(index) == PROMPT_TYPES
        assert set(record.annotation_ids) == set(official.getAnnIds(imgIds=record.image_id, iscrowd=False))
        for annotation_id, mask in zip(record.annotation_ids, record.masks, strict=True):
            theirs = official.annToRLE(official.anns[annotation_id])
            assert coco_mask.iou([encode_mask(mask)], [theirs], [0]) == 1
        assert all(tuple(prompts) == PROMPT_TYPES for prompts in record.prompts)
        seen += len(record.prompts)
    assert seen == regions
