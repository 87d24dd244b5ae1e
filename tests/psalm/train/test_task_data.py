"""Settings lead to the right files: what is trained on, what is scored on, where images are, and what is missing."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from psalm.data.dataset import JoinedData, TaskData
from psalm.data.errors import DataError
from psalm.train import task_data
from psalm.train.arguments import with_defaults
from psalm.train.task_data import TaskSplits, load_task, load_validation

FILES = {
    "instance": "annotations/instances_{}2017.json",
    "referring": "refer_{}_psalm.json",
    "region": "coco_interactive_{}_psalm.json",
    "cross_image": "coco_cross_{}.json",
}
FLAGS = {
    "instance": ("instance_json_path", "image_folder"),
    "referring": ("referring_json_path", "referring_image_folder"),
    "region": ("region_json_path", "region_image_folder"),
    "cross_image": ("region_cross_json_path", "region_cross_image_folder"),
}
TASKS_OF_FILES = pytest.mark.parametrize("task", FILES)
TASKS_OF_FOLDERS = pytest.mark.parametrize("task", ["panoptic", "semantic"])

Copy = Callable[..., Path]


def load(task: str, **changes: Any) -> TaskSplits:
    return load_task(with_defaults(changes), task)


def refusal(task: str, **changes: Any) -> str:
    with pytest.raises(DataError) as error:
        load(task, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def images_of(data: TaskData) -> set[str]:
    return {name for index in range(len(data)) for name in data.image_names(index)}


def files_of(splits: TaskSplits) -> list[Path]:
    return [data.annotation_files[0] for data in (splits.train, splits.val)]


def read_all(splits: TaskSplits) -> None:
    """Every image is found where it is looked for, and truths fit them."""
    for data in (splits.train, splits.val):
        for index in range(len(data)):
            data.record(index)


@pytest.fixture
def copy(small_data: Path, tmp_path: Path) -> Copy:
    """Puts a task's file of a split below ``tmp_path`` under another name."""

    def copy_file(task: str, split: str, name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(small_data / FILES[task].format(split), path))

    return copy_file


@pytest.fixture
def refcoco(small_data: Path, tmp_path: Path) -> Callable[..., Path]:
    """A folder in RefCOCO's layout, about the built-in training images; images take turns to have the splits."""

    def make(name: str, splits: tuple[str, ...], file: str = "refs(unc).p") -> Path:
        content = json.loads((small_data / FILES["instance"].format("train")).read_text())
        image_ids = [image["id"] for image in content["images"]]
        refs = [
            {
                "ref_id": record["new_img_id"],
                "ann_id": record["anns"][0]["id"],
                "image_id": record["image_info"]["id"],
                "split": splits[image_ids.index(record["image_info"]["id"]) % len(splits)],
                "sentences": record["instruction"],
            }
            for record in json.loads((small_data / FILES["referring"].format("train")).read_text())
        ]
        folder = tmp_path / name
        folder.mkdir()
        (folder / "instances.json").write_text(json.dumps(content))
        (folder / file).write_bytes(pickle.dumps(refs) if file.endswith(".p") else json.dumps(refs).encode())
        return folder

    return make


@TASKS_OF_FOLDERS
def test_folder_with_both_splits(small_data: Path, task: str) -> None:
    splits = load(task, panoptic_json_path=str(small_data))
    assert (len(splits.train), len(splits.val)) == (12, 5)
    assert splits.chosen == str(small_data / "annotations" / "panoptic_val2017.json")
    read_all(splits)


@TASKS_OF_FILES
def test_files_are_found_below_the_panoptic_folder(small_data: Path, task: str) -> None:
    splits = load(task, panoptic_json_path=str(small_data))
    assert files_of(splits) == [small_data / FILES[task].format(split) for split in ("train", "val")]
    assert splits.chosen == str(small_data / FILES[task].format("val"))
    assert images_of(splits.train).isdisjoint(images_of(splits.val))
    read_all(splits)


