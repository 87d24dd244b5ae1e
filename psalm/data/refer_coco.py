"""Referring segmentation: expressions in plain words, and the objects of an image that they mean.

What is read:

- PSALM's JSON, a list of ``{image_info, instruction: [{sent}], anns, new_img_id}``; the file is one split;
- RefCOCO, RefCOCO+, RefCOCOg (Yu et al., arXiv 1608.00272): a pickle ``refs(...).p``, ``instances.json`` beside it;
- gRefCOCO (Liu et al., arXiv 2306.00968): ``grefs(...).json``, ``instances.json`` beside it; an expression may mean
  several objects or none.

Letters: H W height and width, N objects that an expression means.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from psalm.constants import REFERRING
from psalm.data.coco_format import DataFile, ImageInfo, checked_segmentation, read_image_info, read_json, rows_by_id
from psalm.data.dataset import File, Question, TaskData, find_image
from psalm.data.errors import DataError
from psalm.data.images import read_image
from psalm.data.masks import segmentation_to_mask
from psalm.data.packed import PackedRecords
from psalm.data.restricted_pickle import load_plain_pickle
from psalm.data.samples import ReferringRecord

INSTANCES = "instances.json"
PICKLE_SUFFIXES = (".p", ".pkl", ".pickle")
REFS_PATTERNS = ("refs*.p", "grefs*.json")
NO_TARGET = -1
"""The only annotation id of a gRefCOCO record whose expressions mean nothing in the image."""


class ReferringData(TaskData):
    """Groups of expressions, each with its image and the objects that it means; reads only.

    Args:
        path: a file of one of the three formats, or a folder with ``instances.json`` and one ``refs*.p`` or
            ``grefs*.json``.
        split: whose records are read; ``splits_of`` says which there are. PSALM's JSON is a split by itself, whichever.
        image_folders: looked through in this order for each image.
        skip_bad_images: see ``TaskData``.

    Raises:
        DataError: a file is missing or not of its format, or has no record of the split.
    """

    task: ClassVar[str] = REFERRING

    def __init__(
        self, path: str | Path, split: str, image_folders: Sequence[Path], skip_bad_images: bool = False
    ) -> None:
        file = _open(Path(path).expanduser())
        content = _read_refs(file, split) if _is_refs(file) else _read_psalm(file)
        super().__init__(len(content.samples), skip_bad_images)
        self.image_folders = tuple(image_folders)
        self._files = content.files
        self._samples = PackedRecords(content.samples)
        self._segmentations = PackedRecords(content.segmentations)
        self._expressions = np.array([len(sample.expressions) for sample in content.samples], dtype=np.int32)
        self._targets = np.array([len(sample.targets) for sample in content.samples], dtype=np.int32)

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        """The file with the expressions, and ``instances.json`` where there is one."""
        return self._files

    @property
    def generalised(self) -> bool:
        """Whether the split asks for any number of objects, as gRefCOCO does, instead of exactly one.

        A selection of samples answers as the whole split, so that all are predicted in the same way.
        """
        return bool((self._targets != 1).any())

    def questions_of_row(self, row: int) -> Sequence[Question]:
        """The numbers of a row's expressions."""
        return range(int(self._expressions[row]))

    def read_row(self, row: int) -> ReferringRecord:
        """See ``TaskData``."""
        sample = self._sample(row)
        info = sample.image
        path = find_image(self.image_folders, info.file_name)
        image = read_image(path)
        if image.shape[:2] != (info.height, info.width):
            raise DataError(
                f"{path} is {image.shape[1]} x {image.shape[0]} pixels, but image {info.id} of "
                f"{self._files[-1]} is {info.width} x {info.height} pixels"
            )
        masks = np.zeros((len(sample.targets), info.height, info.width), dtype=bool)
        for mask, target in zip(masks, sample.targets, strict=True):
            mask[:] = segmentation_to_mask(self._segmentations[target], info.height, info.width)
        return ReferringRecord(info.id, info.file_name, image, sample.sample_id, tuple(sample.expressions), masks)

    def check_row(self, row: int) -> None:
        """See ``TaskData``; the file was read only if this can be done."""

    def files_of_row(self, row: int) -> tuple[File, ...]:
        """See ``TaskData``."""
        return (File("image", find_image(self.image_folders, self._sample(row).image.file_name)),)

    def _sample(self, row: int) -> "_Sample":
        image, *values = self._samples[row]
        return _Sample(ImageInfo(*image), *values)


def splits_of(path: str | Path) -> tuple[str, ...]:
    """The splits that a file or folder has, in the order of their first records; none for PSALM's JSON.

    Raises:
        DataError: the file is missing or not of its format.
    """
    file = _open(Path(path).expanduser())
    return tuple(dict.fromkeys(_splits(file))) if _is_refs(file) else ()


class _Sample(NamedTuple):
    image: ImageInfo
    sample_id: int
    expressions: list[str]
    targets: list[int]
    """Rows of ``_Content.segmentations``."""


class _Content(NamedTuple):
    """What a file holds of a split."""

    files: tuple[Path, ...]
    """First that of the samples, last that of the annotations."""
    samples: list[_Sample]
    segmentations: list[Any]
    """An object that several samples mean is there once."""


