"""Making COCO-Interactive files: what is in them, and that they are whole or not there."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psalm.data import make_interactive
from psalm.data.errors import DataError
from psalm.data.interactive import RegionData
from psalm.data.make_interactive import interactive_records, main
from psalm.data.masks import encode_mask, segmentation_to_mask
from psalm.data.visual_prompts import PROMPT_TYPES, prompt_key, simulate_prompts

SIZES = {3: (30, 20), 1: (25, 40), 2: (10, 10)}


def annotation(annotation_id: int, image_id: int, **changes: Any) -> dict[str, Any]:
    left = annotation_id % 10
    polygon = [left, 2, left + 8.5, 2, left + 8, 9, left, 9]
    base = {"id": annotation_id, "image_id": image_id, "category_id": 4, "segmentation": [polygon], "area": 57.5}
    return {**base, **changes}


@pytest.fixture
def instances() -> dict[str, Any]:
    """Image 3 with a polygon, a crowd and an empty polygon, image 1 with an RLE, image 2 with an empty one."""
    crowd = {"size": [30, 20], "counts": [100, 50, 450]}
    rle = encode_mask(np.arange(1000).reshape(25, 40) % 40 > 20)
    return {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "height": size[0], "width": size[1], "license": 5}
            for number, size in SIZES.items()
        ],
        "annotations": [
            annotation(11, 1, segmentation=rle),
            annotation(12, 3),
            annotation(13, 3, segmentation=crowd, iscrowd=1),
            annotation(14, 3, segmentation=[[2, 2, 2.1, 2, 2.1, 2.1]]),
            annotation(15, 2, segmentation=[]),
        ],
    }


@pytest.fixture
def command(instances, tmp_path):
    """Writes the instances and calls the command."""

    def call(*options: str, content: Any = None) -> int:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / "instances.json").write_text(json.dumps(instances if content is None else content))
        (tmp_path / "out").mkdir(exist_ok=True)
        paths = ["--instances", str(tmp_path / "in" / "instances.json"), "--output", str(tmp_path / "out" / "new.json")]
        return main([*paths, *options])

    return call


def test_records(instances):
    first, second = interactive_records(instances)
    assert (first["image"], first["new_img_id"], first["image_info"]) == ("3.jpg", 0, instances["images"][0])
    assert (second["image"], second["new_img_id"], second["image_info"]) == ("1.jpg", 1, instances["images"][1])
    assert [each["id"] for each in first["anns"]] == [12, 13]
    assert [each["id"] for each in second["anns"]] == [11]
    assert first["anns"][1]["iscrowd"] == 1
    for each in (*first["anns"], *second["anns"]):
        original = next(one for one in instances["annotations"] if one["id"] == each["id"])
        assert {key: each[key] for key in original} == original
        assert each.keys() - original.keys() == set(map(prompt_key, PROMPT_TYPES))


def test_prompts_are_those_of_the_objects(instances):
    for seed in (0, 6):
        (record, _) = interactive_records(instances, seed)
        for each in record["anns"]:
            expected = simulate_prompts(segmentation_to_mask(each["segmentation"], 30, 20), each["id"], seed)
            for kind in PROMPT_TYPES:
                assert np.array_equal(segmentation_to_mask(each[prompt_key(kind)], 30, 20), expected[kind])


def test_prompts_do_not_depend_on_what_else_is_in_the_file(instances):
    everything = [each for record in interactive_records(instances) for each in record["anns"]]
    for each in everything:
        alone = {**instances, "annotations": [one for one in instances["annotations"] if one["id"] == each["id"]]}
        assert [one for record in interactive_records(alone) for one in record["anns"]] == [each]


def test_the_instances_stay_as_they_are(instances):
    before = json.dumps(instances)
    list(interactive_records(instances))
    assert json.dumps(instances) == before


def test_broken_segmentations_are_named(instances):
    instances["annotations"][1]["segmentation"] = [[1, 2]]
    with pytest.raises(
        DataError, match=r"f\.json: the segmentation of annotation 12 cannot be used: a polygon must be"
    ):
        list(interactive_records(instances, source="f.json"))


def test_the_command_writes_what_the_reader_reads(command, tmp_path, capsys):
    assert command() == 0
    output = tmp_path / "out" / "new.json"
    assert RegionData(output, (tmp_path,)).questions(0) == PROMPT_TYPES
    written, errors = capsys.readouterr()
    assert written == f"wrote 2 images with 3 annotations to {output}; 2 with an empty mask are left out\n"
    assert errors == ""
    assert [path.name for path in output.parent.iterdir()] == ["new.json"]


def test_two_runs_write_the_same_bytes(command, tmp_path):
    command()
    first = (tmp_path / "out" / "new.json").read_bytes()
    command("--overwrite")
    assert (tmp_path / "out" / "new.json").read_bytes() == first
    command("--overwrite", "--seed", "1")
    assert (tmp_path / "out" / "new.json").read_bytes() != first


def test_an_existing_file_is_refused_before_any_work(command, tmp_path, capsys, monkeypatch):
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "new.json"
    output.write_text("dear")
    monkeypatch.setattr(make_interactive, "read_instances", lambda path: pytest.fail("it has been read"))
    assert command() == 2
    assert (
        capsys.readouterr().err == f"{output} is there already: give --overwrite to replace it, or another --output\n"
    )
    assert output.read_text() == "dear"


def test_overwriting(command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "new.json").write_text("old")
    assert command("--overwrite") == 0
    assert len(json.loads((tmp_path / "out" / "new.json").read_text())) == 2


@pytest.mark.parametrize("kill", ["ctrl-c", "sigterm"])
def test_an_interrupted_run_leaves_nothing(command, tmp_path, capsys, monkeypatch, kill):
    drawn = []

    def interrupted(*arguments: Any) -> Any:
        drawn.append(list((tmp_path / "out").iterdir()))
        if len(drawn) == 3:
            if kill == "ctrl-c":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return simulate_prompts(*arguments)

    monkeypatch.setattr(make_interactive, "simulate_prompts", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    assert command() == 130
    assert len(drawn[-1]) == 1
    assert list((tmp_path / "out").iterdir()) == []
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_failed_run_leaves_the_old_file(command, tmp_path, instances, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "new.json").write_text("old")
    instances["annotations"][0]["segmentation"] = {"size": [2, 2], "counts": "1"}  # of the second image
    assert command("--overwrite") == 2
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [("new.json", "old")]
    errors = capsys.readouterr().err
    assert "instances.json: the segmentation of annotation 11 cannot be used: an RLE of size [2, 2]" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/new.json", "cannot be written (No such file or directory)"),
        (".", "is a folder: --output must name a file"),
    ],
)
def test_an_output_that_cannot_be_written(command, tmp_path, capsys, name, message):
    assert command("--output", str(tmp_path / name), "--overwrite") == 2
    assert capsys.readouterr().err == f"{tmp_path / name} {message}\n"


def test_a_disk_that_is_full(command, tmp_path, capsys, monkeypatch):
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert command() == 2
    assert capsys.readouterr().err.endswith("new.json cannot be written (No space left on device)\n")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "the file has no key 'images'"),
        (lambda c: c["images"][1].pop("file_name"), "images[1] has no key 'file_name'"),
        (lambda c: c["images"][1].update(width=0), "images[1] cannot be used: an image must have from 1 to"),
        (lambda c: c["images"][1].update(id=3), "images[1] has the id 3 of an earlier image"),
        (lambda c: c["images"][1].update(id=-3), "images[1].id must be at least 0, but is -3"),
        (lambda c: c["annotations"][2].update(id=-1), "annotations[2].id must be at least 0, but is -1"),
        (lambda c: c["annotations"][2].update(image_id=7), "annotations[2] names image 7, which is not among images"),
        (lambda c: c["annotations"][2].pop("category_id"), "annotations[2] has no key 'category_id'"),
        (lambda c: c["annotations"][2].pop("segmentation"), "annotations[2] has no key 'segmentation'"),
        (lambda c: c["annotations"][2].update(iscrowd="no"), "annotations[2].iscrowd must be int or bool"),
        (lambda c: c.update(annotations=[]), "has no annotation with a pixel: there is nothing to point at"),
    ],
)
def test_wrong_instances_end_with_one_line(command, instances, tmp_path, capsys, change, message):
    change(instances)
    assert command() == 2
    errors = capsys.readouterr().err
    assert errors.startswith(str(tmp_path / "in" / "instances.json"))
    assert message in errors
    assert errors.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_a_negative_seed(command, capsys):
    assert command("--seed", "-1") == 2
    assert capsys.readouterr().err == "annotation id and seed must be at least 0, but got 12 and -1\n"


@pytest.mark.parametrize(("split", "images", "regions"), [("train", 57, 607), ("val", 30, 337)])
def test_real_images(coco_real: Path, tmp_path, split, images, regions):
    output = tmp_path / "regions.json"
    instances = coco_real / "annotations" / f"instances_{split}2017.json"
    assert main(["--instances", str(instances), "--output", str(output)]) == 0
    made = json.loads(output.read_text())
    reference = json.loads((coco_real / f"coco_interactive_{split}_psalm.json").read_text())
    keys = set(map(prompt_key, PROMPT_TYPES))
    assert len(made) == images
    assert sum(len(record["anns"]) for record in made) == regions
    for ours, theirs in zip(made, reference, strict=True):
        assert {**ours, "anns": None} == {**theirs, "anns": None}
        for each, other in zip(ours["anns"], theirs["anns"], strict=True):
            assert each.keys() == other.keys()
            assert {key: each[key] for key in each.keys() - keys} == {key: other[key] for key in other.keys() - keys}
    data = RegionData(output, (coco_real / f"{split}2017",))
    for index in range(len(data)):
        record = data.record(index)
        for mask, prompts in zip(record.masks, record.prompts, strict=True):
            shown = {kind: segmentation_to_mask(rle, *mask.shape) for kind, rle in prompts.items()}
            assert tuple(shown) == PROMPT_TYPES
            assert not ((shown["point"] | shown["scribble"]) & ~mask).any()
