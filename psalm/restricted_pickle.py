"""Pickles of strangers, read without running anything of theirs.

A pickle is a program: what it calls, it finds by name. Here a name is looked up in a table and nowhere else, and what
the table holds is handed out wrapped, so that a pickle can call it and do nothing else to it. Arrays are described to
stand-ins: numpy's own functions never see a byte of a pickle's state.
"""

import copyreg
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

Globals = Mapping[tuple[str, str], Callable[..., Any]]
"""What a pickle gets for a module's global: (module, name), as they stand in the pickle -> what is called instead."""

BROKEN_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    BufferError,
    RecursionError,
)
"""What ``pickle`` raises on bytes that are truncated, damaged, or no pickle."""

PLAIN_GLOBALS: Globals = MappingProxyType({})
PLAIN_VALUES = "containers, strings and numbers"
MAX_DIMENSIONS = 64  # numpy's own limit
_SHOWN = 100  # characters of a text out of a pickle that a message repeats


class RestrictedPickleError(ValueError):
    """A pickle is missing, damaged, or asks for more than is allowed; one line that names the file and the global."""


def load_restricted(path: Path, allowed: Globals = PLAIN_GLOBALS, values: str = PLAIN_VALUES) -> Any:
    """Reads a pickle that needs no globals but the allowed ones.

    Strings of Python 2 become ``str``, byte by byte (latin-1).

    Args:
        path: the file.
        allowed: what is called in place of which global.
        values: what is allowed, in words, for the message.

    Raises:
        RestrictedPickleError: missing, truncated, not a pickle, or one that asks for another global, which the message
            names. Nothing was imported or called then.
    """
    try:
        with path.open("rb") as file:
            return read_restricted(file, path, allowed, values)
    except FileNotFoundError:
        raise RestrictedPickleError(f"{path} is missing: a pickle is expected there") from None
    except OSError as error:
        raise RestrictedPickleError(f"{path} cannot be read ({error.strerror}): a pickle is expected there") from error


