"""The reader of referring expressions in its three formats, on files made here, with what can be wrong with them."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from psalm.constants import REFERRING
from psalm.data.errors import BadImageError, DataError
from psalm.data.refer_coco import ReferringData, splits_of

HEIGHT, WIDTH = 8, 10
RECTANGLES = {31: (1, 5, 2, 6), 32: (0, 3, 0, 3), 33: (4, 8, 1, 9), 34: (2, 6, 5, 9)}
"""Annotation id -> rows and columns (y1, y2, x1, x2) of its object."""


def rectangle(annotation_id: int) -> np.ndarray:
    y1, y2, x1, x2 = RECTANGLES[annotation_id]
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def polygon(annotation_id: int) -> list[list[float]]:
    y1, y2, x1, x2 = RECTANGLES[annotation_id]
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def compressed(annotation_id: int) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(rectangle(annotation_id), dtype=np.uint8))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def uncompressed(annotation_id: int) -> dict[str, Any]:
    pixels = rectangle(annotation_id).T.ravel().astype(int).tolist()
    counts, value = [0], 0
    for pixel in pixels:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def annotation(annotation_id: int, image_id: int) -> dict[str, Any]:
    """31 is polygons, 32 compressed, 33 uncompressed RLE of a crowd, 34 polygons."""
    notation = {31: polygon, 32: compressed, 33: uncompressed, 34: polygon}[annotation_id]
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 7,
        "iscrowd": int(annotation_id == 33),
        "segmentation": notation(annotation_id),
    }


def sentences(*sents: str) -> list[dict[str, Any]]:
    return [{"sent": s, "raw": s.upper(), "tokens": s.split(), "sent_id": 90 + k} for k, s in enumerate(sents)]


def image_info(image_id: int) -> dict[str, Any]:
    return {"id": image_id, "file_name": f"COCO_{image_id}.jpg", "height": HEIGHT, "width": WIDTH, "license": 1}


def instances() -> dict[str, Any]:
    annotations = [annotation(34, 5), annotation(31, 11), annotation(33, 11), annotation(32, 11)]
    return {"images": [image_info(5), image_info(11)], "annotations": annotations, "categories": []}


def ref(ref_id: int, split: str, image_id: int, ann_id: Any, *sents: str) -> dict[str, Any]:
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "category_id": 7,
        "image_id": image_id,
        "file_name": f"COCO_{image_id}_{ref_id}.jpg",
        "split": split,
        "sent_ids": list(range(len(sents))),
        "sentences": sentences(*sents),
    }


def refs() -> list[dict[str, Any]]:
    return [
        ref(4, "train", 11, 31, "the left one", "left", "  "),
        ref(2, "testA", 5, 34, "lady in red"),
        ref(9, "train", 11, 33, "crowd"),
        ref(3, "val", 11, 32, "corner"),
        ref(7, "train", 11, 31, "left again"),
    ]


def grefs() -> list[dict[str, Any]]:
    return [
        {**ref(1, "train", 11, [31, 32], "both"), "no_target": False},
        {**ref(2, "train", 5, [-1], "a dog"), "no_target": True},
        {**ref(3, "train", 11, [], "a cat"), "no_target": True},
        {**ref(4, "train", 11, [32], "corner"), "no_target": False},
        {**ref(5, "val", 5, [34], "it"), "no_target": False},
    ]


def psalm_records() -> list[dict[str, Any]]:
    return [
        {
            "image": "COCO_11_4.jpg",
            "image_info": image_info(11),
            "instruction": sentences("left", "on the left"),
            "anns": [annotation(31, 11)],
            "new_img_id": 20,
        },
        {
            "image": "COCO_5.jpg",
            "image_info": image_info(5),
            "instruction": sentences("the right one"),
            "anns": [annotation(34, 5)],
            "new_img_id": 21,
        },
    ]


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image_id in (5, 11):
        pixels = np.full((HEIGHT, WIDTH, 3), 10 * image_id, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"COCO_{image_id}.jpg")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with RefCOCO's two files."""
    folder = tmp_path / "refcoco"
    folder.mkdir()
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs(), 0))
    (folder / "instances.json").write_text(json.dumps(instances()))
    return folder


