"""The built-in data set: official layout, the same bytes per seed, safe to make twice at once."""

import json
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from psalm.data.builtin import CATEGORIES, FORMAT, SPLITS, default_cache, ensure_builtin, resolve_root
from psalm.data.coco_panoptic import PanopticData
from psalm.data.errors import DataError
from psalm.data.scenes import THING_CLASSES, draw_scene


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes(builtin_root, tmp_path):
    again = ensure_builtin(tmp_path, seed=3, train_images=10, val_images=4)
    assert contents(again) == contents(builtin_root)


def test_other_seed_and_other_split_are_other_pictures(builtin_root, tmp_path):
    other = ensure_builtin(tmp_path, seed=4, train_images=1, val_images=1)
    pictures = [path.read_bytes() for root in (builtin_root, other) for path in root.rglob("*.jpg")]
    assert len(pictures) == 16
    assert len(set(pictures)) == 16


def test_larger_set_begins_with_the_smaller_one(builtin_root, tmp_path):
    smaller = ensure_builtin(tmp_path, seed=3, train_images=2, val_images=1)
    pictures = {name: data for name, data in contents(smaller).items() if not name.endswith(".json")}
    assert pictures.items() <= contents(builtin_root).items()


def test_made_once(builtin_root):
    before = {path: path.stat().st_mtime_ns for path in builtin_root.rglob("*")}
    assert ensure_builtin(builtin_root.parent, seed=3, train_images=10, val_images=4) == builtin_root
    assert {path: path.stat().st_mtime_ns for path in builtin_root.rglob("*")} == before


def test_two_processes_at_once(tmp_path, builtin_root):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        roots = list(processes.map(ensure_builtin, [tmp_path] * 2, [3] * 2, [10] * 2, [4] * 2))
    assert roots[0] == roots[1]
    assert contents(roots[0]) == contents(builtin_root)
    assert list(tmp_path.iterdir()) == [roots[0]]  # no draft is left


def test_the_slower_of_two_keeps_the_faster_ones_copy(tmp_path, builtin_root, monkeypatch):
    """Both have a finished draft before either renames it."""
    barrier = threading.Barrier(2, timeout=60)
    rename = Path.rename

    def together(self, target):
        barrier.wait()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", together)
    with ThreadPoolExecutor(2) as threads:
        roots = list(threads.map(ensure_builtin, [tmp_path] * 2, [3] * 2, [1] * 2, [1] * 2))
    assert roots[0] == roots[1]
    assert len(list(tmp_path.iterdir())) == 1


def test_scenes_hold_what_they_promise():
    for index in range(40):
        scene = draw_scene(np.random.default_rng([9, index]))
        assert 1 <= len(scene.objects) <= 6
        counts = np.bincount(scene.object_map[scene.object_map >= 0], minlength=len(scene.objects))
        assert counts.min() > 100  # every object is seen
        for index_, thing in enumerate(scene.objects):
            kind = THING_CLASSES[thing.class_index]
            assert (thing.shape, thing.pattern) == (kind.shape, kind.pattern)
            assert thing.colour in kind.colours
            ys, xs = np.nonzero(scene.object_map == index_)
            assert np.hypot(xs - thing.centre[0], ys - thing.centre[1]).max() < 1.3 * thing.radius


def test_most_scenes_have_several_objects_that_overlap():
    scenes = [draw_scene(np.random.default_rng([9, index])) for index in range(40)]
    assert np.mean([len(scene.objects) >= 3 for scene in scenes]) >= 0.95
    overlapping = 0
    for scene in scenes:
        seen = np.bincount(scene.object_map[scene.object_map >= 0], minlength=len(scene.objects))
        full = [
            {"circle": np.pi, "square": 4 * 0.86**2, "triangle": 3 * np.sqrt(3) * 0.62**2}[thing.shape]
            * thing.radius**2
            for thing in scene.objects
        ]
        overlapping += bool((seen < 0.9 * np.array(full)).any())
    assert overlapping >= 20


