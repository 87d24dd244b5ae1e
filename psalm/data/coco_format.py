"""Files of COCO's formats, checked key by key, what they have in common, and panoptic JSON, kept small in memory.

A file that is not what is expected is refused with its path and the place in it, e.g.
``annotations[3].segments_info[0] has no key 'category_id'``.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from psalm.data.errors import DataError
from psalm.data.masks import check_segmentation, check_size
from psalm.data.samples import ClassInfo

MAX_SEGMENT_ID = (1 << 24) - 1
"""A segment id is three bytes of colour; 0 is void."""


@dataclass(frozen=True)
class PanopticIndex:
    """The annotations of a split, one row per annotated image, in the order of the file.

    Segments of all images lie in flat arrays; those of image i are ``offsets[i]`` to ``offsets[i + 1]``.
    """

    classes: tuple[ClassInfo, ...]
    image_ids: tuple[int, ...]
    image_names: tuple[str, ...]
    map_names: tuple[str, ...]
    offsets: np.ndarray
    segment_ids: np.ndarray
    """int32; unique within an image."""
    categories: np.ndarray
    """int32, 0-based index into ``classes``."""
    crowds: np.ndarray
    """bool."""


@dataclass(frozen=True)
class DataFile:
    """What a file holds, handed out field by field; complains with path and place."""

    path: Path
    format_name: str
    """What is expected, for messages."""
    content: Any
    """As JSON has it, whatever it was read from."""

    def field(self, record: Any, key: str, kind: type | tuple[type, ...], *place: str | int) -> Any:
        """``record[key]``, which must be there and of a type; ``place`` is where the record stands in the file."""
        if not isinstance(record, dict):
            self.fail(f"must be an object, but is {type(record).__name__}", *place)
        if key not in record:
            self.fail(f"has no key {key!r}", *place)
        value = record[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            wanted = kind.__name__ if isinstance(kind, type) else " or ".join(each.__name__ for each in kind)
            self.fail(f"must be {wanted}, but is {value!r:.60}", *place, key)
        return value

    def flag(self, record: Any, key: str, *place: str | int) -> bool:
        """``record[key]`` as a truth value; 0, 1, false or true."""
        value = self.field(record, key, (int, bool), *place)
        if value not in (0, 1):
            self.fail(f"must be 0 or 1, but is {value}", *place, key)
        return bool(value)

    def fail(self, problem: str, *place: str | int) -> NoReturn:
        """Raises DataError: file, place, problem, and the format that is expected."""
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
        raise DataError(f"{self.path}: {where or 'the file'} {problem} ({self.format_name} is expected)")


class ImageInfo(NamedTuple):
    """What a file says about an image."""

    id: int
    file_name: str
    height: int
    width: int


def read_json(path: Path, format_name: str) -> DataFile:
    """A JSON file, of which nothing has been checked yet.

    Raises:
        DataError: missing, not readable, or not JSON.
    """
    try:
        return DataFile(path, format_name, json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {format_name} is expected there") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): {format_name} is expected there") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits and deep nesting among them
        raise DataError(f"{path} is not JSON: {error}") from error


def read_classes(file: DataFile, things_only: bool = False) -> tuple[ClassInfo, ...]:
    """The categories in the order of the file; ids may have gaps, but neither id nor name may come twice.

    Args:
        file: an object with ``categories``.
        things_only: all are things, and ``isthing`` is not read.
    """
    classes = tuple(
        ClassInfo(
            name=file.field(category, "name", str, "categories", row),
            isthing=things_only or file.flag(category, "isthing", "categories", row),
            id=file.field(category, "id", int, "categories", row),
        )
        for row, category in enumerate(file.field(file.content, "categories", list))
    )
    if not classes:
        file.fail("must not be empty", "categories")
    if len({info.id for info in classes}) != len(classes) or len({info.name for info in classes}) != len(classes):
        file.fail("must have unique ids and names", "categories")
    return classes


def rows_by_id(file: DataFile, key: str) -> dict[int, int]:
    """Id -> row of the records in a list of the file, e.g. ``images``; no id may come twice."""
    rows: dict[int, int] = {}
    for row, record in enumerate(file.field(file.content, key, list)):
        record_id = file.field(record, "id", int, key, row)
        if record_id in rows:
            file.fail(f"has the id {record_id} of an earlier {key.removesuffix('s')}", key, row)
        rows[record_id] = row
    return rows


def read_image_info(
    file: DataFile, record: Any, *place: str | int, id_key: str = "id", name_key: str = "file_name"
) -> ImageInfo:
    """The record of an image, of whose id and name the keys differ between formats; its size must be an image's."""
    height, width = (file.field(record, side, int, *place) for side in ("height", "width"))
    try:
        check_size(height, width)
    except DataError as error:
        file.fail(f"cannot be used: {error}", *place)
    return ImageInfo(file.field(record, id_key, int, *place), file.field(record, name_key, str, *place), height, width)