@TASKS_OF_FOLDERS
def test_folder_of_one_split_gives_a_tenth_of_its_images(small_data: Path, tmp_path: Path, task: str) -> None:
    root = tmp_path / "root"
    (root / "annotations").mkdir(parents=True)
    for name in ("panoptic_train2017.json", "panoptic_train2017"):
        (root / "annotations" / name).symlink_to(small_data / "annotations" / name)
    (root / "train2017").symlink_to(small_data / "train2017")
    splits = load(task, panoptic_json_path=str(root))
    file = root / "annotations" / "panoptic_train2017.json"
    assert splits.chosen == f"10% of the images of {file} held out"
    assert (len(splits.train), len(splits.val)) == (11, 1)
    assert images_of(splits.train).isdisjoint(images_of(splits.val))


@TASKS_OF_FOLDERS
def test_another_folder_may_hold_the_validation_images(small_data: Path, tmp_path: Path, task: str) -> None:
    root = tmp_path / "other"
    shutil.copytree(small_data, root)
    splits = load(task, panoptic_json_path=str(small_data), eval_panoptic_json_path=str(root))
    assert files_of(splits) == [
        folder / "annotations" / f"panoptic_{split}2017.json"
        for folder, split in ((small_data, "train"), (root, "val"))
    ]
    assert splits.val.files(0)[0].path.parent == root / "val2017"


@TASKS_OF_FILES
def test_eval_twin_of_a_flag_comes_first(small_data: Path, copy: Copy, task: str) -> None:
    flag, folder = FLAGS[task]
    train, sibling, twin = copy(task, "train", "train.json"), copy(task, "val", "val.json"), copy(task, "val", "x.json")
    given = {flag: str(train), folder: str(small_data)}
    assert files_of(load(task, **given)) == [train, sibling]
    splits = load(task, **given, **{f"eval_{flag}": str(twin)})
    assert files_of(splits) == [train, twin]
    assert splits.chosen == str(twin)


@TASKS_OF_FILES
def test_file_without_a_sibling_gives_a_tenth_of_its_images(small_data: Path, copy: Copy, task: str) -> None:
    flag, folder = FLAGS[task]
    file = copy(task, "train", "mine.json")
    splits = load(task, **{flag: str(file), folder: str(small_data)})
    assert files_of(splits) == [file, file]
    assert len({splits.val.image_names(index)[0] for index in range(len(splits.val))}) == 1
    assert images_of(splits.train).isdisjoint(images_of(splits.val))
    assert splits.chosen == f"10% of the images of {file} held out"


@TASKS_OF_FILES
def test_eval_twin_replaces_the_file_below_the_panoptic_folder(small_data: Path, copy: Copy, task: str) -> None:
    flag = FLAGS[task][0]
    twin = copy(task, "val", "twin.json")
    splits = load(task, panoptic_json_path=str(small_data), **{f"eval_{flag}": str(twin)})
    assert files_of(splits) == [small_data / FILES[task].format("train"), twin]
    read_all(splits)


@TASKS_OF_FILES
def test_validation_data_alone_need_no_training_file(small_data: Path, copy: Copy, task: str, tmp_path: Path) -> None:
    """A run is scored where its training data are not."""
    flag, folder = FLAGS[task]
    twin = copy(task, "val", "twin.json")
    changes = {flag: str(tmp_path / "nowhere.json"), f"eval_{flag}": str(twin), folder: str(small_data)}
    data = load_validation(with_defaults(changes), task)
    assert [data.annotation_files[0], len(data) > 0] == [twin, True]


