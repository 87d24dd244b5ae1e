"""COCO panoptic data as semantic segmentation: the class of every pixel, things and stuff alike.

Ground truth is either made from the panoptic PNGs, or read from ``panoptic_semseg_{split}2017/``, inside or beside
``annotations/``, where that folder exists. Its PNGs have the panoptic PNGs' names and hold what Mask2Former's
preparation of COCO writes: one channel, the category's 0-based place among the JSON's categories, 255 for unlabelled.

Letters: H W height and width.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from psalm.constants import SEMANTIC
from psalm.data.coco_panoptic import VOID, PanopticData, read_image_like
from psalm.data.dataset import File, Split, TaskData
from psalm.data.errors import BadImageError, DataError
from psalm.data.images import DECODING_ERRORS, file_problem
from psalm.data.samples import ClassInfo, SemanticRecord

UNLABELLED = -1
"""The label of a pixel that has none."""
UNLABELLED_IN_PNG = 255
SINGLE_CHANNEL_MODES = ("L", "P", "I", "I;16", "I;16B")
"""PIL's names of PNGs with one channel of 8 or 16 bits; of ``P``, the places in the palette are read."""


class SemanticData(TaskData):
    """The images of one split with the class of every pixel.

    Args:
        root: folder in the layout of ``coco_panoptic``.
        split: "train" or "val".
        image_folder: see ``coco_panoptic.locate_images``.
        skip_bad_images: see ``TaskData``.

    Raises:
        DataError: a file or folder is missing, the JSON is not COCO panoptic format, or it has more categories than
            the PNGs of ``panoptic_semseg_{split}2017/`` can tell apart.
    """

    task = SEMANTIC

    def __init__(
        self,
        root: str | Path,
        split: Split,
        image_folder: str | Path | None = None,
        skip_bad_images: bool = False,
    ) -> None:
        self._panoptic = PanopticData(root, split, image_folder)
        super().__init__(len(self._panoptic), skip_bad_images)
        annotations = self._panoptic.located.annotations
        name = f"panoptic_semseg_{split}2017"
        folders = (annotations.parent / name, annotations.parent.parent / name)
        self.label_maps = next((folder for folder in folders if folder.is_dir()), None)
        """The folder with semantic PNGs, or None where the panoptic ones are used."""
        if self.label_maps is not None and len(self.classes) > UNLABELLED_IN_PNG:
            raise DataError(
                f"{self.label_maps} can tell {UNLABELLED_IN_PNG} categories apart, since {UNLABELLED_IN_PNG} is "
                f"unlabelled, but {annotations} has {len(self.classes)}; without that folder the panoptic PNGs are read"
            )

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """All categories, in the order of the file; labels index into them."""
        return self._panoptic.classes

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The image id of every sample."""
        return tuple(self._panoptic.index.image_ids[row] for row in self.rows)

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        """See ``TaskData``."""
        return self._panoptic.annotation_files

    def read_row(self, row: int) -> SemanticRecord:
        """See ``TaskData``."""
        label_map = self._labels(row)
        image_file, map_file = self.files_of_row(row)
        image = read_image_like(image_file.path, label_map, map_file.path)
        index = self._panoptic.index
        return SemanticRecord(index.image_ids[row], index.image_names[row], image, label_map)

    def check_row(self, row: int) -> None:
        """See ``TaskData``."""
        self._labels(row)

    def files_of_row(self, row: int) -> tuple[File, ...]:
        """See ``TaskData``."""
        image_file, map_file = self._panoptic.files_of_row(row)
        if self.label_maps is None:
            return image_file, map_file
        return image_file, File("semantic PNG", self.label_maps / self._panoptic.index.map_names[row])

    def _labels(self, row: int) -> np.ndarray:
        """The class of every pixel, int32 [H, W]; -1 where there is none."""
        if self.label_maps is None:
            segment_map, segments = self._panoptic.truth_of_row(row)
            label_of = {VOID: UNLABELLED} | {segment.id: segment.category for segment in segments}
            ids = np.array(sorted(label_of))
            labels = np.array([label_of[segment_id] for segment_id in ids.tolist()], dtype=np.int32)
            return labels[np.searchsorted(ids, segment_map)]
        path = self.label_maps / self._panoptic.index.map_names[row]
        label_map = read_label_map(path)
        beyond = label_map[label_map >= len(self.classes)]
        if beyond.size:
            raise DataError(
                f"semantic PNG {path} has the label {beyond[0]}, but {self._panoptic.located.annotations} has "
                f"{len(self.classes)} categories: 0 to {len(self.classes) - 1}, or {UNLABELLED_IN_PNG} for unlabelled, "
                "is expected"
            )
        return label_map


def read_label_map(path: Path) -> np.ndarray:
    """A PNG of labels as int32 [H, W]; 255 becomes -1.

    Raises:
        BadImageError: missing, truncated, or not an image.
        DataError: it has more channels than one.
    """
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except DECODING_ERRORS as error:
        raise BadImageError(f"semantic PNG {path} {file_problem(path, thorough=True)}") from error
    if mode not in SINGLE_CHANNEL_MODES:
        raise DataError(f"semantic PNG {path} must have one channel of 8 or 16 bits, but its mode is {mode}")
    label_map = pixels.astype(np.int32)
    label_map[label_map == UNLABELLED_IN_PNG] = UNLABELLED
    return label_map