def read_restricted(
    file: BinaryIO, path: Path, allowed: Globals, values: str, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Reads one pickle from an open file, as ``load_restricted`` does; ``path`` is for the message.

    ``persistent`` gives the object of a persistent id; without it such ids are refused.
    """
    copyreg.clear_extension_cache()  # what is cached there would be handed out without asking find_class
    try:
        return _RestrictedUnpickler(file, allowed, persistent).load()
    except _NotAllowedError as error:
        raise RestrictedPickleError(f"{path} {error}: only plain {values} are read") from None
    except BROKEN_PICKLE_ERRORS as error:
        problem = _printable(str(error)) or type(error).__name__
        raise RestrictedPickleError(f"{path} is truncated, or not a pickle of plain values ({problem})") from error


class _NotAllowedError(Exception):
    """A pickle asks for more than is allowed, or describes what is not; the message says what."""


class _RestrictedUnpickler(pickle.Unpickler):
    """Refuses every name outside its table, also one given by its number in the extension registry."""

    def __init__(self, file: BinaryIO, allowed: Globals, persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(file, encoding="latin1")
        self._allowed = allowed
        self._persistent = persistent

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = _printable(f"{module_name}.{global_name}")
        stand_in = self._allowed.get((module_name, global_name))
        if stand_in is None:
            raise _NotAllowedError(f"refers to {name}")
        return _Handed(name, stand_in)

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            what = repr(_printable(pid)) if isinstance(pid, str) else f"of type {type(pid).__name__}"
            raise _NotAllowedError(f"refers to the persistent id {what}")
        return self._persistent(pid)


class _Handed:
    """What a pickle gets for a name: it can be called.

    ``BUILD`` would otherwise set attributes of the class or function itself, for the whole process.
    """

    __slots__ = ("_call", "_name")

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self._name = name
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _NotAllowedError(f"sets attributes of {self._name}")


def _printable(text: str) -> str:
    """One line of a text that a stranger chose: no control characters, not for ever."""
    line = " ".join(text[: 2 * _SHOWN].split())
    return "".join(char if char.isprintable() else "?" for char in line)[:_SHOWN]


class PickledArray:
    """Stands for a numpy array, or scalar, in what was unpickled.

    Attributes:
        array: a view of the pickle's own bytes, of the dtype, byte order and memory order it was written with; None
            where the pickle never gave it a state.
    """

    __slots__ = ("array",)

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, is_fortran, data = state
        self.array = _view(data, dtype, shape, "F" if is_fortran else "C")

    @classmethod
    def from_buffer(cls, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> "PickledArray":
        """An array of protocol 5; ``axes`` are those of numpy 2's order K: the axes of the array in memory order."""
        if order not in ("C", "F", "K"):
            raise _NotAllowedError("holds an array whose memory order is none")
        stand_in = cls()
        stand_in.array = _view(data, dtype, shape, "C" if order == "K" else order)
        if order == "K" and axes is not None:
            stand_in.array = stand_in.array.transpose(axes)
        return stand_in

    @classmethod
    def scalar(cls, dtype: Any, data: Any) -> "PickledArray":
        """A scalar, as an array without dimensions."""
        stand_in = cls()
        stand_in.array = _view(data, dtype, (), "C")
        return stand_in


class PickledDict(dict[Any, Any]):
    """Stands for an ordered dictionary; attributes that one has besides its items are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _PickledDtype:
    """Stands for the dtype of numbers or booleans of a fixed size."""

    __slots__ = ("_code", "_order")
    CODES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"])

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code not in self.CODES:
            shown = _printable(code) if isinstance(code, str) else type(code).__name__
            raise _NotAllowedError(f"holds an array of numpy.dtype {shown}")
        self._code = code
        self._order = "="

    def __setstate__(self, state: Any) -> None:
        _version, order, subarray, names, fields, *_ = state
        if order not in ("<", ">", "=", "|") or not (subarray is names is fields is None):
            raise _NotAllowedError("holds an array of a structured numpy.dtype")
        self._order = order

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self._order + self._code)


def _view(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """The array of a pickle's bytes, without a copy of them."""
    if isinstance(data, str):
        data = data.encode("latin-1")  # a string of Python 2
    if not isinstance(data, bytes | bytearray):
        raise _NotAllowedError(f"holds an array whose data are a {type(data).__name__}")
    if not isinstance(dtype, _PickledDtype):
        raise _NotAllowedError("holds an array without a numpy.dtype")
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS or not all(type(s) is int and s >= 0 for s in shape):
        raise _NotAllowedError("holds an array whose shape is none")
    if len(data) != math.prod(shape) * dtype.dtype.itemsize:
        described = _printable(f"shape {list(shape)} and dtype {dtype.dtype}")
        raise _NotAllowedError(f"holds an array of {described} whose data are {len(data)} bytes")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _latin1(text: Any, encoding: Any) -> bytes:
    """What protocols 0 to 2 call to have bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _NotAllowedError("calls _codecs.encode for something else than bytes")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


def _only_named(*_: Any) -> None:
    raise _NotAllowedError("calls numpy.ndarray")


ARRAY_GLOBALS: Globals = MappingProxyType(
    {
        (f"{core}.{module}", name): stand_in
        for core in ("numpy.core", "numpy._core")  # numpy 1 and 2
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", PickledArray),
            ("multiarray", "scalar", PickledArray.scalar),
            ("numeric", "_frombuffer", PickledArray.from_buffer),
        )
    }
    | {
        ("numpy", "ndarray"): _only_named,
        ("numpy", "dtype"): _PickledDtype,
        ("_codecs", "encode"): _latin1,
        ("__builtin__", "bytes"): _no_bytes,
        ("builtins", "bytes"): _no_bytes,
        ("collections", "OrderedDict"): PickledDict,
    }
)
"""For numpy arrays of numbers or booleans, as numpy 1 and 2 write them under Python 2 and 3 in any protocol."""
ARRAY_VALUES = "containers, strings, numbers and numpy arrays of numbers"


class Unread:
    """Stands for whatever torch would make, where a pickle is only asked which globals it needs."""

    __slots__ = ()

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_STORAGES = (
    "Float", "Double", "Half", "BFloat16", "Bool", "Byte", "Char", "Short", "Int", "Long", "ComplexFloat",
    "ComplexDouble", "Untyped", "Typed",
)  # fmt: skip
_TORCH_TYPES = (
    "Size", "device", "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float8_e4m3fn",
    "float8_e5m2", "float16", "bfloat16", "float32", "float64", "complex64", "complex128",
)  # fmt: skip
TORCH_GLOBALS: Globals = MappingProxyType(
    {(module, f"{name}Storage"): Unread for module in ("torch", "torch.cuda", "torch.storage") for name in _STORAGES}
    | {("torch", name): Unread for name in _TORCH_TYPES}
    | {("torch._utils", f"_rebuild_{name}"): Unread for name in ("tensor", "tensor_v2", "tensor_v3", "parameter")}
    | {
        ("_codecs", "encode"): Unread,
        ("__builtin__", "set"): Unread,
        ("builtins", "set"): Unread,
        ("collections", "Counter"): PickledDict,
        ("collections", "OrderedDict"): PickledDict,
    }
)
"""For dense tensors, and what training checkpoints hold beside them, as torch pickles them."""
TORCH_VALUES = "containers, strings, numbers and dense tensors"
