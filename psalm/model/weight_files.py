"""Files of weights, read without running anything of theirs, a tensor at a time."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from psalm.restricted_pickle import (
    ARRAY_GLOBALS,
    ARRAY_VALUES,
    BROKEN_PICKLE_ERRORS,
    TORCH_GLOBALS,
    TORCH_VALUES,
    PickledArray,
    Unread,
    load_restricted,
    read_restricted,
)

BUILTIN = "builtin"
BUILTIN_FOLDER = Path(__file__).resolve().parents[1] / "builtin"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
HUB_FILES = (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where a folder as on the hub has its weights; the first that is there is read."""
WRAPPERS = ("model", "state_dict")
"""Keys below which training checkpoints keep their weights, beside what else they hold."""
MAPPED = 64 * 2**20
"""Bytes read through one mapping of a zip file of torch before its pages are given back."""
_ZIP_START = b"PK\x03\x04"
_ZIP_ERRORS = (BadZipFile, zlib.error)
_LEGACY_PICKLES = 5  # magic number, protocol, system, the object, keys of its storages


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object, but holds a {type(content).__name__}")
    return content


class Weights(Mapping[str, Tensor]):
    """Tensors by name; each is read when it is asked for, is the caller's own, and is not kept.

    Attributes:
        source: the file, or the index of several.
    """

    def __init__(self, source: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]) -> None:
        self.source = source
        self._shapes = dict(shapes)
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._shapes:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight's shape; reads no weights."""
        return dict(self._shapes)


def open_weights(path: Path) -> Weights:
    """The weights in a file (``.safetensors``; ``.bin``, ``.pt``, ``.pth``; ``.pkl``) or in a folder as on the hub.

    Of safetensors and of torch's zip files one tensor at a time is in memory; torch's older format and pickles of numpy
    arrays, as Detectron2 writes them, are read whole and held as long as the result is.

    Raises:
        ValueError: there are no weights at ``path``, or they are damaged, or not weights alone. The message is one line
            and names the file, and the global if a pickle refers to any that weights do not need.
    """
    return _open_folder(path) if path.is_dir() else _open_file(path)


