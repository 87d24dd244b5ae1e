"""COCO-Interactive, PSALM's data for region segmentation: images, their objects, visual prompts that point at them.

The file is a list of samples ``{image, image_info: {id, height, width}, anns}``; each of ``anns`` is a COCO annotation
with up to four prompts, ``point_visual_prompt_mask`` and the like, as RLE. ``python -m psalm.data.make_interactive``
makes such a file from COCO instances. Samples like half a pair of cross-image data are read as well:
``{image_info: {image, img_id, height, width}, annotations}``, where COCO's own ``file_name`` and ``id`` will do, too.

Letters: H W height and width, K regions of an image.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from psalm.constants import REGION
from psalm.data.coco_format import DataFile, read_image_info, read_json
from psalm.data.dataset import File, Question, TaskData, find_image
from psalm.data.errors import DataError
from psalm.data.images import read_image
from psalm.data.masks import segmentation_areas, segmentation_to_mask
from psalm.data.packed import PackedRecords
from psalm.data.samples import RegionRecord
from psalm.data.visual_prompts import PROMPT_TYPES, prompt_key

Place = tuple[int, str, int, str]
"""Where a segmentation stands in a file: row, key of a list, column, key."""


class PromptedData(TaskData):
    """Samples with visual prompts, from one JSON file: what the data of regions and of pairs have in common.

    Args:
        path: the file.
        image_folders: folders with the images; an image is read from the first that has it.
        skip_bad_images: see ``TaskData``.
        prompt_types: the types of prompt to use.

    Raises:
        ValueError: an unknown type of prompt.
        DataError: the file is missing, not of the format, or has no region with such a prompt.
    """

    format_name: ClassVar[str]

    def __init__(
        self,
        path: str | Path,
        image_folders: Sequence[Path],
        skip_bad_images: bool = False,
        prompt_types: Sequence[str] = PROMPT_TYPES,
    ) -> None:
        self.path = Path(path)
        self.image_folders = tuple(image_folders)
        self.prompt_types = tuple(prompt_types)
        self._samples = PackedRecords(self.samples(read_json(self.path, self.format_name), self.prompt_types))
        if not len(self._samples):
            keys = " or ".join(map(prompt_key, self.prompt_types))
            raise DataError(f"{self.path} has no object with a visual prompt: one with a non-empty {keys} is expected")
        super().__init__(len(self._samples), skip_bad_images)

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        """See ``TaskData``."""
        return (self.path,)

    @staticmethod
    @abstractmethod
    def samples(file: DataFile, prompt_types: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every sample that has regions, as little of it as is needed later; every segmentation has been checked.

        Raises:
            DataError: names file, place and problem.
        """

    def check_row(self, row: int) -> None:
        """See ``TaskData``; the file was read only if this can be done."""


class RegionData(PromptedData):
    """The images of one split, each with the regions that can be asked for.

    Crowd regions, objects without a pixel and objects without a prompt are left out, and so are samples of which
    nothing remains.
    """

    task = REGION
    format_name = "COCO-Interactive JSON"

    def read_row(self, row: int) -> RegionRecord:
        """See ``TaskData``."""
        sample = self._samples[row]
        return region_record(self.path, sample, find_image(self.image_folders, sample["image"]["name"]))

    def files_of_row(self, row: int) -> tuple[File, ...]:
        """See ``TaskData``."""
        return (File("image", find_image(self.image_folders, self._samples[row]["image"]["name"])),)

    def questions_of_row(self, row: int) -> Sequence[Question]:
        """The types of prompt that at least one region of a row has."""
        regions = self._samples[row]["regions"]
        return tuple(kind for kind in self.prompt_types if any(kind in region["prompts"] for region in regions))

    @staticmethod
    def samples(file: DataFile, prompt_types: Sequence[str]) -> Iterator[dict[str, Any]]:
        """See ``PromptedData``."""
        for row, sample in enumerate(records_of(file)):
            info = file.field(sample, "image_info", dict, row)
            if "image1_info" in sample:
                file.fail("has image1_info, as cross-image data have", row)
            if "image" in sample:
                info = {**info, "image": file.field(sample, "image", str, row)}
            image = image_entry(file, info, row, "image_info")
            key = "annotations" if "annotations" in sample and "anns" not in sample else "anns"
            regions = region_entries(file, sample, row, key, image["size"], prompt_types)
            if regions:
                yield {"image": image, "regions": [*regions.values()]}


