"""Cross-image data: regions of one image, and the objects of the same categories in another one.

The file is a list of pairs: ``image_info`` and ``annotations`` are the prompt image and its prompted objects (COCO
annotations with prompts, see ``interactive``), ``image1_info`` and ``annotations1`` the target image and its objects.
``*_info`` has ``image`` (file name), ``img_id``, ``height`` and ``width``. ``python -m psalm.data.make_cross_image``
makes such a file from COCO instances.

Letters: H W height and width of the target image, N masks of the target image, K regions of the prompt image.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from psalm.constants import CROSS_IMAGE
from psalm.data.coco_format import DataFile
from psalm.data.dataset import File, find_image
from psalm.data.interactive import (
    PromptedData,
    image_entry,
    read_sized_image,
    records_of,
    region_entries,
    region_record,
    visible_objects,
)
from psalm.data.masks import segmentation_to_mask
from psalm.data.samples import CrossImageRecord


class CrossImageData(PromptedData):
    """The pairs of images of one split; the constructor is ``PromptedData``'s.

    Crowd regions, objects without a pixel and prompted objects without a prompt are left out, and so are pairs with
    nothing prompted. A pair whose target has none of the prompted categories stays: nothing is there to be found.
    """

    task = CROSS_IMAGE
    format_name = "cross-image JSON"

    @property
    def has_absent(self) -> bool:
        """Whether the split asks for categories that a target image does not have.

        A selection of pairs answers as the whole split, so that all are predicted in the same way.
        """
        return any(-1 in self._samples[row]["answers"] for row in range(len(self._samples)))

    def read_row(self, row: int) -> CrossImageRecord:
        """See ``TaskData``."""
        pair = self._samples[row]
        target_file, prompt_file = self.files_of_row(row)
        target = pair["target"]
        return CrossImageRecord(
            prompt=region_record(self.path, pair["prompt"], prompt_file.path),
            image_id=target["id"],
            file_name=target["name"],
            image=read_sized_image(self.path, target, target_file.path),
            masks=_target_masks(pair),
            answers=np.array(pair["answers"], dtype=np.int64),
            sample_id=pair["id"],
        )

    def files_of_row(self, row: int) -> tuple[File, ...]:
        """See ``TaskData``."""
        pair = self._samples[row]
        return (
            File("target image", find_image(self.image_folders, pair["target"]["name"])),
            File("prompt image", find_image(self.image_folders, pair["prompt"]["image"]["name"])),
        )

    @staticmethod
    def samples(file: DataFile, prompt_types: Sequence[str]) -> Iterator[dict[str, Any]]:
        """See ``PromptedData``."""
        for row, pair in enumerate(records_of(file)):
            image = image_entry(file, file.field(pair, "image_info", dict, row), row, "image_info")
            target = image_entry(file, file.field(pair, "image1_info", dict, row), row, "image1_info")
            regions = region_entries(file, pair, row, "annotations", image["size"], prompt_types)
            objects: dict[int, list[Any]] = {}
            for column, annotation in visible_objects(file, pair, row, "annotations1", target["size"]).items():
                category = file.field(annotation, "category_id", int, row, "annotations1", column)
                objects.setdefault(category, []).append(annotation["segmentation"])
            categories = [
                file.field(pair["annotations"][column], "category_id", int, row, "annotations", column)
                for column in regions
            ]
            present = [category for category in dict.fromkeys(categories) if category in objects]
            if regions:
                yield {
                    "id": file.field(pair, "new_img_id", int, row) if "new_img_id" in pair else row,
                    "prompt": {"image": image, "regions": [*regions.values()]},
                    "target": target,
                    "objects": [objects[category] for category in present],
                    "answers": [present.index(category) if category in objects else -1 for category in categories],
                }


def _target_masks(pair: dict[str, Any]) -> np.ndarray:
    """One mask per category that is there, of all its objects: bool [N, H, W]."""
    masks = np.zeros((len(pair["objects"]), *pair["target"]["size"]), dtype=bool)
    for mask, segmentations in zip(masks, pair["objects"], strict=True):
        for segmentation in segmentations:
            mask |= segmentation_to_mask(segmentation, *pair["target"]["size"])
    return masks