@pytest.mark.parametrize("file", ["refs(unc).p", "grefs(unc).json"])
@pytest.mark.parametrize("by_folder", [False, True])
def test_refcoco_has_its_own_splits_in_one_file(
    small_data: Path, refcoco: Callable[..., Path], file: str, by_folder: bool
) -> None:
    folder = refcoco("refcoco", ("train", "val", "testA"), file)
    path = folder if by_folder else folder / file
    given = {"ref_coco_path": str(path), "refcoco_image_folder": str(small_data / "train2017")}
    splits, other = load("referring", **given), load("referring", **given, eval_refer_split="testA")
    assert (splits.chosen, other.chosen) == (f"{path}, split val", f"{path}, split testA")
    parts = [images_of(data) for data in (splits.train, splits.val, other.val)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert len(set.union(*parts)) == 12
    assert images_of(other.train) == parts[0]
    # Images of its validation splits lie in the training images' folder, too.
    read_all(splits)


def test_refcoco_split_that_was_asked_for_must_be_there(small_data: Path, refcoco: Callable[..., Path]) -> None:
    folder = refcoco("refcoco", ("train", "testA"))
    given = {"ref_coco_path": str(folder), "refcoco_image_folder": str(small_data / "train2017")}
    assert refusal("referring", **given, eval_refer_split="testB") == (
        f"ref_coco_path: {folder}/refs(unc).p has no record of the split 'testB', only of train, testA"
    )
    assert load("referring", **given, eval_refer_split="testA").chosen == f"{folder}, split testA"
    assert "held out" in load("referring", **given).chosen, "where it has no val and nothing was asked for"


def test_three_refcocos_and_a_file_are_joined(small_data: Path, refcoco: Callable[..., Path], copy: Copy) -> None:
    plain, plus, umd = (refcoco(name, ("train", "val")) for name in ("refcoco", "refcoco+", "refcocog"))
    own = copy("referring", "train", "mine.json")
    splits = load(
        "referring",
        ref_coco_path=str(plain),
        ref_coco_plus_path=str(plus),
        ref_coco_g_path=str(umd),
        refcoco_image_folder=str(small_data / "train2017"),
        referring_json_path=str(own),
        referring_image_folder=str(small_data),
    )
    assert isinstance(splits.train, JoinedData)
    one = load("referring", ref_coco_path=str(plain), refcoco_image_folder=str(small_data / "train2017"))
    last = load("referring", referring_json_path=str(own), referring_image_folder=str(small_data))
    assert len(splits.train) == 3 * len(one.train) + len(last.train)
    assert len(splits.val) == 3 * len(one.val) + len(last.val)
    assert splits.chosen == f"{plain}, split val; {plus}, split val; {umd}, split val; {last.chosen}"
    assert splits.train.record(len(one.train)).sample_id == one.train.record(0).sample_id
    read_all(splits)


@TASKS_OF_FILES
def test_images_of_siblings_are_found(small_data: Path, copy: Copy, task: str) -> None:
    """--..._image_folder .../train2017, with val2017 beside it."""
    flag, folder = FLAGS[task]
    files = [copy(task, split, f"{split}.json") for split in ("train", "val")]
    splits = load(task, **{flag: str(files[0]), folder: str(small_data / "train2017")})
    assert files_of(splits) == files
    read_all(splits)


@TASKS_OF_FILES
def test_common_image_folder_serves_where_a_task_has_none(small_data: Path, copy: Copy, task: str) -> None:
    files = [copy(task, split, f"{split}.json") for split in ("train", "val")]
    splits = load(task, **{FLAGS[task][0]: str(files[0])}, image_folder=str(small_data / "train2017"))
    read_all(splits)


@TASKS_OF_FILES
def test_validation_images_may_lie_elsewhere(small_data: Path, copy: Copy, tmp_path: Path, task: str) -> None:
    flag, folder = FLAGS[task]
    files = [copy(task, split, f"{split}.json") for split in ("train", "val")]
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(small_data / "val2017", elsewhere)
    given = {flag: str(files[0]), folder: str(small_data / "train2017"), f"eval_{folder}": str(elsewhere)}
    splits = load(task, **given)
    assert {file.path.parent for index in range(len(splits.val)) for file in splits.val.files(index)} == {elsewhere}
    read_all(splits)


@TASKS_OF_FOLDERS
def test_panoptic_images_of_siblings_are_found(small_data: Path, tmp_path: Path, task: str) -> None:
    root = tmp_path / "root"
    shutil.copytree(small_data / "annotations", root / "annotations")
    splits = load(task, panoptic_json_path=str(root), image_folder=str(small_data / "train2017"))
    assert splits.val.files(0)[0].path.parent == small_data / "val2017"
    read_all(splits)


@TASKS_OF_FILES
def test_builtin_data_are_not_made_where_paths_are_given(
    small_data: Path, copy: Copy, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(root: Any) -> Path:
        raise AssertionError(f"{root} was looked into")

    monkeypatch.setattr(task_data, "resolve_root", refuse)
    flag, folder = FLAGS[task]
    files = [copy(task, split, f"{split}.json") for split in ("train", "val")]
    read_all(load(task, **{flag: str(files[0]), folder: str(small_data)}))
    read_all(load(task, **{flag: str(files[0]), f"eval_{flag}": str(files[1]), folder: str(small_data)}))


@TASKS_OF_FILES
def test_missing_data_of_a_task_name_its_flags(tmp_path: Path, task: str) -> None:
    flags = FLAGS[task][0]
    if task == "referring":
        flags = "ref_coco_path or ref_coco_plus_path or ref_coco_g_path or referring_json_path"
    assert refusal(task, panoptic_json_path=str(tmp_path)) == (
        f"{flags} must be given for the task {task}: {tmp_path} has no {FILES[task].format('train')}"
    )


@TASKS_OF_FILES
def test_path_to_nothing_names_its_flag(small_data: Path, tmp_path: Path, task: str) -> None:
    flag, folder = FLAGS[task]
    nothing = tmp_path / "no.json"
    given = {folder: str(small_data), "panoptic_json_path": str(small_data)}
    assert refusal(task, **given, **{flag: str(nothing)}) == f"{flag}: {nothing} does not exist"
    assert refusal(task, **given, **{f"eval_{flag}": str(nothing)}) == f"eval_{flag}: {nothing} does not exist"


@TASKS_OF_FILES
def test_file_of_another_format_names_its_flag(small_data: Path, tmp_path: Path, task: str) -> None:
    flag, folder = FLAGS[task]
    wrong = tmp_path / "wrong.json"
    wrong.write_text('"text"')
    message = refusal(task, **{flag: str(wrong), folder: str(small_data)})
    assert message.startswith(f"{flag}: {wrong}: the file must be a")


@TASKS_OF_FILES
def test_file_of_one_image_names_its_flag(small_data: Path, copy: Copy, task: str) -> None:
    flag, folder = FLAGS[task]
    file = copy(task, "train", "one.json")
    content = json.loads(file.read_text())
    if task == "instance":
        content["images"] = content["images"][:1]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
    file.write_text(json.dumps(content if task == "instance" else content[:1]))
    message = refusal(task, **{flag: str(file), folder: str(small_data)})
    assert message.startswith(f"{flag}: {file} has too few images (")
    assert message.endswith("; give validation data")


@TASKS_OF_FILES
def test_file_without_any_image_folder_names_the_flag(copy: Copy, task: str) -> None:
    flag, folder = FLAGS[task]
    file = copy(task, "train", "train.json")
    assert refusal(task, **{flag: str(file)}) == (f"{flag}: {folder} must be given too: where the images of {file} are")


@TASKS_OF_FOLDERS
def test_wrong_folder_names_its_flag(small_data: Path, tmp_path: Path, task: str) -> None:
    no = tmp_path / "no"
    for flag, split in (("panoptic_json_path", "train"), ("eval_panoptic_json_path", "val")):
        assert refusal(task, **({"panoptic_json_path": str(small_data)} | {flag: str(no)})) == (
            f"{flag}: {no} is not a folder: a folder with annotations/panoptic_{split}2017.json in it is expected"
        )


@pytest.mark.parametrize("task", ["region", "cross_image"])
def test_types_of_prompts_reach_the_data(small_data: Path, task: str) -> None:
    splits = load(task, panoptic_json_path=str(small_data), region_mask_type="box_visual_prompt_mask||point")
    for data in (splits.train, splits.val):
        record = data.record(0)
        assert {kind for prompts in getattr(record, "prompt", record).prompts for kind in prompts} == {"box", "point"}


@pytest.mark.parametrize("task", ["panoptic", "semantic", *FILES])
def test_skipping_bad_images_reaches_the_data(small_data: Path, task: str) -> None:
    splits = load(task, panoptic_json_path=str(small_data), skip_bad_images=True)
    assert splits.train.skip_bad_images
    assert splits.val.skip_bad_images
