"""Before any compute: is the data there and whole, and which data is it."""

import logging
import os
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from psalm.data.coco_panoptic import PanopticDataset, Split
from psalm.data.errors import BadImageError, DataError

logger = logging.getLogger(__name__)

MAX_FILES_READ = 2000
"""Up to so many images every file is opened; of more, an even sample."""
SECONDS = 20.0
"""Opening files stops after this time (slow network storage)."""
RECORDS_READ = 8
"""So many ground truths are decoded and compared with their annotations."""


@dataclass(frozen=True)
class PanopticCheck:
    """What the check of a split looked at and found."""

    images: int
    opened: int
    """Images whose files were opened; all of them were looked up."""
    bad: tuple[str, ...]
    """File names of images that are missing or truncated (or whose PNG is)."""


def check_panoptic(
    root: str | Path, split: Split, image_folder: str | Path | None = None, skip_bad_images: bool = False
) -> PanopticCheck:
    """Checks a split: layout, JSON, every file's presence, whether files are whole, some ground truths.

    Raises:
        DataError: a file or folder is missing, the JSON is not of the format, or annotations and PNGs disagree.
        BadImageError: an image is missing or truncated and ``skip_bad_images`` is off; names the first, counts all.
    """
    dataset = PanopticDataset(root, split, image_folder, skip_bad_images)
    problems = _absent(dataset)
    opened = _open_files(dataset, problems)
    bad = sorted(problems)
    if bad and not skip_bad_images:
        raise BadImageError(
            f"{problems[bad[0]]} ({len(bad)} of {len(dataset)} images of the {split} split are missing or truncated; "
            "skip_bad_images leaves them out)"
        )
    good = [index for index in range(len(dataset)) if index not in problems]
    if not good:
        raise DataError(f"every image of the {split} split is missing or truncated, e.g. {problems[bad[0]]}")
    for index in _spread(good, RECORDS_READ):
        dataset.truth(index)
    return PanopticCheck(len(dataset), opened, tuple(dataset.index.image_names[index] for index in bad))


def data_fingerprint(root: str | Path, split: Split, image_folder: str | Path | None = None) -> str:
    """32 hex digits that tell whether two splits are the same data, wherever they lie.

    Hashes the annotation file's bytes and the name and size of every image and PNG: not their contents (reading a
    large data set takes too long), and neither times nor folders.

    Raises:
        DataError: a file or folder is missing, or the JSON is not of the format expected.
    """
    dataset = PanopticDataset(root, split, image_folder)
    digest = sha256(dataset.files.annotations.read_bytes())
    names = zip(dataset.index.image_names, dataset.index.map_names, strict=True)
    for image, segment_map in sorted(names):
        for name, path in ((image, dataset.files.images / image), (segment_map, dataset.files.maps / segment_map)):
            size = path.stat().st_size if path.is_file() else "missing"
            digest.update(f"\n{name}\t{size}".encode())
    return digest.hexdigest()[:32]


def _absent(dataset: PanopticDataset) -> dict[int, str]:
    """Index -> problem of every sample one of whose files is not there; lists folders instead of asking per file."""
    images, maps = _names_below(dataset.files.images), _names_below(dataset.files.maps)
    problems: dict[int, str] = {}
    for index, (image, segment_map) in enumerate(zip(dataset.index.image_names, dataset.index.map_names, strict=True)):
        if image not in images and not dataset.image_path(index).is_file():
            problems[index] = f"image {dataset.image_path(index)} is missing"
        elif segment_map not in maps and not dataset.map_path(index).is_file():
            problems[index] = f"panoptic PNG {dataset.map_path(index)} is missing"
    return problems


def _names_below(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}


def _open_files(dataset: PanopticDataset, problems: dict[int, str]) -> int:
    """Adds truncated files to the problems; returns how many samples' files were opened."""
    present = [index for index in range(len(dataset)) if index not in problems]
    chosen = _spread(present, MAX_FILES_READ)
    deadline = time.monotonic() + SECONDS
    opened = 0
    for index in chosen:
        if time.monotonic() > deadline:
            break
        opened += 1
        problem = dataset.problem(index)
        if problem is not None:
            problems[index] = problem
    if opened < len(present):
        logger.info("opened the files of %d of %d images of the %s split", opened, len(present), dataset.split)
    return opened


def _spread(values: list[int], count: int) -> list[int]:
    """At most ``count`` of the values, evenly spread."""
    if len(values) <= count:
        return values
    return [values[i] for i in np.linspace(0, len(values) - 1, count).astype(int)]