def checked_segmentation(file: DataFile, annotation: Any, image: ImageInfo, *place: str | int) -> Any:
    """``annotation["segmentation"]``, of which the image's mask can be made; ``place`` is the annotation's."""
    segmentation = file.field(annotation, "segmentation", (list, dict), *place)
    try:
        check_segmentation(segmentation, image.height, image.width)
    except DataError as error:
        file.fail(f"cannot be used: {error}", *place, "segmentation")
    return segmentation


def read_panoptic_json(path: Path) -> PanopticIndex:
    """Reads and checks a COCO panoptic file; the same unchanged file is parsed once per process.

    Raises:
        DataError: missing, not JSON, or not COCO panoptic format.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: COCO panoptic JSON is expected there")
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, modified: int, size: int) -> PanopticIndex:
    file = read_json(path, "COCO panoptic JSON")
    classes = read_classes(file)
    index_of = {info.id: index for index, info in enumerate(classes)}
    names = {
        image_id: file.field(file.content["images"][row], "file_name", str, "images", row)
        for image_id, row in rows_by_id(file, "images").items()
    }
    annotations = file.field(file.content, "annotations", list)
    image_ids: list[int] = []
    map_names: list[str] = []
    offsets, segment_ids, categories, crowds = [0], [], [], []
    for row, annotation in enumerate(annotations):
        image_id = file.field(annotation, "image_id", int, "annotations", row)
        if image_id not in names:
            file.fail(f"names image {image_id}, which is not among images", "annotations", row)
        image_ids.append(image_id)
        map_names.append(file.field(annotation, "file_name", str, "annotations", row))
        for column, segment in enumerate(file.field(annotation, "segments_info", list, "annotations", row)):
            place = ("annotations", row, "segments_info", column)
            segment_id = file.field(segment, "id", int, *place)
            if not 0 < segment_id <= MAX_SEGMENT_ID:
                file.fail(f"must be 1 to {MAX_SEGMENT_ID}, but is {segment_id}", *place, "id")
            category_id = file.field(segment, "category_id", int, *place)
            if category_id not in index_of:
                file.fail(f"is {category_id}, which is not among categories", *place, "category_id")
            segment_ids.append(segment_id)
            categories.append(index_of[category_id])
            crowds.append(file.flag(segment, "iscrowd", *place) if "iscrowd" in segment else False)
        if len(set(segment_ids[offsets[-1] :])) != len(segment_ids) - offsets[-1]:
            file.fail("has a segment id twice", "annotations", row)
        offsets.append(len(segment_ids))
    if not image_ids:
        file.fail("must not be empty", "annotations")
    if len(set(image_ids)) != len(image_ids):
        repeated = next(i for i in image_ids if image_ids.count(i) > 1)
        file.fail(f"has more than one record for image {repeated}", "annotations")
    return PanopticIndex(
        classes=classes,
        image_ids=tuple(image_ids),
        image_names=tuple(names[image_id] for image_id in image_ids),
        map_names=tuple(map_names),
        offsets=np.array(offsets, dtype=np.int64),
        segment_ids=np.array(segment_ids, dtype=np.int32),
        categories=np.array(categories, dtype=np.int32),
        crowds=np.array(crowds, dtype=bool),
    )