@pytest.fixture
def generalised_root(tmp_path: Path) -> Path:
    """A folder with gRefCOCO's two files."""
    folder = tmp_path / "grefcoco"
    folder.mkdir()
    (folder / "grefs(unc).json").write_text(json.dumps(grefs()))
    (folder / "instances.json").write_text(json.dumps(instances()))
    return folder


@pytest.fixture
def psalm_file(tmp_path: Path) -> Path:
    path = tmp_path / "train_psalm.json"
    path.write_text(json.dumps(psalm_records()))
    return path


def test_psalm_json(psalm_file, images):
    data = ReferringData(psalm_file, "train", [images])
    assert (data.task, len(data), data.classes, data.annotation_files) == (REFERRING, 2, (), (psalm_file,))
    record = data.record(0)
    assert (record.image_id, record.file_name, record.sample_id) == (11, "COCO_11.jpg", 20)
    assert record.expressions == ("left", "on the left")
    assert (record.image.shape, record.image.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    assert abs(record.image.astype(int) - 110).max() <= 2
    assert record.masks.dtype == bool
    assert np.array_equal(record.masks, [rectangle(31)])
    assert np.array_equal(data.record(1).masks, [rectangle(34)])


def test_psalm_json_is_a_split_whatever_its_name(psalm_file, images):
    assert splits_of(psalm_file) == ()
    assert len(ReferringData(psalm_file, "testB", [images])) == 2


@pytest.mark.parametrize("name", ["", "refs(unc).p"])
def test_refcoco_by_folder_and_by_file(root, images, name):
    data = ReferringData(root / name, "train", [images])
    assert data.annotation_files == (root / "refs(unc).p", root / "instances.json")
    records = [data.record(index) for index in range(len(data))]
    assert [(r.sample_id, r.image_id, r.file_name, r.expressions) for r in records] == [
        (4, 11, "COCO_11.jpg", ("the left one", "left")),
        (9, 11, "COCO_11.jpg", ("crowd",)),
        (7, 11, "COCO_11.jpg", ("left again",)),
    ]
    for record, annotation_id in zip(records, (31, 33, 31), strict=True):
        assert np.array_equal(record.masks, [rectangle(annotation_id)])


@pytest.mark.parametrize(("split", "sample_id", "annotation_id"), [("val", 3, 32), ("testA", 2, 34)])
def test_other_splits(root, images, split, sample_id, annotation_id):
    data = ReferringData(root, split, [images])
    assert len(data) == 1
    assert data.record(0).sample_id == sample_id
    assert np.array_equal(data.record(0).masks, [rectangle(annotation_id)])


def test_splits_of(root, generalised_root):
    assert splits_of(root) == ("train", "testA", "val")
    assert splits_of(generalised_root / "grefs(unc).json") == ("train", "val")


def test_unknown_split(root, images):
    with pytest.raises(DataError, match=r"refs\(unc\)\.p has no record of the split 'test', only of train, testA"):
        ReferringData(root, "test", [images])


def test_grefcoco(generalised_root, images):
    data = ReferringData(generalised_root, "train", [images])
    records = [data.record(index) for index in range(len(data))]
    assert [record.sample_id for record in records] == [1, 2, 3, 4]
    assert [record.masks.shape for record in records] == [(n, HEIGHT, WIDTH) for n in (2, 0, 0, 1)]
    assert np.array_equal(records[0].masks, [rectangle(31), rectangle(32)])
    assert records[1].expressions == ("a dog",)
    assert records[1].masks.dtype == bool


@pytest.mark.parametrize(
    ("change", "targets"),
    [({"ann_id": [-1]}, 0), ({"ann_id": -1}, 0), ({"ann_id": []}, 0), ({"no_target": 1}, 0), ({"no_target": 0}, 1)],
)
def test_each_way_to_say_that_nothing_is_meant(generalised_root, images, change, targets):
    only = {**ref(5, "val", 5, [34], "it"), **change}
    (generalised_root / "grefs(unc).json").write_text(json.dumps([only]))
    data = ReferringData(generalised_root, "val", [images])
    assert len(data.record(0).masks) == targets
    assert data.generalised is (targets == 0)


def test_psalm_json_of_grefcoco(tmp_path, images):
    content = psalm_records()
    content[0]["anns"] = []
    content[1]["anns"] = [annotation(31, 5), annotation(34, 5)]
    (tmp_path / "g.json").write_text(json.dumps(content))
    data = ReferringData(tmp_path / "g.json", "train", [images])
    assert [len(data.record(index).masks) for index in (0, 1)] == [0, 2]
    assert data.generalised


def test_several_targets_are_generalised_too(generalised_root, images):
    several, single = grefs()[0], grefs()[3]
    (generalised_root / "grefs(unc).json").write_text(json.dumps([several, single]))
    data = ReferringData(generalised_root, "train", [images])
    assert data.generalised
    assert data.select([1]).generalised  # as the whole split, so that predictions are made in one way


def test_one_target_each_is_not_generalised(root, images):
    data = ReferringData(root, "train", [images])
    assert not data.generalised


def test_counts_follow_the_selection(root, images):
    data = ReferringData(root, "train", [images])
    assert [len(data.questions(index)) for index in range(3)] == [2, 1, 1]
    chosen = data.select([2, 0])
    assert [list(chosen.questions(index)) for index in range(2)] == [[0], [0, 1]]
    assert [chosen.record(index).sample_id for index in range(2)] == [7, 4]


def test_image_folders_in_order(psalm_file, images, tmp_path):
    write_images(tmp_path / "second")
    (images / "COCO_5.jpg").unlink()
    data = ReferringData(psalm_file, "train", [images, tmp_path / "second"])
    assert [data.files(index) for index in range(2)] == [
        (("image", images / "COCO_11.jpg"),),
        (("image", tmp_path / "second" / "COCO_5.jpg"),),
    ]
    assert data.image_names(1) == ("COCO_5.jpg",)


def test_copies_are_light_and_read_no_file(root, images):
    data = ReferringData(root, "train", [images])
    for name in ("refs(unc).p", "instances.json"):
        (root / name).unlink()
    assert len(pickle.dumps(data)) < 4000
    assert pickle.loads(pickle.dumps(data)).record(1).sample_id == 9


def test_an_object_that_many_expressions_mean_is_kept_once(root, images):
    many = [ref(number, "train", 11, 31, "left") for number in range(100)]
    (root / "refs(unc).p").write_bytes(pickle.dumps(many))
    content = instances()
    content["annotations"][1]["segmentation"] *= 50
    (root / "instances.json").write_text(json.dumps(content))
    data = ReferringData(root, "train", [images])
    assert len(pickle.dumps(data)) < 100 * len(json.dumps(content["annotations"][1])) / 5
    assert np.array_equal(data.record(99).masks, [rectangle(31)])


def test_folder_with_several_files_of_expressions(root, images):
    (root / "refs(google).p").write_bytes(pickle.dumps(refs()))
    (root / "grefs(unc).json").write_text("[]")
    names = r"\(grefs\(unc\)\.json, refs\(google\)\.p, refs\(unc\)\.p\)"
    with pytest.raises(DataError, match=f"refcoco has several files of expressions {names}: name one of them instead"):
        ReferringData(root, "train", [images])
    assert len(ReferringData(root / "refs(google).p", "train", [images])) == 3


def test_folder_without_expressions(images):
    with pytest.raises(DataError, match=r"images has no refs\*\.p or grefs\*\.json: RefCOCO's files are expected"):
        splits_of(images)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.json", b"[{", r"x\.json is not JSON: "),
        (
            "x.json",
            b"{}",
            r"x\.json: the file must be a list, but is dict \(PSALM's or gRefCOCO's referring JSON",
        ),
        ("x.json", b"[]", r"x\.json: the file must not be empty \(PSALM's or gRefCOCO's referring JSON is expected\)"),
        ("x.json", b"[3]", r"x\.json: \[0\] must be an object, but is int"),
        ("x.p", b"(lp0\n", r"x\.p is truncated, or not a pickle of plain values"),
        ("x.p", pickle.dumps({}), r"x\.p: the file must be a list, but is dict \(RefCOCO's list of refs is expected\)"),
        ("x.p", pickle.dumps([]), r"x\.p: the file must not be empty \(RefCOCO's list of refs is expected\)"),
        ("x.p", pickle.dumps([[]]), r"x\.p: \[0\] must be an object, but is list"),
        ("x.p", b"cposix\nsystem\n.", r"x\.p refers to posix\.system: only plain containers, strings and numbers"),
    ],
)
def test_files_of_another_format(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        ReferringData(tmp_path / name, "train", [tmp_path])
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path, root, images):
    with pytest.raises(DataError, match=r"none\.json is missing: PSALM's or gRefCOCO's referring JSON is expected"):
        ReferringData(tmp_path / "none.json", "train", [images])
    (root / "instances.json").unlink()
    with pytest.raises(DataError, match=r"refcoco.instances\.json is missing: COCO instances JSON is expected there"):
        ReferringData(root, "train", [images])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[1].pop("image_info"), r"\[1\] has no key 'image_info'"),
        (lambda c: c[1]["image_info"].pop("height"), r"\[1\].image_info has no key 'height'"),
        (lambda c: c[1]["image_info"].update(height=-1), r"\[1\].image_info cannot be used: an image must have"),
        (lambda c: c[1]["image_info"].update(id="5"), r"\[1\].image_info.id must be int, but is '5'"),
        (lambda c: c[1]["image_info"].update(file_name=5), r"\[1\].image_info.file_name must be str, but is 5"),
        (lambda c: c[1].pop("new_img_id"), r"\[1\] has no key 'new_img_id'"),
        (lambda c: c[1].update(anns={}), r"\[1\].anns must be list, but is {}"),
        (lambda c: c[1]["anns"][0].pop("segmentation"), r"\[1\].anns\[0\] has no key 'segmentation'"),
        (lambda c: c[1]["anns"][0].update(segmentation="x"), r"\[1\].anns\[0\].segmentation must be list or dict, but"),
        (
            lambda c: c[1]["anns"][0].update(segmentation=[[1, 2, 3, 4]]),
            r"\[1\].anns\[0\].segmentation cannot be used: a polygon must be a list",
        ),
        (lambda c: c[1].update(instruction="x"), r"\[1\].instruction must be list, but is 'x'"),
        (lambda c: c[1]["instruction"][0].pop("sent"), r"\[1\].instruction\[0\] has no key 'sent'"),
        (lambda c: c[1]["instruction"][0].update(sent=3), r"\[1\].instruction\[0\].sent must be str, but is 3"),
        (lambda c: c[1]["instruction"][0].update(sent=" "), r"\[1\].instruction has no expression that is not blank"),
        (lambda c: c[1].update(instruction=[]), r"\[1\].instruction has no expression that is not blank"),
        (lambda c: c.append(None), r"\[2\] must be an object, but is NoneType"),
    ],
)
def test_wrong_psalm_json_is_named_by_file_and_place(tmp_path, images, change, message):
    content = psalm_records()
    change(content)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        ReferringData(path, "train", [images])
    text = str(caught.value)
    assert text.startswith(f"{path}: [")
    assert text.endswith("(PSALM's or gRefCOCO's referring JSON is expected)")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[0].pop("split"), r"\[0\] has no key 'split'"),
        (lambda r: r[1].update(split=1), r"\[1\].split must be str, but is 1"),
        (lambda r: r[0].pop("ref_id"), r"\[0\] has no key 'ref_id'"),
        (lambda r: r[0].pop("sentences"), r"\[0\] has no key 'sentences'"),
        (lambda r: r[0]["sentences"].__delitem__(slice(0, 2)), r"\[0\].sentences has no expression that is not blank"),
        (lambda r: r[0].update(image_id="11"), r"\[0\].image_id must be int, but is '11'"),
        (
            lambda r: r[0].update(image_id=12),
            r"\[0\].image_id is 12, which is not among the images of .*json",
        ),
        (lambda r: r[0].update(ann_id=77), r"\[0\].ann_id names 77, which is not among the annotations of .*\.json"),
        (lambda r: r[0].update(ann_id=[31, 77]), r"\[0\].ann_id names 77, which is not among the annotations"),
        (lambda r: r[0].update(ann_id=[31, -1]), r"\[0\].ann_id names -1, which is not among the annotations"),
        (lambda r: r[0].update(ann_id=None), r"\[0\].ann_id must be int or list, but is None"),
        (lambda r: r[0].update(ann_id=["31"]), r"\[0\].ann_id must be an id or a list of ids, but is \['31'\]"),
        (lambda r: r[0].update(no_target=2), r"\[0\].no_target must be 0 or 1, but is 2"),
    ],
)
def test_wrong_refs_are_named_by_file_and_place(root, images, change, message):
    content = refs()
    change(content)
    (root / "refs(unc).p").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        ReferringData(root, "train", [images])
    text = str(caught.value)
    assert text.startswith(f"{root / 'refs(unc).p'}: [")
    assert text.endswith("(RefCOCO's list of refs is expected)")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "the file has no key 'images'"),
        (lambda c: c.update(annotations=3), "annotations must be list, but is 3"),
        (lambda c: c["images"][1].pop("file_name"), r"images\[1\] has no key 'file_name'"),
        (lambda c: c["images"][1].update(width=2.5), r"images\[1\].width must be int, but is 2.5"),
        (lambda c: c["images"][1].update(id=5), r"images\[1\] has the id 5 of an earlier image"),
        (lambda c: c["annotations"][2].pop("id"), r"annotations\[2\] has no key 'id'"),
        (lambda c: c["annotations"][2].update(id=31), r"annotations\[2\] has the id 31 of an earlier annotation"),
        (lambda c: c["annotations"][1].pop("segmentation"), r"annotations\[1\] has no key 'segmentation'"),
        (
            lambda c: c["annotations"][1].update(segmentation={"size": [WIDTH, HEIGHT], "counts": [80]}),
            r"annotations\[1\].segmentation cannot be used: an RLE of size \[10, 8\] does not fit its image",
        ),
        (
            lambda c: c["annotations"][1].update(image_id=5),
            r"annotations\[1\].image_id is 5, but the expressions that mean this object are about image 11",
        ),
    ],
)
def test_wrong_instances_are_named_by_file_and_place(root, images, change, message):
    content = instances()
    change(content)
    (root / "instances.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        ReferringData(root, "train", [images])
    text = str(caught.value)
    assert text.startswith(f"{root / 'instances.json'}: ")
    assert text.endswith("(COCO instances JSON is expected)")


def test_expressions_about_one_object_must_agree_on_its_image(root, images):
    content = [ref(1, "train", 11, 31, "left"), ref(2, "train", 5, 31, "left")]
    (root / "refs(unc).p").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"annotations\[1\].image_id is 11, but the expressions .* are about image 5"):
        ReferringData(root, "train", [images])