def _open(path: Path) -> DataFile:
    """The parsed file of expressions at a path, or in the folder there; a list that is not empty."""
    if path.is_dir():
        path = _only_refs_file(path)
    if _is_pickle(path):
        file = DataFile(path, "RefCOCO's list of refs", load_plain_pickle(path))
    else:
        file = read_json(path, "PSALM's or gRefCOCO's referring JSON")
    if not isinstance(file.content, list):
        file.fail(f"must be a list, but is {type(file.content).__name__}")
    if not file.content:
        file.fail("must not be empty")
    return file


def _only_refs_file(folder: Path) -> Path:
    found = sorted(path for pattern in REFS_PATTERNS for path in folder.glob(pattern))
    if not found:
        raise DataError(f"{folder} has no {' or '.join(REFS_PATTERNS)}: RefCOCO's files are expected there")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder} has several files of expressions ({names}): name one of them instead of the folder")
    return found[0]


def _is_pickle(path: Path) -> bool:
    return path.suffix in PICKLE_SUFFIXES


def _is_refs(file: DataFile) -> bool:
    """Whether the records are RefCOCO's or gRefCOCO's refs; otherwise they must be PSALM's."""
    first = file.content[0]
    return _is_pickle(file.path) or (isinstance(first, dict) and "sentences" in first)


def _splits(file: DataFile) -> list[str]:
    return [file.field(ref, "split", str, row) for row, ref in enumerate(file.content)]


def _read_psalm(file: DataFile) -> _Content:
    """PSALM's JSON. Its ``image`` is not read: in gRefCOCO's it has a suffix that no file has."""
    content = _Content((file.path,), [], [])
    for row, record in enumerate(file.content):
        image = read_image_info(file, file.field(record, "image_info", dict, row), row, "image_info")
        sample_id = file.field(record, "new_img_id", int, row)
        sample = _Sample(image, sample_id, _expressions(file, record, row, "instruction"), [])
        for column, annotation in enumerate(file.field(record, "anns", list, row)):
            sample.targets.append(len(content.segmentations))
            content.segmentations.append(checked_segmentation(file, annotation, image, row, "anns", column))
        content.samples.append(sample)
    return content


def _read_refs(file: DataFile, split: str) -> _Content:
    """The refs of a split, joined with the images and annotations that they name."""
    splits = _splits(file)
    if split not in splits:
        raise DataError(f"{file.path} has no record of the split {split!r}, only of {', '.join(dict.fromkeys(splits))}")
    instances = read_json(file.path.with_name(INSTANCES), "COCO instances JSON")
    images, annotations = rows_by_id(instances, "images"), rows_by_id(instances, "annotations")
    content = _Content((file.path, instances.path), [], [])
    taken: dict[int, int] = {}
    for row, ref in enumerate(file.content):
        if splits[row] != split:
            continue
        image_id = file.field(ref, "image_id", int, row)
        if image_id not in images:
            file.fail(f"is {image_id}, which is not among the images of {instances.path}", row, "image_id")
        image = read_image_info(instances, instances.content["images"][images[image_id]], "images", images[image_id])
        sample = _Sample(image, file.field(ref, "ref_id", int, row), _expressions(file, ref, row, "sentences"), [])
        for annotation_id in _annotation_ids(file, ref, row):
            if annotation_id not in annotations:
                problem = f"names {annotation_id}, which is not among the annotations of {instances.path}"
                file.fail(problem, row, "ann_id")
            annotation = _annotation(instances, annotations[annotation_id], image_id)
            if annotation_id not in taken:
                taken[annotation_id] = len(content.segmentations)
                place = ("annotations", annotations[annotation_id])
                content.segmentations.append(checked_segmentation(instances, annotation, image, *place))
            sample.targets.append(taken[annotation_id])
        content.samples.append(sample)
    return content


def _expressions(file: DataFile, record: Any, row: int, key: str) -> list[str]:
    """The expressions of a record that say something."""
    sentences = file.field(record, key, list, row)
    expressions = [file.field(sentence, "sent", str, row, key, column) for column, sentence in enumerate(sentences)]
    said = [expression for expression in expressions if expression.strip()]
    if not said:
        file.fail("has no expression that is not blank", row, key)
    return said


def _annotation_ids(file: DataFile, ref: dict[str, Any], row: int) -> list[int]:
    """The ids of the objects that a ref means; none where it says so in any of gRefCOCO's ways."""
    value = file.field(ref, "ann_id", (int, list), row)
    ids = value if isinstance(value, list) else [value]
    if any(not isinstance(each, int) or isinstance(each, bool) for each in ids):
        file.fail(f"must be an id or a list of ids, but is {value!r:.60}", row, "ann_id")
    nothing = ids == [NO_TARGET] or ("no_target" in ref and file.flag(ref, "no_target", row))
    return [] if nothing else ids


def _annotation(instances: DataFile, row: int, image_id: int) -> Any:
    """An annotation, which must be of the image that its ref is about."""
    place = ("annotations", row)
    annotation = instances.content["annotations"][row]
    if instances.field(annotation, "image_id", int, *place) != image_id:
        problem = f"is {annotation['image_id']}, but the expressions that mean this object are about image {image_id}"
        instances.fail(problem, *place, "image_id")
    return annotation
