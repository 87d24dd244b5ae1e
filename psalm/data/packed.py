"""Many small records in one buffer: what the annotations of a large data set cost in memory, and no more."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np


class PackedRecords:
    """A list of JSON values as one byte buffer; forked data-loader workers share it without copying.

    A list of dictionaries costs several times as much, and every worker that reads one copies it page by page, because
    reading a Python object writes its reference count.
    """

    def __init__(self, records: Iterable[Any]) -> None:
        pieces = [json.dumps(record, separators=(",", ":")).encode() for record in records]
        self._ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        self._buffer = np.frombuffer(b"".join(pieces), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(f"record {row} is outside the {len(self)} records")
        start = int(self._ends[row - 1]) if row else 0
        return json.loads(self._buffer[start : int(self._ends[row])].tobytes())