def test_other_splits_are_not_joined(root, images):
    """A fault in the records of a split that is not asked for does no harm."""
    content = refs()
    content[1]["ann_id"] = 77
    (root / "refs(unc).p").write_bytes(pickle.dumps(content))
    assert len(ReferringData(root, "train", [images])) == 3


@pytest.mark.parametrize("of_refs", [False, True])
def test_image_of_another_size(psalm_file, root, images, of_refs):
    path, source = (root, root / "instances.json") if of_refs else (psalm_file, psalm_file)
    Image.new("RGB", (3, 4)).save(images / "COCO_11.jpg")
    with pytest.raises(DataError) as caught:
        ReferringData(path, "train", [images]).record(0)
    expected = f"{images / 'COCO_11.jpg'} is 3 x 4 pixels, but image 11 of {source} is 10 x 8 pixels"
    assert str(caught.value) == expected


def test_no_target_needs_an_image_of_the_right_size_too(generalised_root, images):
    Image.new("RGB", (3, 4)).save(images / "COCO_5.jpg")
    with pytest.raises(DataError, match=r"COCO_5\.jpg is 3 x 4 pixels, but image 5"):
        ReferringData(generalised_root, "train", [images]).record(1)


def test_bad_images_are_named_and_counted(psalm_file, images):
    data = ReferringData(psalm_file, "train", [images], skip_bad_images=True)
    (images / "COCO_5.jpg").unlink()
    os.truncate(images / "COCO_11.jpg", 200)
    with pytest.raises(BadImageError, match=r"image .*COCO_5\.jpg is missing"):
        data.record(1)
    assert data.bad_images == ("COCO_5.jpg",)
    with pytest.raises(BadImageError, match=r"image .*COCO_11\.jpg is truncated or not an image"):
        data.record(0)
    data.check(0)  # the ground truth is whole
