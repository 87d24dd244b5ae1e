"""COCO panoptic data in official layout: where its files are, and one record per image.

Below the root: ``annotations/panoptic_{split}2017.json``; its PNGs in ``panoptic_{split}2017/`` inside or beside
``annotations/``; images in ``{split}2017/``, or in a given folder.

Letters: H W height and width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psalm.constants import PANOPTIC
from psalm.data.coco_format import PanopticIndex, read_panoptic_json
from psalm.data.dataset import SPLITS, File, Split, TaskData
from psalm.data.errors import DataError
from psalm.data.images import read_image, read_segment_map
from psalm.data.masks import id_counts
from psalm.data.samples import ClassInfo, PanopticRecord, Segment

VOID = 0


@dataclass(frozen=True)
class PanopticFiles:
    """Where the files of one split are."""

    annotations: Path
    maps: Path
    images: Path


def locate_panoptic(root: str | Path, split: Split, image_folder: str | Path | None = None) -> PanopticFiles:
    """Finds the files of a split, without reading them.

    Args:
        root: folder with ``annotations/``.
        split: "train" or "val".
        image_folder: see ``locate_images``.

    Raises:
        ValueError: another split.
        DataError: something is missing; says what, and where it is expected.
    """
    annotations = locate_annotations(root, split, "panoptic")
    folders = (annotations.parent / annotations.stem, annotations.parent.parent / annotations.stem)
    return PanopticFiles(
        annotations,
        maps=first_folder(f"the panoptic PNGs of the {split} split", folders),
        images=locate_images(root, split, image_folder),
    )


def locate_annotations(root: str | Path, split: Split, kind: str) -> Path:
    """``annotations/{kind}_{split}2017.json`` below the root; raises as ``locate_panoptic`` does."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, but got {split!r}")
    root = Path(root).expanduser()
    path = root / "annotations" / f"{kind}_{split}2017.json"
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: a folder with annotations/{path.name} in it is expected")
    if not path.is_file():
        raise DataError(f"{path} is missing: COCO {kind} JSON is expected there")
    return path


def locate_images(root: str | Path, split: Split, image_folder: str | Path | None = None) -> Path:
    """The folder of a split's images.

    Args:
        root: folder with ``{split}2017/``.
        split: "train" or "val".
        image_folder: folder with the images, or with ``{split}2017/`` in it; None looks below the root.

    Raises:
        DataError: it is missing; says where it is expected.
    """
    name = f"{split}2017"
    given = None if image_folder is None else Path(image_folder).expanduser()
    folders = (Path(root).expanduser() / name,) if given is None else (given / name, given)
    return first_folder(f"the images of the {split} split", folders)


def first_folder(what: str, candidates: Sequence[Path]) -> Path:
    """The first of the folders that exists; raises DataError if none does."""
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise DataError(f"{what} are missing: a folder {' or '.join(map(str, candidates))} is expected")


class PanopticData(TaskData):
    """The images of one split with their panoptic ground truth.

    Copies of it in data-loader workers are light: the annotations are parsed once per process.

    Args:
        root: folder in official layout.
        split: "train" or "val".
        image_folder: see ``locate_images``.
        skip_bad_images: see ``TaskData``.

    Raises:
        DataError: a file or folder is missing, or the JSON is not COCO panoptic format.
    """

    task = PANOPTIC

    def __init__(
        self,
        root: str | Path,
        split: Split,
        image_folder: str | Path | None = None,
        skip_bad_images: bool = False,
    ) -> None:
        self.located = locate_panoptic(root, split, image_folder)
        self._index = read_panoptic_json(self.located.annotations)
        super().__init__(len(self._index.image_ids), skip_bad_images)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_index"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._index = read_panoptic_json(self.located.annotations)

    @property
    def index(self) -> PanopticIndex:
        """The checked annotations, by row."""
        return self._index

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes in the order of the file's categories; ``Segment.category`` indexes into them."""
        return self._index.classes

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The image id of every sample."""
        return tuple(self._index.image_ids[row] for row in self.rows)

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        """See ``TaskData``."""
        return (self.located.annotations,)

    def read_row(self, row: int) -> PanopticRecord:
        """See ``TaskData``."""
        segment_map, segments = self.truth_of_row(row)
        image_file, map_file = self.files_of_row(row)
        image = read_image_like(image_file.path, segment_map, map_file.path)
        return PanopticRecord(self._index.image_ids[row], self._index.image_names[row], image, segment_map, segments)

    def check_row(self, row: int) -> None:
        """See ``TaskData``."""
        self.truth_of_row(row)

    def files_of_row(self, row: int) -> tuple[File, ...]:
        """See ``TaskData``."""
        return (
            File("image", self.located.images / self._index.image_names[row]),
            File("panoptic PNG", self.located.maps / self._index.map_names[row]),
        )

    def truth(self, index: int) -> tuple[np.ndarray, tuple[Segment, ...]]:
        """The ground truth of a sample alone: (segment map int32 [H, W], its segments); raises as ``record`` does."""
        return self.truth_of_row(int(self.rows[index]))

    def truth_of_row(self, row: int) -> tuple[np.ndarray, tuple[Segment, ...]]:
        """The same by row."""
        path = self.located.maps / self._index.map_names[row]
        segment_map = read_segment_map(path)
        areas = id_counts(segment_map)
        columns = slice(self._index.offsets[row], self._index.offsets[row + 1])
        segment_ids = self._index.segment_ids[columns].tolist()
        place = f"segments_info of image {self._index.image_ids[row]} of {self.located.annotations}"
        for segment_id in areas.keys() - {VOID, *segment_ids}:
            raise DataError(f"{path} has pixels of id {segment_id}, which is not in {place}")
        for segment_id in set(segment_ids) - areas.keys():
            raise DataError(f"{path} has no pixel of id {segment_id}, which is in {place}")
        segments = tuple(
            Segment(segment_id, category, self.classes[category].isthing, crowd, areas[segment_id])
            for segment_id, category, crowd in zip(
                segment_ids, self._index.categories[columns].tolist(), self._index.crowds[columns].tolist(), strict=True
            )
        )
        return segment_map, segments


def read_image_like(path: Path, label_map: np.ndarray, map_path: Path) -> np.ndarray:
    """An image as uint8 [H, W, 3], which must be of the size of its map [H, W].

    Raises:
        BadImageError: missing or truncated.
        DataError: of another size; names both files.
    """
    image = read_image(path)
    if image.shape[:2] != label_map.shape:
        raise DataError(f"{map_path} is {_size(label_map)}, but its image {path} is {_size(image)}")
    return image


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
