"""COCO panoptic data in official layout: where its files are, and one record per image.

Below the root: ``annotations/panoptic_{split}2017.json``; its PNGs in ``panoptic_{split}2017/`` inside or beside
``annotations/``; images in ``{split}2017/``, or in a given folder.

Letters: H W height and width.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from psalm.data.coco_format import PanopticIndex, read_panoptic_json
from psalm.data.errors import BadImageError, DataError
from psalm.data.images import file_problem, read_image, read_segment_map
from psalm.data.masks import id_counts
from psalm.data.samples import ClassInfo, PanopticRecord, Segment

logger = logging.getLogger(__name__)

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
VOID = 0
DECODING_THREADS = 4


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
        image_folder: folder with the images, or with ``{split}2017/`` in it; None looks below the root.

    Raises:
        ValueError: another split.
        DataError: something is missing; says what, and where it is expected.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, but got {split!r}")
    root = Path(root).expanduser()
    name = f"{split}2017"
    annotations = root / "annotations" / f"panoptic_{name}.json"
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: a folder with annotations/panoptic_{name}.json in it is expected")
    if not annotations.is_file():
        raise DataError(f"{annotations} is missing: COCO panoptic JSON is expected there")
    maps = (root / "annotations" / f"panoptic_{name}", root / f"panoptic_{name}")
    given = None if image_folder is None else Path(image_folder).expanduser()
    images = (root / name,) if given is None else (given / name, given)
    return PanopticFiles(
        annotations,
        maps=_first_folder(f"the panoptic PNGs of the {split} split", maps),
        images=_first_folder(f"the images of the {split} split", images),
    )


def _first_folder(what: str, candidates: tuple[Path, ...]) -> Path:
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise DataError(f"{what} are missing: a folder {' or '.join(map(str, candidates))} is expected")


class PanopticDataset:
    """The images of one split with their panoptic ground truth; reads only.

    Copies of it in data-loader workers are light: the annotations are parsed once per process. What they learn about
    bad images is shared with the process that made them.

    Args:
        root: folder in official layout.
        split: "train" or "val".
        image_folder: see ``locate_panoptic``.
        skip_bad_images: whether whoever iterates passes over images that are missing or truncated. The data set still
            raises BadImageError for them; it logs each one once and counts it in ``bad_images``.

    Raises:
        DataError: a file or folder is missing, or the JSON is not COCO panoptic format.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split,
        image_folder: str | Path | None = None,
        skip_bad_images: bool = False,
    ) -> None:
        self.split = split
        self.skip_bad_images = skip_bad_images
        self.files = locate_panoptic(root, split, image_folder)
        self._index = read_panoptic_json(self.files.annotations)
        self._bad = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_index"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._index = read_panoptic_json(self.files.annotations)

    def __len__(self) -> int:
        return len(self._index.image_ids)

    @property
    def index(self) -> PanopticIndex:
        """The checked annotations."""
        return self._index

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes in the order of the file's categories; ``Segment.category`` indexes into them."""
        return self._index.classes

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The image id of every sample."""
        return self._index.image_ids

    @property
    def bad_images(self) -> tuple[str, ...]:
        """File names of the images found missing or truncated so far, in this process or its workers."""
        return tuple(self._index.image_names[index] for index in self._bad.nonzero().flatten().tolist())

    def record(self, index: int) -> PanopticRecord:
        """Reads image and ground truth of a sample.

        Raises:
            BadImageError: image or PNG is missing or truncated.
            DataError: image, PNG and annotations do not agree.
        """
        segment_map, segments = self.truth(index)
        image = self._read(index, lambda: read_image(self.image_path(index)))
        if image.shape[:2] != segment_map.shape:
            raise DataError(
                f"{self.map_path(index)} is {_size(segment_map)}, "
                f"but its image {self.image_path(index)} is {_size(image)}"
            )
        return PanopticRecord(self.image_ids[index], self._index.image_names[index], image, segment_map, segments)

    def truth(self, index: int) -> tuple[np.ndarray, tuple[Segment, ...]]:
        """The ground truth of a sample alone: (segment map int32 [H, W], its segments); raises as ``record`` does."""
        segment_map = self._read(index, lambda: read_segment_map(self.map_path(index)))
        areas = id_counts(segment_map)
        rows = slice(self._index.offsets[index], self._index.offsets[index + 1])
        segment_ids = self._index.segment_ids[rows].tolist()
        path, record = self.map_path(index), f"image {self.image_ids[index]} of {self.files.annotations}"
        for segment_id in areas.keys() - {VOID, *segment_ids}:
            raise DataError(f"{path} has pixels of id {segment_id}, which is not in segments_info of {record}")
        for segment_id in set(segment_ids) - areas.keys():
            raise DataError(f"{path} has no pixel of id {segment_id}, which is in segments_info of {record}")
        segments = tuple(
            Segment(segment_id, category, self.classes[category].isthing, crowd, areas[segment_id])
            for segment_id, category, crowd in zip(
                segment_ids, self._index.categories[rows].tolist(), self._index.crowds[rows].tolist(), strict=True
            )
        )
        return segment_map, segments

    def image_path(self, index: int) -> Path:
        """The image file of a sample."""
        return self.files.images / self._index.image_names[index]

    def map_path(self, index: int) -> Path:
        """The panoptic PNG of a sample."""
        return self.files.maps / self._index.map_names[index]

    def good_indices(self) -> list[int]:
        """The samples to evaluate on: all, or, with ``skip_bad_images``, those whose two files decode.

        The latter reads every file once, so that every rank leaves out the same images.

        Raises:
            DataError: none is left.
        """
        if not self.skip_bad_images:
            return list(range(len(self)))
        with ThreadPoolExecutor(DECODING_THREADS) as threads:
            problems = list(threads.map(lambda index: self.problem(index, thorough=True), range(len(self))))
        for index, problem in enumerate(problems):
            if problem is not None:
                self._note(index, problem)
        good = [index for index, problem in enumerate(problems) if problem is None]
        if not good:
            raise DataError(f"every image in {self.files.images} is missing or truncated, e.g. {problems[0]}")
        return good

    def problem(self, index: int, thorough: bool = False) -> str | None:
        """What is wrong with a sample's files, in one line that names the file, or None; see ``file_problem``."""
        for what, path in (("image", self.image_path(index)), ("panoptic PNG", self.map_path(index))):
            problem = file_problem(path, thorough)
            if problem is not None:
                return f"{what} {path} {problem}"
        return None

    def _read(self, index: int, read: Any) -> np.ndarray:
        try:
            return read()
        except BadImageError as error:
            self._note(index, str(error))
            raise

    def _note(self, index: int, problem: str) -> None:
        """Counts a bad image, and logs it the first time."""
        if not self._bad[index]:
            self._bad[index] = True
            if self.skip_bad_images:
                logger.warning("skipped: %s", problem)


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
