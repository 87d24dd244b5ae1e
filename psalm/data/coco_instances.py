"""COCO instance segmentation, from the official JSON or from PSALM's: one record per image.

The official JSON is an object with ``images``, ``annotations`` and ``categories``. PSALM's ``instance_*_psalm.json`` is
a list with one record per image, ``{"image": file name, "image_info": {...}, "anns": [COCO annotations]}``; it lists no
categories, so that its category ids must be COCO's own.

Letters: H W height and width, N objects of an image.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from psalm.constants import INSTANCE
from psalm.data.coco_categories import COCO_THINGS
from psalm.data.coco_format import DataFile, ImageInfo, checked_segmentation, read_classes, read_image_info, read_json
from psalm.data.coco_panoptic import first_folder, locate_annotations, locate_images
from psalm.data.dataset import File, Split, TaskData, find_image
from psalm.data.errors import DataError
from psalm.data.images import read_image
from psalm.data.masks import segmentation_to_mask
from psalm.data.packed import PackedRecords
from psalm.data.samples import ClassInfo, InstanceRecord


class _Object(NamedTuple):
    category: int
    """0-based."""
    iscrowd: bool
    segmentation: Any
    area: float | None
    """As annotated, as is the box; None where it is not."""
    bbox: list[float] | None
    """x, y, width, height."""


def locate_instances(
    root: str | Path, split: Split, image_folder: str | Path | None = None
) -> tuple[Path, tuple[Path, ...]]:
    """The official JSON of a split, ``annotations/instances_{split}2017.json``, and the folders of its images.

    Args:
        root: folder with ``annotations/``.
        split: "train" or "val".
        image_folder: see ``coco_panoptic.locate_images``.

    Raises:
        ValueError: another split.
        DataError: something is missing; says what, and where it is expected.
    """
    return locate_annotations(root, split, "instances"), (locate_images(root, split, image_folder),)


class InstanceData(TaskData):
    """The images of one JSON file with their objects.

    Annotations whose list of polygons is empty segment nothing and are left out.

    Args:
        path: official or PSALM's instances JSON.
        image_folders: where the images may be; the first that has one counts.
        skip_bad_images: see ``TaskData``.
        training: whether images without any object that is no crowd are left out.

    Raises:
        DataError: a file or every image folder is missing, the JSON is of neither format, or no image is left.
    """

    task = INSTANCE

    def __init__(
        self, path: str | Path, image_folders: Sequence[Path], skip_bad_images: bool = False, training: bool = False
    ) -> None:
        self.path = Path(path).expanduser()
        self.image_folders = tuple(image_folders)
        first_folder(f"the images of {self.path}", self.image_folders)
        file = read_json(self.path, "COCO instances JSON")
        content = _read_psalm(file) if isinstance(file.content, list) else _read_official(file)
        if not content.images:
            content.file.fail("has no image")
        super().__init__(len(content.images), skip_bad_images)
        self._classes = content.classes
        self._images = PackedRecords(content.images)
        self._objects = PackedRecords(content.objects)
        if training:
            self.rows = np.flatnonzero([any(not each.iscrowd for each in found) for found in content.objects])
            if not len(self):
                content.file.fail("has no image with an object that is no crowd")

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """All things, in the order of the file's categories; ``InstanceRecord.categories`` indexes into them."""
        return self._classes

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The image id of every sample."""
        return tuple(self._image(row).id for row in self.rows.tolist())

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        """See ``TaskData``."""
        return (self.path,)

    def read_row(self, row: int) -> InstanceRecord:
        """See ``TaskData``; objects that cover no pixel are left out."""
        info = self._image(row)
        masks, categories = self._truth(row)
        (image_file,) = self.files_of_row(row)
        image = read_image(image_file.path)
        if image.shape[:2] != (info.height, info.width):
            raise DataError(
                f"image {image_file.path} is {image.shape[1]} x {image.shape[0]} pixels, "
                f"but image {info.id} of {self.path} is {info.width} x {info.height} pixels"
            )
        return InstanceRecord(info.id, info.file_name, image, masks, categories)

    def check_row(self, row: int) -> None:
        """See ``TaskData``; the file was read only if this can be done."""

    def files_of_row(self, row: int) -> tuple[File, ...]:
        """See ``TaskData``."""
        return (File("image", find_image(self.image_folders, self._image(row).file_name)),)

    def ground_truth(self) -> dict[str, Any]:
        """The samples as an official COCO instances file, crowds included, for pycocotools' COCOeval.

        Areas and boxes that are not annotated are those of the mask. Annotation ids count from 1 whatever the file's
        are, because to COCOeval the id 0 means no match.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for row in self.rows.tolist():
            info = self._image(row)
            images.append(info._asdict())
            for each in self._annotated(row):
                area, bbox = _area_and_box(info, each)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": info.id,
                        "category_id": self.classes[each.category].id,
                        "iscrowd": int(each.iscrowd),
                        "area": area,
                        "bbox": bbox,
                        "segmentation": each.segmentation,
                    }
                )
        categories = [{"id": info.id, "name": info.name} for info in self.classes]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _image(self, row: int) -> ImageInfo:
        return ImageInfo(*self._images[row])

    def _annotated(self, row: int) -> list[_Object]:
        return [_Object(*values) for values in self._objects[row]]

    def _truth(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool [N, H, W] and categories int64 [N] of the objects that are no crowd and have a pixel."""
        info = self._image(row)
        found = [
            (mask, each.category)
            for each in self._annotated(row)
            if not each.iscrowd and (mask := segmentation_to_mask(each.segmentation, info.height, info.width)).any()
        ]
        masks = np.array([mask for mask, _ in found], dtype=bool).reshape(len(found), info.height, info.width)
        return masks, np.array([category for _, category in found], dtype=np.int64)


class _Content:
    """What a file says, checked and gathered by image.

    Args:
        file: the file.
        classes: the categories that annotations may have.
        known_as: what to call these categories if an annotation has another one.
    """

    def __init__(self, file: DataFile, classes: Sequence[ClassInfo], known_as: str) -> None:
        self.file = file
        self.classes = tuple(classes)
        self.known_as = known_as
        self.images: list[ImageInfo] = []
        self.objects: list[list[_Object]] = []
        self.row_of: dict[int, int] = {}
        """Image id -> row."""
        self._index_of = {info.id: index for index, info in enumerate(classes)}

    def add_image(self, info: ImageInfo, *place: str | int) -> None:
        """Adds an image without objects."""
        if info.id in self.row_of:
            self.file.fail(f"has the id {info.id} of an earlier image", *place)
        self.row_of[info.id] = len(self.images)
        self.images.append(info)
        self.objects.append([])

    def add_object(self, annotation: Any, row: int, *place: str | int) -> None:
        """Adds an object to the image of a row, unless its list of polygons is empty."""
        field = self.file.field
        category_id = field(annotation, "category_id", int, *place)
        if category_id not in self._index_of:
            self.file.fail(f"is {category_id}, which is not among {self.known_as}", *place, "category_id")
        segmentation = checked_segmentation(self.file, annotation, self.images[row], *place)
        iscrowd = self.file.flag(annotation, "iscrowd", *place) if "iscrowd" in annotation else False
        area = field(annotation, "area", (int, float), *place) if "area" in annotation else None
        bbox = field(annotation, "bbox", list, *place) if "bbox" in annotation else None
        if segmentation:
            self.objects[row].append(_Object(self._index_of[category_id], iscrowd, segmentation, area, bbox))


def _read_official(file: DataFile) -> _Content:
    content = _Content(file, read_classes(file, things_only=True), "categories")
    for row, image in enumerate(file.field(file.content, "images", list)):
        content.add_image(read_image_info(file, image, "images", row), "images", row)
    for number, annotation in enumerate(file.field(file.content, "annotations", list)):
        image_id = file.field(annotation, "image_id", int, "annotations", number)
        if image_id not in content.row_of:
            file.fail(f"names image {image_id}, which is not among images", "annotations", number)
        content.add_object(annotation, content.row_of[image_id], "annotations", number)
    return content


def _read_psalm(file: DataFile) -> _Content:
    file = replace(file, format_name="PSALM's instance JSON")
    content = _Content(file, COCO_THINGS, "COCO's 80 thing categories; with others, use COCO's own format")
    name_of = {info.id: info.name for info in COCO_THINGS}
    for row, record in enumerate(file.content):
        info = {**file.field(record, "image_info", dict, row), "file_name": file.field(record, "image", str, row)}
        content.add_image(read_image_info(file, info, row, "image_info"), row, "image_info")
        annotations = file.field(record, "anns", list, row)
        for number, annotation in enumerate(annotations):
            content.add_object(annotation, row, row, "anns", number)
        # Names that are not COCO's give away another data set whose ids happen to be among COCO's.
        expected = [name_of[annotation["category_id"]] for annotation in annotations]
        names = file.field(record, "mask_classes", list, row)
        if names != expected:
            file.fail(
                f"must be {expected!r:.60}, as the category ids of anns say, but is {names!r:.60}", row, "mask_classes"
            )
    return content


def _area_and_box(info: ImageInfo, annotated: _Object) -> tuple[float, list[float]]:
    area, bbox = annotated.area, annotated.bbox
    if area is None or bbox is None:
        mask = segmentation_to_mask(annotated.segmentation, info.height, info.width)
        area = int(mask.sum()) if area is None else area
        bbox = _box(mask) if bbox is None else bbox
    return area, bbox


def _box(mask: np.ndarray) -> list[float]:
    """x, y, width, height of a mask [H, W]; zeros if it is empty."""
    if not mask.any():
        return [0, 0, 0, 0]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
