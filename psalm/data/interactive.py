"""COCO-Interactive, PSALM's data for region segmentation: images, their objects, visual prompts that point at them.

The file is a list of samples ``{image, image_info: {id, height, width}, anns}``; each of ``anns`` is a COCO annotation
with up to four prompts, ``point_visual_prompt_mask`` and the like, as RLE. ``python -m psalm.data.make_interactive``
makes such a file from COCO instances.

Letters: H W height and width, K regions of an image.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psalm.constants import REGION
from psalm.data.coco_format import JsonFile
from psalm.data.dataset import File, Question, Split, TaskData, find_image
from psalm.data.errors import DataError
from psalm.data.images import read_image
from psalm.data.packed import PackedRecords
from psalm.data.samples import RegionRecord
from psalm.data.visual_prompts import PROMPT_TYPES, decode_mask, prompt_key, segmentation_area

FORMAT = "COCO-Interactive JSON"


class RegionData(TaskData):
    """The images of one split, each with the regions that can be asked for.

    Crowd regions, objects without a pixel and objects without a prompt are left out, and so are samples of which
    nothing remains.

    Args:
        path: the file.
        split: "train" or "val".
        image_folders: folders with the images; an image is read from the first that has it.
        skip_bad_images: see ``TaskData``.
        prompt_types: the types of prompt to use.

    Raises:
        ValueError: an unknown type of prompt.
        DataError: the file is missing, not of the format, or has no region with such a prompt.
    """

    task = REGION

    def __init__(
        self,
        path: str | Path,
        split: Split,
        image_folders: Sequence[Path],
        skip_bad_images: bool = False,
        prompt_types: Sequence[str] = PROMPT_TYPES,
    ) -> None:
        self.path = Path(path)
        self.split = split
        self.image_folders = tuple(image_folders)
        self.prompt_types = tuple(prompt_types)
        self._samples = PackedRecords(_samples(JsonFile(self.path, FORMAT), self.prompt_types))
        if not len(self._samples):
            raise nothing_to_ask(self.path, self.prompt_types)
        super().__init__(len(self._samples), skip_bad_images)

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        """See ``TaskData``."""
        return (self.path,)

    def read_row(self, row: int) -> RegionRecord:
        """See ``TaskData``."""
        sample = self._samples[row]
        return region_record(self.path, sample, find_image(self.image_folders, sample["image"]["name"]))

    def check_row(self, row: int) -> None:
        """See ``TaskData``."""
        check_regions(self.path, self._samples[row])

    def files_of_row(self, row: int) -> tuple[File, ...]:
        """See ``TaskData``."""
        return (File("image", find_image(self.image_folders, self._samples[row]["image"]["name"])),)

    def questions_of_row(self, row: int) -> Sequence[Question]:
        """The types of prompt that at least one region of a row has."""
        regions = self._samples[row]["regions"]
        return tuple(kind for kind in self.prompt_types if any(kind in region["prompts"] for region in regions))


def _samples(file: JsonFile, prompt_types: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every sample that has regions, as little of it as is needed later."""
    for row, sample in enumerate(records_of(file)):
        info = file.field(sample, "image_info", dict, row)
        image = image_entry(file, {**info, "image": file.field(sample, "image", str, row)}, row, "image_info")
        regions = region_entries(file, sample, row, "anns", image["size"], prompt_types)
        if regions:
            yield {"image": image, "regions": regions}


def records_of(file: JsonFile) -> list[Any]:
    """The records of a file, which must be a list of them."""
    if not isinstance(file.content, list):
        file.fail(f"must be a list of records, but is {type(file.content).__name__}")
    return file.content


def image_entry(file: JsonFile, info: dict[str, Any], row: int, key: str) -> dict[str, Any]:
    """Name, id and size of an image, and where they stand; ``image`` and ``img_id`` come before COCO's own keys."""
    size = [file.field(info, side, int, row, key) for side in ("height", "width")]
    if min(size) < 1:
        file.fail(f"must have a height and a width of at least 1, but has {size}", row, key)
    return {
        "name": file.field(info, "image" if "image" in info else "file_name", str, row, key),
        "id": file.field(info, "img_id" if "img_id" in info else "id", int, row, key),
        "size": size,
        "place": f"[{row}].{key}",
    }