def _open_file(path: Path) -> Weights:
    if not path.is_file():
        raise ValueError(f"{path} is missing: a file of weights ({', '.join(_OPENERS)}) or a folder is expected")
    if path.suffix not in _OPENERS:
        raise ValueError(f"{path} is of no format that is read: {', '.join(_OPENERS)}")
    try:
        _refuse_another_format(path)
        weights = _OPENERS[path.suffix](path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    if not weights:
        raise ValueError(f"{path} holds no weights")
    return weights


def _open_safetensors(path: Path) -> Weights:
    def read(name: str) -> Tensor:
        with _said_in_one_line(path), safe_open(path, "pt") as file:  # opened anew: pages read stay while it is open
            return file.get_tensor(name)

    with _said_in_one_line(path), safe_open(path, "pt") as file:
        names = file.keys()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    return Weights(path, shapes, read)


def _open_torch(path: Path) -> Weights:
    mapped = _refuse_foreign_globals(path)
    held = _load_torch(path, mapped)
    shapes = {name: tuple(tensor.shape) for name, tensor in held.items()}
    if not mapped:
        return Weights(path, shapes, lambda name: held[name].clone())
    left = MAPPED

    def read(name: str) -> Tensor:
        nonlocal held, left
        if name not in held:
            held, left = _load_torch(path, mapped), MAPPED
        tensor = held.pop(name)
        left -= tensor.nbytes
        if left <= 0:
            held = {}
        return tensor

    return Weights(path, shapes, read)


def _refuse_foreign_globals(path: Path) -> bool:
    """Whether a file of torch can be mapped: it is a zip file, and not compressed.

    torch refuses globals too, but it names none in most pickle protocols, and other libraries add to its list.

    Raises:
        ValueError: a pickle in the file refers to a global that weights do not need.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP_START)) != _ZIP_START:
            file.seek(0)
            for _ in range(_LEGACY_PICKLES):
                read_restricted(file, path, TORCH_GLOBALS, TORCH_VALUES, Unread)
            return False
    with _said_in_one_line(path), ZipFile(path) as archive:
        records = archive.infolist()
        pickles = [BytesIO(archive.read(each)) for each in records if each.filename.endswith("data.pkl")]
    for each in pickles:
        read_restricted(each, path, TORCH_GLOBALS, TORCH_VALUES, Unread)
    return all(each.compress_type == ZIP_STORED for each in records)  # torch would map the compressed bytes


def _load_torch(path: Path, mapped: bool) -> dict[str, Tensor]:
    with _said_in_one_line(path):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    weights = _unwrapped(path, content)
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: {name} is a {type(value).__name__}, but only tensors are weights")
    return {name: tensor.detach() for name, tensor in weights.items()}


def _open_pickle(path: Path) -> Weights:
    arrays: dict[str, np.ndarray] = {}
    for name, value in _unwrapped(path, load_restricted(path, ARRAY_GLOBALS, ARRAY_VALUES)).items():
        if not isinstance(value, PickledArray) or value.array is None:
            raise ValueError(f"{path}: {name} is a {type(value).__name__}, but only arrays are weights")
        arrays[name] = value.array

    def read(name: str) -> Tensor:
        array = arrays[name]  # may be big-endian or in Fortran's order, and its bytes are the pickle's
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))

    return Weights(path, {name: array.shape for name, array in arrays.items()}, read)


def _unwrapped(path: Path, content: Any) -> dict[str, Any]:
    """The weights by name in what a file holds; of a training checkpoint, those of its model alone."""
    if isinstance(content, dict):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold weights by name, but holds a {type(content).__name__}")
    for name in content:
        if not isinstance(name, str) or not name.isprintable():
            raise ValueError(f"{path} must hold weights by name, but holds one whose name is {name!r:.60}")
    return content


_OPENERS: dict[str, Callable[[Path], Weights]] = {
    ".safetensors": _open_safetensors,
    ".bin": _open_torch,
    ".pt": _open_torch,
    ".pth": _open_torch,
    ".pkl": _open_pickle,
}


def _open_folder(folder: Path) -> Weights:
    name = next((name for name in HUB_FILES if (folder / name).is_file()), None)
    if name is None:
        raise ValueError(f"{folder} has no weights: {', '.join(HUB_FILES[:-1])} or {HUB_FILES[-1]} is needed")
    return (_open_shards if name.endswith(".json") else _open_file)(folder / name)


def _open_shards(index: Path) -> Weights:
    """The weights of all files that an index names: also those that the index forgets."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{index} must say in weight_map which file each weight is in, but does not")
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    shards: dict[str, Weights] = {}
    homes: dict[str, Weights] = {}
    for file in dict.fromkeys(places.values()):
        if Path(file).name != file or Path(file).suffix != suffix:
            raise ValueError(f"{index} must name {suffix} files beside it, but names {file!r:.100}")
        shard = shards[file] = _open_file(index.parent / file)
        if twice := sorted(homes.keys() & shard.keys()):
            raise ValueError(f"{index} names {file}, which holds {twice[0]}, but so does another file that it names")
        homes |= dict.fromkeys(shard, shard)
    for name, file in places.items():
        if homes.get(name) is not shards[file]:
            raise ValueError(f"{index} says that {name!r:.100} is in {file}, but it is not")
    shapes = {name: shape for shard in shards.values() for name, shape in shard.shapes().items()}
    return Weights(index, shapes, lambda name: homes[name][name])


def _refuse_another_format(path: Path) -> None:
    """Says what a file is where its first bytes are those of another format than its name's."""
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        raise ValueError(f"{path} is empty: it was not written, or not fetched, to its end")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of git LFS: fetch the file itself, with git lfs pull")
    is_safetensors, is_zip = start[4:9] == b"\0\0\0\0{", start.startswith(_ZIP_START)
    opener = _OPENERS[path.suffix]
    if is_safetensors and opener is not _open_safetensors:
        raise ValueError(f"{path} is a safetensors file under another name: name it .safetensors")
    if is_zip and opener is not _open_torch:
        raise ValueError(f"{path} is a zip file, as torch.save writes them, under another name: name it .bin")
    if start[0] == 0x80 and opener is _open_safetensors and not is_safetensors:
        raise ValueError(
            f"{path} is a pickle under another name: name it .pkl if it is of numpy, .bin if it is of torch"
        )


@contextmanager
def _said_in_one_line(path: Path) -> Iterator[None]:
    """What the libraries that read a file raise about it, as a ValueError of one line."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
    except (*BROKEN_PICKLE_ERRORS, RuntimeError, AssertionError, KeyError, SafetensorError, *_ZIP_ERRORS) as error:
        # torch says first what to do with files that one trusts, last where to read more
        paragraph = str(error).split("\n\nCheck the documentation")[0].rpartition("\n\n")[2]
        reason = " ".join(paragraph.split()).partition(". ")[0] or type(error).__name__
        raise ValueError(
            f"{path} is damaged, or not of the format that its name says ({reason:.200}): fetch or write it again"
        ) from error
