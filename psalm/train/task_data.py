"""From settings to the data of a task: which files it is trained on, and which it is scored on.

A path that is not given is looked for below ``panoptic_json_path``. Validation data are those of the ``eval_`` twins of
the path flags; else the sibling of the training file with ``val`` for ``train`` in its name; else a tenth of the images
is held out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from psalm.constants import CROSS_IMAGE, INSTANCE, PANOPTIC, REFERRING, REGION, SEMANTIC
from psalm.data.builtin import BUILTIN, resolve_root
from psalm.data.coco_instances import InstanceData
from psalm.data.coco_panoptic import PanopticData
from psalm.data.coco_semantic import SemanticData
from psalm.data.cross_image import CrossImageData
from psalm.data.dataset import SPLITS, JoinedData, Split, TaskData
from psalm.data.errors import DataError
from psalm.data.held_out import SHARE, hold_out
from psalm.data.interactive import RegionData
from psalm.data.refer_coco import ReferringData, splits_of
from psalm.data.visual_prompts import parse_prompt_types


@dataclass(frozen=True)
class TaskSplits:
    """The data of one task."""

    train: TaskData
    val: TaskData
    chosen: str
    """What the validation data are, in words."""


@dataclass(frozen=True)
class Source:
    """Where the data of one task, or one part of them, are named.

    Attributes:
        flag: the setting that holds the annotation file's path.
        folder: the setting that holds the images' folder.
        beside: the file's path below ``panoptic_json_path`` where the setting is not given.
    """

    flag: str
    folder: str
    beside: str = ""


SOURCES: dict[str, tuple[Source, ...]] = {
    INSTANCE: (Source("instance_json_path", "image_folder", "annotations/instances_{split}2017.json"),),
    REFERRING: (
        Source("ref_coco_path", "refcoco_image_folder"),
        Source("ref_coco_plus_path", "refcoco_image_folder"),
        Source("ref_coco_g_path", "refcoco_image_folder"),
        Source("referring_json_path", "referring_image_folder", "refer_{split}_psalm.json"),
    ),
    REGION: (Source("region_json_path", "region_image_folder", "coco_interactive_{split}_psalm.json"),),
    CROSS_IMAGE: (Source("region_cross_json_path", "region_cross_image_folder", "coco_cross_{split}.json"),),
}
"""Tasks that read a file each; panoptic and semantic read a folder."""


@dataclass(frozen=True)
class _Plan:
    """How the data of a source are read."""

    flag: str
    """The setting that names the training file."""
    train: Callable[[], TaskData]
    val: Callable[[], TaskData] | None
    """None where a part of the training data is held out."""
    chosen: str


def load_task(settings: Mapping[str, Any], task: str) -> TaskSplits:
    """The training and validation data of a task.

    Raises:
        DataError: something is missing or not of the format expected; the setting is named.
    """
    plans = _plan(settings, task)
    parts = [_split(plan) for plan in plans]
    return TaskSplits(
        _joined([train for train, _ in parts]),
        _joined([val for _, val in parts]),
        "; ".join(plan.chosen for plan in plans),
    )


def load_validation(settings: Mapping[str, Any], task: str) -> TaskData:
    """The validation data of a task alone; training data are read only where a part of them is held out.

    Raises:
        DataError: see ``load_task``.
    """
    return _joined([_split(plan)[1] if plan.val is None else plan.val() for plan in _plan(settings, task)])


def load_training(settings: Mapping[str, Any], task: str) -> TaskData:
    """The training data of a task alone, without what is held out of them.

    Raises:
        DataError: see ``load_task``.
    """
    return _joined([_split(plan)[0] if plan.val is None else plan.train() for plan in _plan(settings, task)])


def _split(plan: _Plan) -> tuple[TaskData, TaskData]:
    train = plan.train()
    if plan.val is not None:
        return train, plan.val()
    with _naming(plan.flag):
        return hold_out(train)


def _joined(parts: Sequence[TaskData]) -> TaskData:
    return parts[0] if len(parts) == 1 else JoinedData(parts)


def _plan(settings: Mapping[str, Any], task: str) -> list[_Plan]:
    """How each source of a task is read."""
    if task in (PANOPTIC, SEMANTIC):
        return [_plan_folder(settings, PanopticData if task == PANOPTIC else SemanticData)]
    named = [source for source in SOURCES[task] if settings[source.flag] is not None]
    found = named or [source for source in SOURCES[task] if _beside(settings, source, "train") is not None]
    if not found:
        flags = " or ".join(source.flag for source in SOURCES[task])
        missing = SOURCES[task][-1].beside.format(split="train")
        raise DataError(f"{flags} must be given for the task {task}: {_root(settings, 'train')} has no {missing}")
    return [_plan_file(settings, task, source) for source in found]


def _root(settings: Mapping[str, Any], split: Split) -> Path:
    given = settings["eval_panoptic_json_path"] if split == "val" else None
    return resolve_root(given or settings["panoptic_json_path"])


def _plan_folder(settings: Mapping[str, Any], kind: Callable[..., TaskData]) -> _Plan:
    def read(split: Split, flag: str) -> TaskData:
        images = settings["image_folder"]
        if split == "val":
            images = settings["eval_image_folder"] or _sibling(images)
        with _naming(flag):
            return kind(_root(settings, split), split, images, settings["skip_bad_images"])

    flag = "panoptic_json_path"
    twin = settings[f"eval_{flag}"] is not None
    files = {split: _root(settings, split) / "annotations" / f"panoptic_{split}2017.json" for split in SPLITS}
    if not twin and not files["val"].is_file():
        return _Plan(flag, partial(read, "train", flag), None, _held_out(files["train"]))
    val = partial(read, "val", f"eval_{flag}" if twin else flag)
    return _Plan(flag, partial(read, "train", flag), val, str(files["val"]))


def _plan_file(settings: Mapping[str, Any], task: str, source: Source) -> _Plan:
    given = settings[source.flag]
    train_file = Path(given) if given is not None else _beside(settings, source, "train")
    assert train_file is not None, "the caller has found it"
    split = settings["eval_refer_split"] if task == REFERRING else "val"
    twin = settings[f"eval_{source.flag}"]
    if twin is not None:
        val_file: Path | None = Path(twin)
    elif given is None:
        val_file = _beside(settings, source, "val")
    else:
        with _naming(source.flag):
            val_file = _val_file(train_file, split)
    train = partial(_read, settings, task, source, train_file, "train")
    if val_file is None:
        return _Plan(source.flag, train, None, _held_out(train_file))
    flag = source.flag if twin is None else f"eval_{source.flag}"
    chosen = str(val_file) + (f", split {split}" if val_file == train_file else "")
    return _Plan(source.flag, train, partial(_read, settings, task, source, val_file, split, flag), chosen)


def _read(
    settings: Mapping[str, Any], task: str, source: Source, file: Path, split: str, flag: str | None = None
) -> TaskData:
    """A source's split; ``flag`` is the setting that an error names, by default the source's."""
    with _naming(flag or source.flag):
        return _read_file(settings, task, source, file, split)


def _read_file(settings: Mapping[str, Any], task: str, source: Source, file: Path, split: str) -> TaskData:
    if not file.exists():
        raise DataError(f"{file} does not exist")
    folders = _image_folders(settings, source, split)
    if not folders:
        raise DataError(f"{source.folder} must be given too: where the images of {file} are")
    skip = settings["skip_bad_images"]
    if task == INSTANCE:
        return InstanceData(file, folders, skip, training=split == "train")
    if task == REFERRING:
        return ReferringData(file, split, folders, skip)
    kinds = parse_prompt_types(settings["region_mask_type"])
    return (RegionData if task == REGION else CrossImageData)(file, folders, skip, kinds)


def _image_folders(settings: Mapping[str, Any], source: Source, split: str) -> list[Path]:
    """Where the images of a split may lie, in the order in which they are looked for."""
    own, common = settings[source.folder], settings["image_folder"]
    given = [own, common]
    if split != "train":
        given = [settings[f"eval_{source.folder}"], _sibling(own), own]
        given += [settings["eval_image_folder"], _sibling(common), common]
    folders = [Path(folder) for folder in given if folder is not None]
    side = _side(split)
    if settings[source.flag] is None or settings["panoptic_json_path"] != BUILTIN:
        folders.append(_root(settings, side))
    return [place for folder in folders for place in (folder / f"{side}2017", folder)]


def _side(split: str) -> Split:
    """Which of the two folders of images and annotations a split belongs to."""
    return "train" if split == "train" else "val"


def _beside(settings: Mapping[str, Any], source: Source, split: Split) -> Path | None:
    """The file of a source below the root, if it is there."""
    if not source.beside:
        return None
    file = _root(settings, split) / source.beside.format(split=split)
    return file if file.is_file() else None


def _val_file(train_file: Path, split: str) -> Path | None:
    """Where the validation samples of a training file are: in it, or in its sibling; None if nowhere.

    A split that was asked for, other than ``val``, must be there.
    """
    if train_file.is_dir() or train_file.suffix == ".p" or train_file.name.startswith("grefs"):
        return train_file if split != "val" or split in splits_of(train_file) else None
    sibling = train_file.with_name(train_file.name.replace("train", "val"))
    return sibling if sibling != train_file and sibling.is_file() else None


def _sibling(folder: str | None) -> str | None:
    """The folder with ``val`` for ``train`` in its name, if there is one; the folder itself if not."""
    if folder is None:
        return None
    path = Path(folder)
    sibling = path.with_name(path.name.replace("train", "val"))
    return str(sibling if sibling.is_dir() else path)


@contextmanager
def _naming(flag: str) -> Iterator[None]:
    """What is wrong with data is told with the setting that names them."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{flag}: {error}") from error


def _held_out(file: Path) -> str:
    return f"{SHARE:.0%} of the images of {file} held out"
