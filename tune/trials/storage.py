"""Where trials' folders live when the machines of a search share no file system: below a URI, a bucket's for example.

A worker has a trial in a folder of its own machine: it pulls the trial before it begins or goes on, and pushes what is
new after every evaluation and checkpoint; the driver fetches records and artifacts. Wherever an upload is cut off, what
has arrived can be gone on from:

- records arrive after the artifacts and the model that they tell of, and before a checkpoint of the same step;
- a checkpoint's manifest arrives after its files and is deleted before them: without it there is no checkpoint;
- older checkpoints are deleted after a newer one has arrived.

A trial has one writer at a time, here as in any folder, and its workers share a machine. An optimizer's state is read
without restriction: whoever can write below the URI can run code on these machines.
"""

import re
import shutil
import tempfile
import urllib.parse
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import fsspec
import pyarrow
from pyarrow.fs import (
    FileInfo,
    FileSelector,
    FileSystem,
    FileType,
    FSSpecHandler,
    PyFileSystem,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from psalm.train.checkpoint_files import FINAL_MODEL, MANIFEST, checkpoints_in, fault_of, is_complete
from psalm.train.records import FILE_NAME as RECORDS
from psalm.train.records import LOCK_NAME, read_records
from tune.errors import SearchError
from tune.tracking.ledger import locked

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
_DRAFT = ".draft"
_GCS_SECONDS = 60
"""How long an unreachable Google Cloud Storage is asked again, unless the URI says; pyarrow would for 15 minutes."""
_CHUNK = 2**24  # bytes
_AT_ONCE = 8  # files of a checkpoint

_Files = dict[str, FileInfo]
"""Files below a trial's folder, by their names relative to it."""
_Stamp = tuple[int, int | None]
"""Size in bytes and time of the last change of a file."""


def is_uri(path: str) -> bool:
    """Whether trials are copied there and back; a path that is no URI is seen by all machines."""
    return _URI.match(path) is not None


def open_storage(uri: str, search: str) -> "TrialStorage":
    """The storage of a search below a URI.

    Args:
        uri: of a file system that pyarrow knows (``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX``, ``file:///FOLDER``),
            or else fsspec, with what is installed for it.
        search: name of the search's folder below it.

    Raises:
        SearchError: the URI cannot be used. What it names has not been asked yet.
    """
    try:
        filesystem, root = _open(uri)
    except (ValueError, OSError, ImportError) as error:
        raise SearchError(
            f"--storage-path {_public(uri)}: {_one_line(error)}; give a folder that all machines see, or a URI such as "
            "s3://BUCKET/PREFIX"
        ) from error
    if not root.strip("/"):
        raise SearchError(f"--storage-path {_public(uri)} names no bucket or folder; give one, as s3://BUCKET/PREFIX")
    return TrialStorage(filesystem, f"{root.rstrip('/')}/{search}", uri, search)


class TrialStorage:
    """A search's trials below a URI; every machine opens it by itself, with the credentials that it has.

    Args:
        filesystem: where.
        root: the search's folder there.
        uri, search: what ``open_storage`` made it from.
    """

    def __init__(self, filesystem: FileSystem, root: str, uri: str, search: str) -> None:
        self.filesystem = filesystem
        self.root = root
        self.uri = uri
        self.search = search
        self._made: set[str] = set()  # folders that are there
        self._copied: dict[str, _Stamp] = {}  # remote file -> stamp of the local one (push) or of itself (fetch)

    def __reduce__(self) -> tuple[Callable[[str, str], "TrialStorage"], tuple[str, str]]:
        """Only the URI travels to another process."""
        return open_storage, (self.uri, self.search)

    def check(self, *, new: bool) -> None:
        """Writes a small file, reads it and deletes it.

        Args:
            new: the search is a new one, so there must not be any of its name.

        Raises:
            SearchError: the storage cannot be written, or has a search of this name.
        """
        shown = _public(self.uri)
        path = f"{self.root}/.check-{uuid.uuid4().hex}"
        try:
            taken = new and bool(self._files(f"{self.root}/trials"))
            self._write(path, b"psalm")
            self._read(path)
            self.filesystem.delete_file(path)
        except Exception as error:  # fsspec passes on whatever its file systems raise
            raise SearchError(
                f"--storage-path {shown} cannot be used: {_one_line(error)}; give one that can be written, and every "
                "machine the credentials for it"
            ) from error
        if taken:
            raise SearchError(
                f"--storage-path {shown} has a search {self.search} already; give another path, or remove that search"
            )

    def pull(self, number: int, folder: Path) -> bool:
        """A worker begins a trial or goes on with it: ``folder`` becomes what the storage has of it.

        That is its records and its newest checkpoint; if that turns out to be damaged, the one before it too, and so
        on. What is here already is not copied again; whatever else the folder holds is removed. Waits until an earlier
        attempt on this machine is gone.

        Returns:
            Whether the storage has anything of the trial.
        """
        trial = self._trial(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK_NAME).touch()
        with locked(folder / LOCK_NAME):
            remote = self._files(trial)
            kept = {LOCK_NAME}
            for checkpoint in _complete_checkpoints(remote):
                kept.add(checkpoint)
                if self._pull_checkpoint(trial, checkpoint, folder, remote):
                    break
            for path in folder.iterdir():
                if path.name not in kept:
                    _remove(path)
            if RECORDS in remote:
                self._download(trial, RECORDS, folder)
        return RECORDS in remote

    def push(self, number: int, folder: Path, *, ended: bool = False) -> None:
        """A worker has evaluated, saved or ended: what is new or changed in ``folder`` goes to the storage.

        Args:
            number: of the trial.
            folder: the trial's on this machine.
            ended: the trial will not go on, so that no checkpoint has to stay there that is not here; otherwise
                others are deleted only once one has arrived.
        """
        trial = self._trial(number)
        # Before the rest is looked at, so that all they tell of is there.
        records = (folder / RECORDS).read_bytes() if (folder / RECORDS).is_file() else None
        remote = self._files(trial)
        if is_complete(folder / FINAL_MODEL):
            self._push_complete(trial, FINAL_MODEL, folder, remote)
        for name in _files_in(folder):
            top = PurePosixPath(name).parts[0]
            if top not in (RECORDS, LOCK_NAME, FINAL_MODEL) and not _CHECKPOINT.fullmatch(top):
                self._upload(trial, name, folder, remote, draft=_DRAFT)
        if records is not None:
            self._replace(f"{trial}/{RECORDS}", records)
        here = [path.name for path in checkpoints_in(folder).values() if is_complete(path)]
        for checkpoint in here:
            self._push_complete(trial, checkpoint, folder, remote)
        if here or ended:
            for checkpoint in _checkpoints(remote):
                if checkpoint not in here:
                    self._delete_complete(trial, checkpoint, remote)

    def fetch(self, number: int, folder: Path, *, model: bool = False) -> bool:
        """The driver wants a trial's records, and the artifacts that they name, in ``folder``.

        Where the records have not changed since the last time, no artifact is looked at.

        Args:
            number: of the trial.
            folder: the trial's on this machine.
            model: bring the final weights too.

        Returns:
            Whether records have come.

        Raises:
            OSError: the model is not there, or was damaged.
        """
        trial = self._trial(number)
        changed = self._fetch_records(trial, folder)
        if model:
            for name in _below(FINAL_MODEL, self._files(trial)):
                self._download(trial, name, folder)
            if fault := fault_of(folder / FINAL_MODEL):
                raise OSError(f"{FINAL_MODEL} of trial {number} in {_public(self.uri)}: {fault}")
        return changed

    def has_checkpoint(self, number: int, step: int) -> bool:
        """Whether a trial has a whole checkpoint of a step."""
        manifest = f"{self._trial(number)}/{PREFIX_CHECKPOINT_DIR}-{step}/{MANIFEST}"
        (info,) = self.filesystem.get_file_info([manifest])
        return bool(info.type == FileType.File)

    def take_over(self, parent: int, number: int, step: int, records: Path) -> None:
        """A trial that is forked from another one gets its first records, and that one's checkpoint of a step.

        Raises:
            OSError: the storage does not answer, or the checkpoint is being deleted. What there is of it is unfinished.
        """
        source, target = self._trial(parent), self._trial(number)
        self._replace(f"{target}/{RECORDS}", records.read_bytes())
        for name in _below(f"{PREFIX_CHECKPOINT_DIR}-{step}", self._files(source)):
            self._make_parent(f"{target}/{name}")
            self.filesystem.copy_file(f"{source}/{name}", f"{target}/{name}")

    def drop(self, number: int, *, model: bool) -> None:
        """A trial will not go on: its checkpoints are deleted in the storage and, if asked, its final weights."""
        trial = self._trial(number)
        remote = self._files(trial)
        for checkpoint in _checkpoints(remote):
            self._delete_complete(trial, checkpoint, remote)
        if model and _below(FINAL_MODEL, remote):
            self._delete_complete(trial, FINAL_MODEL, remote)

    def _trial(self, number: int) -> str:
        return f"{self.root}/trials/{number:04d}"

    def _files(self, folder: str) -> _Files:
        found = self.filesystem.get_file_info(FileSelector(folder, allow_not_found=True, recursive=True))
        files = {info.path.removeprefix(f"{folder}/"): info for info in found if info.type == FileType.File}
        return {name: info for name, info in files.items() if not name.endswith(_DRAFT)}

    def _pull_checkpoint(self, trial: str, checkpoint: str, folder: Path, remote: _Files) -> bool:
        """Brings a checkpoint here, if it is not. Returns whether it is whole."""
        here = folder / checkpoint
        if is_complete(here):
            same = (here / MANIFEST).read_bytes() == self._read(f"{trial}/{checkpoint}/{MANIFEST}")
            if same and fault_of(here) is None:
                return True
        if here.exists():
            _remove(here)
        *names, manifest = _below(checkpoint, remote)
        _all_of(lambda name: self._download(trial, name, folder), names)
        self._download(trial, manifest, folder)
        return fault_of(here) is None

    def _push_complete(self, trial: str, weights: str, folder: Path, remote: _Files) -> None:
        """Brings a folder there that has a manifest, in place of what is there of the same name."""
        manifest = f"{weights}/{MANIFEST}"
        content = (folder / manifest).read_bytes()
        if manifest in remote:
            if self._read(f"{trial}/{manifest}") == content:
                return
            self.filesystem.delete_file(f"{trial}/{manifest}")
        names = [f"{weights}/{name}" for name in _files_in(folder / weights) if name != MANIFEST]
        _all_of(lambda name: self._upload(trial, name, folder, remote), names)
        for name in _below(weights, remote):
            if name not in (*names, manifest):
                self.filesystem.delete_file(f"{trial}/{name}")
        self._replace(f"{trial}/{manifest}", content)

    def _delete_complete(self, trial: str, weights: str, remote: _Files) -> None:
        if f"{weights}/{MANIFEST}" in remote:
            self.filesystem.delete_file(f"{trial}/{weights}/{MANIFEST}")
        self.filesystem.delete_dir(f"{trial}/{weights}")
        self._made.clear()

    def _fetch_records(self, trial: str, folder: Path) -> bool:
        path = f"{trial}/{RECORDS}"
        (info,) = self.filesystem.get_file_info([path])
        if info.type == FileType.NotFound or self._copied.get(path) == _stamp(info):
            return False
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as draft:
            self._download(trial, RECORDS, Path(draft))
            artifacts = {record["path"]: None for record in read_records(draft) if record["kind"] == "artifact"}
            for artifact in self.filesystem.get_file_info([f"{trial}/{name}" for name in artifacts]):
                if artifact.type == FileType.File and self._copied.get(artifact.path) != _stamp(artifact):
                    self._download(trial, artifact.path.removeprefix(f"{trial}/"), folder)
                    self._copied[artifact.path] = _stamp(artifact)
            (Path(draft) / RECORDS).replace(folder / RECORDS)
        self._copied[path] = _stamp(info)
        return True

    def _upload(self, trial: str, name: str, folder: Path, remote: _Files, *, draft: str = "") -> None:
        """Brings a file there, unless it is there since this process did so and it has not changed.

        Args:
            trial, name: where.
            folder: the trial's on this machine.
            remote: what was there.
            draft: written beside its place under a name with this at the end, then moved.
        """
        path = f"{trial}/{name}"
        info = (folder / name).stat()
        stamp = (info.st_size, info.st_mtime_ns)
        if name not in remote or self._copied.get(path) != stamp:
            self._make_parent(path)
            with (folder / name).open("rb") as source, self.filesystem.open_output_stream(path + draft) as target:
                shutil.copyfileobj(source, target, _CHUNK)
            if draft:
                self.filesystem.move(path + draft, path)
            self._copied[path] = stamp

    def _download(self, trial: str, name: str, folder: Path) -> None:
        """Brings a file here; at every moment it is the old one or the new one."""
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{trial}/{name} in {_public(self.uri)} is not the name of a trial's file")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + _DRAFT)
        with self.filesystem.open_input_stream(f"{trial}/{name}") as source, draft.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
        draft.replace(path)

    def _replace(self, path: str, content: bytes) -> None:
        """Puts a small file there; at every moment it is the old one or the new one."""
        self._write(path + _DRAFT, content)
        self.filesystem.move(path + _DRAFT, path)

    def _write(self, path: str, content: bytes) -> None:
        self._make_parent(path)
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content)

    def _read(self, path: str) -> bytes:
        with self.filesystem.open_input_stream(path) as stream:
            return stream.read()

    def _make_parent(self, path: str) -> None:
        folder = path.rpartition("/")[0]
        if folder not in self._made:
            self.filesystem.create_dir(folder, recursive=True)
            self._made.add(folder)


