"""Pickles of annotations, read without running anything of theirs.

The files of RefCOCO are lists and dictionaries of strings and numbers, for which no global is ever looked up, so none
is allowed.
"""

from pathlib import Path
from typing import Any

from psalm.data.errors import DataError
from psalm.restricted_pickle import RestrictedPickleError, load_restricted


def load_plain_pickle(path: Path) -> Any:
    """Reads a pickle of plain values: containers, strings, bytes, numbers, booleans, None.

    Strings of Python 2 become ``str``, byte by byte (latin-1).

    Raises:
        DataError: missing, truncated, not a pickle, or one that asks for more than plain values; names what it asks
            for. Nothing was imported or called then.
    """
    try:
        return load_restricted(path)
    except RestrictedPickleError as error:
        raise DataError(str(error)) from error
