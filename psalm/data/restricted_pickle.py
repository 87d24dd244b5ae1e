"""Pickles of strangers, read without running anything of theirs.

A pickle is a program: what it calls, it finds by name. The files of RefCOCO are lists and dictionaries of strings and
numbers, for which no name is ever looked up, so none is allowed.
"""

import copyreg
import pickle
from pathlib import Path
from typing import Any, NoReturn

from psalm.data.errors import DataError

BROKEN_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
)
"""What ``pickle`` raises on bytes that are truncated, damaged, or no pickle."""


def load_plain_pickle(path: Path) -> Any:
    """Reads a pickle of plain values: containers, strings, bytes, numbers, booleans, None.

    Strings of Python 2 become ``str``, byte by byte (latin-1).

    Raises:
        DataError: missing, truncated, not a pickle, or one that asks for more than plain values; names what it asks
            for. Nothing was imported or called then.
    """
    copyreg.clear_extension_cache()  # what is cached there would be handed out without asking find_class
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except _NotPlainError as error:
        raise DataError(f"{path} refers to {error}: only plain containers, strings and numbers are read") from None
    except FileNotFoundError:
        raise DataError(f"{path} is missing: a pickle is expected there") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): a pickle is expected there") from error
    except BROKEN_PICKLE_ERRORS as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is truncated, or not a pickle of plain values ({problem})") from error


class _NotPlainError(Exception):
    """A pickle asks for more than plain values; the message says for what."""


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every name, of a class or a function, also one given by its number in the extension registry."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise _NotPlainError(" ".join(f"{module_name}.{global_name}".split()))

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _NotPlainError(f"the persistent id {pid!r:.60}")
