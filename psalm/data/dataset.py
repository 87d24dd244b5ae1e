"""What the data of every task have in common: samples by index, files that may be bad, selections of samples."""

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch

from psalm.data.errors import BadImageError, DataError
from psalm.data.images import file_problem
from psalm.data.samples import ClassInfo

logger = logging.getLogger(__name__)

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
DECODING_THREADS = 4

Read = TypeVar("Read")

Question = int | str | None
"""What is asked of a sample: an expression's number, a type of prompt, or nothing to choose."""


class File(NamedTuple):
    """An image file of a sample."""

    what: str
    """``image``, ``target image``, ``panoptic PNG``, ..."""
    path: Path


class TaskData(ABC):
    """The samples of one task in one split; reads only.

    A subclass reads its annotation files when it is made and keeps them small; images are read sample by sample. Copies
    in data-loader workers share with the process that made them what they learn about bad images.

    Args:
        rows: how many samples the annotation files have.
        skip_bad_images: whether whoever iterates passes over images that are missing or truncated. The data still raise
            BadImageError for them; a process logs each file once, and all count the images in ``bad_images``.
    """

    task: ClassVar[str]

    def __init__(self, rows: int, skip_bad_images: bool = False) -> None:
        self.skip_bad_images = skip_bad_images
        self.rows = np.arange(rows)
        """Row in the annotation files of every sample."""
        self._bad = torch.zeros(rows, dtype=torch.bool).share_memory_()
        self._logged: set[str] = set()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes of the task, in the order of the file's categories; empty where the task has none."""
        return ()

    @property
    @abstractmethod
    def annotation_files(self) -> tuple[Path, ...]:
        """The files that say what the samples are."""

    @abstractmethod
    def read_row(self, row: int) -> Any:
        """Image and ground truth of a row of the annotation files; raises as ``record`` does."""

    @abstractmethod
    def check_row(self, row: int) -> None:
        """Decodes a row's ground truth, without its images; raises as ``record`` does."""

    @abstractmethod
    def files_of_row(self, row: int) -> tuple[File, ...]:
        """A row's image files: first the image that is segmented."""

    def questions_of_row(self, row: int) -> Sequence[Question]:
        """What can be asked of a row, one at a time."""
        return (None,)

    def questions(self, index: int) -> Sequence[Question]:
        """What can be asked of a sample, one at a time."""
        return self.questions_of_row(int(self.rows[index]))

    def record(self, index: int) -> Any:
        """Reads a sample: one of the records of ``psalm.data.samples``.

        Raises:
            BadImageError: one of its files is missing or truncated.
            DataError: files and annotations do not agree.
        """
        row = int(self.rows[index])
        return self._noting(row, lambda: self.read_row(row))

    def check(self, index: int) -> None:
        """Decodes a sample's ground truth; raises as ``record`` does."""
        row = int(self.rows[index])
        self._noting(row, lambda: self.check_row(row))

    def files(self, index: int) -> tuple[File, ...]:
        """A sample's image files: first the image that is segmented."""
        return self.files_of_row(int(self.rows[index]))

    def image_names(self, index: int) -> tuple[str, ...]:
        """File names of a sample's images, without other files such as PNGs of segments."""
        return tuple(file.path.name for file in self.files(index) if "image" in file.what)

    def select(self, indices: Iterable[int]) -> "TaskData":
        """The same data with these samples only."""
        chosen = copy.copy(self)
        chosen.rows = self.rows[np.fromiter(indices, dtype=np.int64)]
        return chosen

    @property
    def bad_images(self) -> tuple[str, ...]:
        """File names of the images found missing or truncated so far, in this process or its workers."""
        bad = [index for index in range(len(self)) if self._bad[self.rows[index]]]
        return tuple(dict.fromkeys(self.image_names(index)[0] for index in bad))

    def good_indices(self) -> list[int]:
        """The samples to evaluate on: all, or, with ``skip_bad_images``, those whose files decode.

        The latter reads every file once, so that every rank leaves out the same images.

        Raises:
            DataError: none is left.
        """
        if not self.skip_bad_images:
            return list(range(len(self)))
        of_sample = [self.files(index) for index in range(len(self))]
        paths = list(dict.fromkeys(path for files in of_sample for _, path in files))
        with ThreadPoolExecutor(DECODING_THREADS) as threads:
            found = dict(zip(paths, threads.map(lambda path: file_problem(path, thorough=True), paths), strict=True))
        problems = [
            next((f"{what} {path} {found[path]}" for what, path in files if found[path]), None) for files in of_sample
        ]
        for index, problem in enumerate(problems):
            if problem is not None:
                self._note(int(self.rows[index]), problem)
        good = [index for index, problem in enumerate(problems) if problem is None]
        if not good:
            raise DataError(f"every image of {self.annotation_files[0]} is missing or truncated, e.g. {problems[0]}")
        return good

    def _noting(self, row: int, read: Callable[[], Read]) -> Read:
        try:
            return read()
        except BadImageError as error:
            self._note(row, str(error))
            raise

    def _note(self, row: int, problem: str) -> None:
        """Counts a bad image, and logs it the first time that one of its samples is met."""
        if not self._bad[row]:
            self._bad[row] = True
            if self.skip_bad_images and problem not in self._logged:
                self._logged.add(problem)
                logger.warning("skipped: %s", problem)


class JoinedData(TaskData):
    """Several data of one task, one after the other; their classes must be the same."""

    def __init__(self, parts: Sequence[TaskData]) -> None:
        super().__init__(sum(map(len, parts)), any(part.skip_bad_images for part in parts))
        self.parts = tuple(parts)
        self.task = parts[0].task  # type: ignore[misc]
        self._ends = np.cumsum([len(part) for part in parts])
        if any(part.classes != parts[0].classes for part in parts):
            names = ", ".join(str(part.annotation_files[0]) for part in parts)
            raise DataError(f"data of one task must have the same categories, but these differ: {names}")

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """See ``TaskData``."""
        return self.parts[0].classes

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        """See ``TaskData``."""
        return tuple(file for part in self.parts for file in part.annotation_files)

    def read_row(self, row: int) -> Any:
        """See ``TaskData``."""
        part, index = self._place(row)
        return part.record(index)

    def check_row(self, row: int) -> None:
        """See ``TaskData``."""
        part, index = self._place(row)
        part.check(index)

    def files_of_row(self, row: int) -> tuple[File, ...]:
        """See ``TaskData``."""
        part, index = self._place(row)
        return part.files(index)

    def questions_of_row(self, row: int) -> Sequence[Question]:
        """See ``TaskData``."""
        part, index = self._place(row)
        return part.questions(index)

    def _note(self, row: int, problem: str) -> None:
        """The part notes it, and logs it."""
        self._bad[row] = True
        part, index = self._place(row)
        part._note(int(part.rows[index]), problem)

    def _place(self, row: int) -> tuple[TaskData, int]:
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self.parts[number], row - int(self._ends[number - 1] if number else 0)


def find_image(folders: Sequence[Path], name: str) -> Path:
    """The file of that name in the first folder that has it; in the first folder if none has (it is then missing)."""
    if len(folders) == 1:
        return folders[0] / name
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