def _open(uri: str) -> tuple[FileSystem, str]:
    if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in uri:
        uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds={_GCS_SECONDS}"
    try:
        return FileSystem.from_uri(uri)
    except pyarrow.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
    filesystem, root = fsspec.core.url_to_fs(uri)
    return PyFileSystem(FSSpecHandler(filesystem)), root


def _all_of(transfer: Callable[[str], None], names: Iterable[str]) -> None:
    """Several files at a time. Not by pyarrow's ``copy_files``, which is silent if the end of an upload fails."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(transfer, names):
            pass


def _checkpoints(names: Iterable[str]) -> list[str]:
    """The checkpoints that files are in, the last step first."""
    found = {match[0]: int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name.split("/")[0]))}
    return sorted(found, key=lambda checkpoint: found[checkpoint], reverse=True)


def _complete_checkpoints(names: _Files) -> list[str]:
    return [checkpoint for checkpoint in _checkpoints(names) if f"{checkpoint}/{MANIFEST}" in names]


def _below(folder: str, names: Iterable[str]) -> list[str]:
    """The files in a folder; a manifest comes last."""
    found = [name for name in names if name.startswith(f"{folder}/")]
    return sorted(found, key=lambda name: (name == f"{folder}/{MANIFEST}", name))


def _files_in(folder: Path) -> list[str]:
    """All files below a folder, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _stamp(info: FileInfo) -> _Stamp:
    return info.size, info.mtime_ns


def _public(uri: str) -> str:
    """A URI without user, password and options, among which may be keys."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
