"""Semantic ground truth, made from panoptic PNGs or read from semantic ones."""

import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from psalm.constants import SEMANTIC
from psalm.data.coco_semantic import SemanticData
from psalm.data.errors import BadImageError, DataError

CATEGORIES = [
    {"id": 90, "name": "cat", "isthing": 1},
    {"id": 7, "name": "sky", "isthing": 0},
    {"id": 13, "name": "dog", "isthing": 1},
]
LABELS = np.array([[2, 1, -1], [2, 0, 2]])
"""What both images show: of two dogs one id is above 65535, the cat is a crowd."""
SEGMENT_IDS = np.array([[70_000, 300, 0], [70_000, 5, 6]])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of 3 x 2 pixels."""
    maps = tmp_path / "annotations" / "panoptic_val2017"
    maps.mkdir(parents=True)
    (tmp_path / "val2017").mkdir()
    segments = [
        {"id": 300, "category_id": 7, "iscrowd": 0},
        {"id": 5, "category_id": 90, "iscrowd": 1},
        {"id": 70_000, "category_id": 13, "iscrowd": 0},
        {"id": 6, "category_id": 13, "iscrowd": 0},
    ]
    content: dict[str, Any] = {"categories": CATEGORIES, "images": [], "annotations": []}
    for image_id in (4, 2):
        rgb = np.stack([SEGMENT_IDS % 256, SEGMENT_IDS // 256 % 256, SEGMENT_IDS // 65536], axis=-1)
        Image.fromarray(rgb.astype(np.uint8)).save(maps / f"{image_id}.png")
        Image.new("RGB", (3, 2), (image_id, 0, 0)).save(tmp_path / "val2017" / f"{image_id}.jpg")
        content["images"].append({"id": image_id, "file_name": f"{image_id}.jpg"})
        content["annotations"].append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments})
    (tmp_path / "annotations" / "panoptic_val2017.json").write_text(json.dumps(content))
    return tmp_path


def add_semantic(root: Path, pixels: np.ndarray, inside: bool = False) -> Path:
    folder = (root / "annotations" if inside else root) / "panoptic_semseg_val2017"
    folder.mkdir()
    for name in ("4.png", "2.png"):
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_labels_from_panoptic_pngs(root):
    data = SemanticData(root, "val")
    record = data.record(1)
    assert (data.task, len(data), data.image_ids) == (SEMANTIC, 2, (4, 2))
    assert (record.image_id, record.file_name, record.image.shape) == (2, "2.jpg", (2, 3, 3))
    assert record.label_map.dtype == np.int32
    assert record.label_map.tolist() == LABELS.tolist()
    assert [info.name for info in data.classes] == ["cat", "sky", "dog"]
    assert data.files(0)[1] == ("panoptic PNG", root / "annotations" / "panoptic_val2017" / "4.png")


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_labels_from_semantic_pngs(root, kind, inside):
    labels = np.array([[0, 255, 2], [1, 1, 255]])
    folder = add_semantic(root, labels.astype(kind), inside)
    data = SemanticData(root, "val")
    label_map = data.record(0).label_map
    assert label_map.dtype == np.int32
    assert label_map.tolist() == [[0, -1, 2], [1, 1, -1]]
    assert data.files(0) == (("image", root / "val2017" / "4.jpg"), ("semantic PNG", folder / "4.png"))


def test_palette_of_a_semantic_png_does_not_matter(root):
    folder = add_semantic(root, np.zeros((2, 3), dtype=np.uint8))
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 255]], dtype=np.uint8)).convert("P")
    image.putpalette([200, 100, 50] * 256)
    image.save(folder / "4.png")
    assert SemanticData(root, "val").record(0).label_map.tolist() == [[0, 1, 2], [2, 1, -1]]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_label_beyond_the_categories(root, kind):
    add_semantic(root, np.full((2, 3), 3, dtype=kind))
    message = (
        r"semantic PNG .*semseg_val2017.4\.png has the label 3, but .*panoptic_val2017\.json has 3 categories: "
        "0 to 2, or 255 for unlabelled, is expected"
    )
    data = SemanticData(root, "val")
    with pytest.raises(DataError, match=message):
        data.record(0)
    with pytest.raises(DataError, match=message):
        data.check(0)


def test_semantic_png_in_colour(root):
    add_semantic(root, np.zeros((2, 3, 3), dtype=np.uint8))
    with pytest.raises(
        DataError, match=r"semantic PNG .*4\.png must have one channel of 8 or 16 bits, but its mode is RGB"
    ):
        SemanticData(root, "val").record(0)


def test_more_categories_than_semantic_pngs_tell_apart(root):
    path = root / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["categories"] += [{"id": 1000 + i, "name": f"kind {i}", "isthing": 1} for i in range(253)]
    path.write_text(json.dumps(content))
    assert len(SemanticData(root, "val").classes) == 256
    add_semantic(root, np.zeros((2, 3), dtype=np.uint16))
    with pytest.raises(DataError, match=r"can tell 255 categories apart, since 255 is unlabelled, but .*json has 256"):
        SemanticData(root, "val")


@pytest.mark.parametrize("semantic", [False, True])
def test_image_of_another_size(root, semantic):
    if semantic:
        add_semantic(root, np.zeros((2, 3), dtype=np.uint8))
    Image.new("RGB", (3, 4)).save(root / "val2017" / "4.jpg")
    with pytest.raises(DataError, match=r"4\.png is 3 x 2 pixels, but its image .*4\.jpg is 3 x 4 pixels"):
        SemanticData(root, "val").record(0)


def test_bad_semantic_pngs_are_named_and_logged_once(root, caplog):
    folder = add_semantic(root, np.zeros((2, 3), dtype=np.uint8))
    (folder / "4.png").unlink()
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:-30])
    data = SemanticData(root, "val", skip_bad_images=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with pytest.raises(BadImageError, match=r"semantic PNG .*4\.png is missing"):
                data.record(0)
            with pytest.raises(BadImageError, match=r"semantic PNG .*2\.png is truncated or not an image"):
                data.check(1)
    assert len(caplog.records) == 2
    assert data.bad_images == ("4.jpg", "2.jpg")


def test_selected_and_copied_samples(root):
    chosen = pickle.loads(pickle.dumps(SemanticData(root, "val").select([1])))
    assert (len(chosen), chosen.image_ids, chosen.record(0).image_id) == (1, (2,), 2)
    assert chosen.record(0).label_map.tolist() == LABELS.tolist()


def test_real_images_agree_with_semantic_pngs_made_as_mask2former_makes_them(coco_real, tmp_path):
    """Every segment's category painted over 255, into a copy; images with stuff and a sample of the others."""
    split = "val"
    raw = json.loads((coco_real / "annotations" / f"panoptic_{split}2017.json").read_text())
    place = {category["id"]: index for index, category in enumerate(raw["categories"])}
    shutil.copytree(coco_real / "annotations", tmp_path / "annotations")
    folder = tmp_path / "annotations" / f"panoptic_semseg_{split}2017"
    folder.mkdir()
    chosen = [
        index
        for index, annotation in enumerate(raw["annotations"])
        if annotation["image_id"] in raw["info"]["real_image_ids"] or index % 6 == 0
    ]
    for index in chosen:
        annotation = raw["annotations"][index]
        rgb = np.asarray(Image.open(coco_real / "annotations" / f"panoptic_{split}2017" / annotation["file_name"]))
        ids = rgb[..., 0] + 256 * rgb[..., 1].astype(int) + 65536 * rgb[..., 2].astype(int)
        painted = np.full(ids.shape, 255, dtype=np.uint8)
        for segment in annotation["segments_info"]:
            painted[ids == segment["id"]] = place[segment["category_id"]]
        Image.fromarray(painted).save(folder / annotation["file_name"])
    made = SemanticData(coco_real, split)
    read = SemanticData(tmp_path, split, image_folder=coco_real)
    assert (made.label_maps, read.label_maps) == (None, folder)
    for index in chosen:
        first, second = made.record(index), read.record(index)
        assert np.array_equal(first.label_map, second.label_map)
        assert first.label_map.shape == first.image.shape[:2]