def test_files_agree_with_each_other(builtin_root):
    for split in SPLITS:
        dataset = PanopticData(builtin_root, split)
        folder = builtin_root / "annotations"
        instances = COCO(folder / f"instances_{split}2017.json")
        attributes = {
            scene["image_id"]: {thing["segment_id"]: thing for thing in scene["objects"]}
            for scene in json.loads((folder / f"attributes_{split}2017.json").read_text())["scenes"]
        }
        panoptic = json.loads((folder / f"panoptic_{split}2017.json").read_text())["annotations"]
        for index, annotation in enumerate(panoptic):
            record = dataset.record(index)
            assert (record.segment_map > 0).all()
            assert [s.area for s in record.segments] == [s["area"] for s in annotation["segments_info"]]
            things = [segment for segment in record.segments if segment.isthing]
            found = instances.loadAnns(instances.getAnnIds([record.image_id]))
            for segment, instance in zip(things, found, strict=True):
                assert np.array_equal(instances.annToMask(instance).astype(bool), record.segment_map == segment.id)
                assert instance["category_id"] == dataset.classes[segment.category].id
                thing = attributes[record.image_id][segment.id]
                assert thing["category_id"] == instance["category_id"]


@pytest.mark.parametrize("split", SPLITS)
def test_files_of_the_other_tasks_are_about_the_same_objects(builtin_root, split):
    content = json.loads((builtin_root / "annotations" / f"instances_{split}2017.json").read_text())
    instances = {annotation["id"]: annotation for annotation in content["annotations"]}
    names = {image["file_name"] for image in content["images"]}
    refer, interactive, cross = (
        json.loads((builtin_root / name).read_text())
        for name in (f"refer_{split}_psalm.json", f"coco_interactive_{split}_psalm.json", f"coco_cross_{split}.json")
    )
    annotations = [record["anns"] for record in (*refer, *interactive)]
    annotations += [pair[side] for pair in cross for side in ("annotations", "annotations1")]
    for annotation in (each for of_record in annotations for each in of_record):
        without_prompts = {key: value for key, value in annotation.items() if "prompt" not in key}
        assert without_prompts == instances[annotation["id"]]
    assert {record["image"] for record in interactive} == names, "every image has regions"
    assert len(cross) == len(names), "and is shown in one pair"
    asked = {annotation["id"] for record in refer for annotation in record["anns"]}
    assert len(asked) > 0.9 * len(instances), "nearly every object can be singled out in words"


def test_bytes_are_pinned(builtin_root):
    """Other bytes need another FORMAT, and the vision towers that were trained on them anew."""
    assert FORMAT == 2
    pinned = {
        "refer_val_psalm.json": "b2f69e268e010305",
        "coco_interactive_val_psalm.json": "cd5c345984575c13",
        "coco_cross_val.json": "3e2ef2a011a2b180",
    }
    assert {name: sha256((builtin_root / name).read_bytes()).hexdigest()[:16] for name in pinned} == pinned


def test_category_ids_have_a_gap():
    ids = [category["id"] for category in CATEGORIES]
    assert len(set(ids)) == len(ids) < max(ids)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PSALM_CACHE", str(tmp_path / "there"))
    assert default_cache() == tmp_path / "there"
    monkeypatch.delenv("PSALM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "psalm-deformable"


def test_resolve_root(tmp_path):
    assert resolve_root(str(tmp_path)) == tmp_path


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="seed must be at least 0, but got -1"):
        ensure_builtin(tmp_path, seed=-1)
    with pytest.raises(ValueError, match="val_images must be at least 1, but got 0"):
        ensure_builtin(tmp_path, val_images=0)


def test_cache_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file cannot be written \(.*\): set PSALM_CACHE to another folder"):
        ensure_builtin(tmp_path / "file")