def object_entries(file: JsonFile, record: Any, row: int, key: str, size: list[int]) -> list[dict[str, Any]]:
    """The COCO annotations in ``record[key]`` that have a pixel, without crowds: segmentation and place of each."""
    entries = []
    for column, annotation in enumerate(file.field(record, key, list, row)):
        place = (row, key, column)
        segmentation = file.field(annotation, "segmentation", (list, dict), *place)
        crowd = "iscrowd" in annotation and file.flag(annotation, "iscrowd", *place)
        if not crowd and _area(file, segmentation, size, *place, "segmentation"):
            entries.append({"segmentation": segmentation, "place": place})
    return entries


def region_entries(
    file: JsonFile, record: Any, row: int, key: str, size: list[int], prompt_types: Sequence[str]
) -> list[dict[str, Any]]:
    """Those of ``object_entries`` that have a prompt, with their ids and prompts; for ``region_record``."""
    regions = []
    for entry in object_entries(file, record, row, key, size):
        place = entry["place"]
        annotation = record[key][place[-1]]
        prompts = {}
        for kind in prompt_types:
            rle = annotation.get(prompt_key(kind))
            if rle is not None and _area(
                file, file.field(annotation, prompt_key(kind), dict, *place), size, *place, prompt_key(kind)
            ):
                prompts[kind] = rle
        if prompts:
            regions.append({**entry, "id": file.field(annotation, "id", int, *place), "prompts": prompts})
    return regions


def _area(file: JsonFile, segmentation: Any, size: list[int], *place: str | int) -> int:
    area = 0
    try:
        area = segmentation_area(segmentation, *size)
    except DataError as error:
        file.fail(f"cannot be used: {error}", *place)
    return area


def region_record(path: Path, sample: dict[str, Any], image_path: Path) -> RegionRecord:
    """Reads image and objects of a sample as made above; ``path`` is the file that it is from.

    Raises:
        BadImageError: the image is missing or truncated.
        DataError: it is of another size than the file says, or an object cannot be decoded.
    """
    image, regions = sample["image"], sample["regions"]
    return RegionRecord(
        image_id=image["id"],
        file_name=image["name"],
        image=read_sized_image(path, image, image_path),
        annotation_ids=tuple(region["id"] for region in regions),
        masks=np.stack([decoded(path, each["segmentation"], image["size"], each["place"]) for each in regions]),
        prompts=tuple(region["prompts"] for region in regions),
    )


def check_regions(path: Path, sample: dict[str, Any]) -> None:
    """Decodes objects and prompts of a sample, without its image; raises as ``decoded`` does."""
    size = sample["image"]["size"]
    for region in sample["regions"]:
        decoded(path, region["segmentation"], size, region["place"])
        for kind, rle in region["prompts"].items():
            decoded(path, rle, size, region["place"], prompt_key(kind))


def decoded(
    path: Path, segmentation: Any, size: Sequence[int], place: Sequence[Any], key: str = "segmentation"
) -> np.ndarray:
    """A segmentation that stands under ``key`` at a place (row, name of the list, column) of a file: bool [H, W].

    Raises:
        DataError: it cannot be decoded; names file and place.
    """
    try:
        return decode_mask(segmentation, *size)
    except DataError as error:
        row, name, column = place
        raise DataError(f"{path}: [{row}].{name}[{column}].{key} cannot be used: {error}") from error


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


def nothing_to_ask(path: Path, prompt_types: Sequence[str]) -> DataError:
    """The error of a file without any region that can be asked for."""
    keys = " or ".join(map(prompt_key, prompt_types))
    return DataError(f"{path} has no object with a visual prompt: one with a non-empty {keys} is expected")
