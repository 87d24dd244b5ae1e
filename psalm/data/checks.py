"""Before any compute: are the files of the data there and whole, and which data is it."""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np

from psalm.data.dataset import File, JoinedData, TaskData
from psalm.data.errors import BadImageError, DataError
from psalm.data.images import file_problem

logger = logging.getLogger(__name__)

MAX_FILES_READ = 2000
"""Up to so many images every file is opened; of more, an even sample."""
SECONDS = 20.0
"""Opening files stops after this time (slow network storage)."""
RECORDS_READ = 8
"""So many ground truths are decoded and compared with their annotations."""

Files = tuple[File, ...]
Value = TypeVar("Value")


@dataclass(frozen=True)
class DataCheck:
    """What the check of some data looked at and found."""

    samples: int
    opened: int
    """Samples whose files were opened; those of all samples were looked up."""
    bad: tuple[str, ...]
    """File names of images that are missing or truncated (or whose PNG is)."""


def check_data(data: TaskData, what: str) -> DataCheck:
    """Checks every file's presence, whether files are whole, and some ground truths.

    Args:
        data: the data; their annotations were checked when they were made.
        what: what to call them, e.g. "train split".

    Raises:
        DataError: annotations and files disagree, or no image is left.
        BadImageError: a file is missing or truncated and ``data.skip_bad_images`` is off; names the first, counts all.
    """
    samples: dict[Files, list[int]] = {}  # many samples may be about one image
    for index in range(len(data)):
        samples.setdefault(data.files(index), []).append(index)
    problems = _absent(samples)
    opened = _open_files(samples, problems, what)
    bad = {index: problem for files in samples if (problem := _first(files, problems)) for index in samples[files]}
    for index in _spread([index for index in range(len(data)) if index not in bad], RECORDS_READ):
        try:
            data.check(index)
        except BadImageError as error:
            bad[index] = str(error)
    if bad and not data.skip_bad_images:
        raise BadImageError(
            f"{bad[min(bad)]} ({len(bad)} of {len(data)} samples of the {what} have files that are missing or "
            "truncated; skip_bad_images leaves them out)"
        )
    if len(bad) == len(data):
        raise DataError(f"every image of the {what} is missing or truncated, e.g. {bad[min(bad)]}")
    return DataCheck(len(data), opened, tuple(dict.fromkeys(data.image_names(index)[0] for index in sorted(bad))))


def data_fingerprint(data: TaskData) -> str:
    """32 hex digits that tell whether two data are the same, wherever they lie.

    Hashes the annotation files' bytes, the names and sizes of every sample's files, and which samples are selected: not
    the images' contents (reading a large data set takes too long), and neither times nor folders.
    """
    digest = sha256()
    for path in data.annotation_files:
        digest.update(path.read_bytes())
    sizes: dict[Path, str] = {}
    for sample in sorted(tuple(_name_and_size(file, sizes) for file in data.files(i)) for i in range(len(data))):
        for name, size in sample:
            digest.update(f"\n{name}\t{size}".encode())
    for rows in _rows(data):
        if not np.array_equal(rows, np.arange(len(rows))):
            digest.update(b"\nselected\t" + rows.astype("<i8").tobytes())
    return digest.hexdigest()[:32]


def _name_and_size(file: File, sizes: dict[Path, str]) -> tuple[str, str]:
    """A file's name and its size, or that it is missing; asks for each file once."""
    if file.path not in sizes:
        sizes[file.path] = str(file.path.stat().st_size) if file.path.is_file() else "missing"
    return file.path.name, sizes[file.path]


def _rows(data: TaskData) -> Iterator[np.ndarray]:
    yield data.rows
    if isinstance(data, JoinedData):
        for part in data.parts:
            yield from _rows(part)


def _absent(samples: Iterable[Files]) -> dict[Path, str]:
    """Path -> problem of every file that is not there; lists folders instead of asking per file."""
    names: dict[Path, set[str]] = {}
    problems: dict[Path, str] = {}
    for file in dict.fromkeys(file for files in samples for file in files):
        folder = file.path.parent
        if folder not in names:
            names[folder] = _names_below(folder)
        # Asked once more, because folders may ignore case.
        if file.path.name not in names[folder] and not file.path.is_file():
            problems[file.path] = f"{file.what} {file.path} is missing"
    return problems


def _names_below(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}


def _open_files(samples: Mapping[Files, list[int]], problems: dict[Path, str], what: str) -> int:
    """Adds truncated files to the problems; returns how many samples' files were opened."""
    present = [files for files in samples if _first(files, problems) is None]
    deadline = time.monotonic() + SECONDS
    seen: set[Path] = set()
    opened = 0
    for files in _spread(present, MAX_FILES_READ):
        if time.monotonic() > deadline:
            break
        opened += len(samples[files])
        for file in files:
            if file.path in seen:
                continue
            seen.add(file.path)
            problem = file_problem(file.path)
            if problem is not None:
                problems[file.path] = f"{file.what} {file.path} {problem}"
    total = sum(len(samples[files]) for files in present)
    if opened < total:
        logger.info("opened the files of %d of %d samples of the %s", opened, total, what)
    return opened


def _first(files: Files, problems: Mapping[Path, str]) -> str | None:
    """What is wrong with the first of the files that has a problem."""
    return next((problems[file.path] for file in files if file.path in problems), None)


def _spread(values: list[Value], count: int) -> list[Value]:
    """At most ``count`` of the values, evenly spread."""
    if len(values) <= count:
        return values
    return [values[i] for i in np.linspace(0, len(values) - 1, count).astype(int)]
