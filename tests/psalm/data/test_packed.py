"""Packed records are the records, at a fraction of their memory."""

import pickle

import numpy as np
import pytest

from psalm.data.packed import PackedRecords

RECORDS = [
    {"id": 3, "name": "Straße 🐈", "box": [1.5, -2, 0.1], "crowd": False, "nothing": None},
    [],
    "",
    0,
    {"counts": "`[o1" * 100, "size": [480, 640]},
    None,
    [{"nested": {"deep": [[]]}}],
]


def test_records_are_equal():
    packed = PackedRecords(RECORDS)
    assert len(packed) == len(RECORDS)
    assert [packed[row] for row in range(len(packed))] == RECORDS
    assert list(packed) == RECORDS
    assert packed[np.int64(4)] == RECORDS[4]


def test_records_may_come_one_by_one():
    assert list(PackedRecords(record for record in RECORDS)) == RECORDS


def test_what_is_read_is_a_copy():
    packed = PackedRecords([{"ids": [1]}])
    packed[0]["ids"].append(2)
    assert packed[0] == {"ids": [1]}


def test_floats_are_exact():
    values = np.random.default_rng(0).standard_normal(200).tolist()
    assert PackedRecords([values])[0] == values


def test_copies_in_other_processes_are_light_and_equal():
    packed = PackedRecords(RECORDS)
    dumped = pickle.dumps(packed)
    assert list(pickle.loads(dumped)) == RECORDS
    assert len(dumped) < sum(len(repr(record).encode()) for record in RECORDS) + 1000


@pytest.mark.parametrize(("row", "count"), [(7, 7), (-1, 7), (0, 0)])
def test_rows_that_are_not_there(row, count):
    with pytest.raises(IndexError, match=f"^record {row} is outside the {count} records$"):
        PackedRecords(RECORDS[:count])[row]


def test_no_records():
    assert len(PackedRecords([])) == 0
    assert list(PackedRecords([])) == []