def records_of(file: DataFile) -> list[Any]:
    """The records of a file, which must be a list of them."""
    if not isinstance(file.content, list):
        file.fail(f"must be a list of records, but is {type(file.content).__name__}")
    return file.content


def image_entry(file: DataFile, info: dict[str, Any], row: int, key: str) -> dict[str, Any]:
    """Name, id and size of an image, and where they stand; ``image`` and ``img_id`` come before COCO's own keys."""
    id_key = "img_id" if "img_id" in info else "id"
    name_key = "image" if "image" in info else "file_name"
    image = read_image_info(file, info, row, key, id_key=id_key, name_key=name_key)
    return {"name": image.file_name, "id": image.id, "size": [image.height, image.width], "place": f"[{row}].{key}"}


def visible_objects(file: DataFile, record: Any, row: int, key: str, size: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The COCO annotations in the list ``record[key]`` that have a pixel, without crowds: column -> annotation."""
    found: dict[Place, Any] = {}
    for column, annotation in enumerate(file.field(record, key, list, row)):
        place = (row, key, column)
        segmentation = file.field(annotation, "segmentation", (list, dict), *place)
        if not ("iscrowd" in annotation and file.flag(annotation, "iscrowd", *place)):
            found[*place, "segmentation"] = segmentation
    return {column: record[key][column] for _, _, column, _ in _visible(file, found, size)}


def region_entries(
    file: DataFile, record: Any, row: int, key: str, size: Sequence[int], prompt_types: Sequence[str]
) -> dict[int, dict[str, Any]]:
    """Those of ``visible_objects`` that have a prompt: column -> id, segmentation, prompts; for ``region_record``."""
    kinds = {prompt_key(kind): kind for kind in prompt_types}
    objects = visible_objects(file, record, row, key, size)
    found: dict[Place, Any] = {
        (row, key, column, name): file.field(annotation, name, dict, row, key, column)
        for column, annotation in objects.items()
        for name in kinds
        if annotation.get(name) is not None
    }
    regions: dict[int, dict[str, Any]] = {}
    for place in _visible(file, found, size):
        _, _, column, name = place
        if column not in regions:
            annotation_id = file.field(objects[column], "id", int, row, key, column)
            regions[column] = {"id": annotation_id, "segmentation": objects[column]["segmentation"], "prompts": {}}
        regions[column]["prompts"][kinds[name]] = found[place]
    return regions


def _visible(file: DataFile, found: dict[Place, Any], size: Sequence[int]) -> list[Place]:
    """The places of the segmentations that have a pixel; all must be whole."""
    areas = segmentation_areas([*found.values()], *size)
    for place, area in zip(found, areas, strict=True):
        if isinstance(area, DataError):
            file.fail(f"cannot be used: {area}", *place)
    return [place for place, area in zip(found, areas, strict=True) if area]


def region_record(path: Path, sample: dict[str, Any], image_path: Path) -> RegionRecord:
    """Reads image and objects of a sample as made above; ``path`` is the file that it is from.

    Raises:
        BadImageError: the image is missing or truncated.
        DataError: it is of another size than the file says.
    """
    image, regions = sample["image"], sample["regions"]
    return RegionRecord(
        image_id=image["id"],
        file_name=image["name"],
        image=read_sized_image(path, image, image_path),
        annotation_ids=tuple(region["id"] for region in regions),
        masks=np.stack([segmentation_to_mask(region["segmentation"], *image["size"]) for region in regions]),
        prompts=tuple(region["prompts"] for region in regions),
    )


def read_sized_image(path: Path, image: dict[str, Any], image_path: Path) -> np.ndarray:
    """The pixels of an image entry, uint8 [H, W, 3]; raises as ``region_record`` does."""
    pixels = read_image(image_path)
    height, width = image["size"]
    if pixels.shape[:2] != (height, width):
        raise DataError(
            f"image {image_path} is {pixels.shape[1]} x {pixels.shape[0]} pixels, "
            f"but {image['place']} of {path} says {width} x {height}"
        )
    return pixels
