"""Pickles that hold plain values are read; pickles that do more are refused before anything of theirs has run."""

import array
import copyreg
import datetime
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psalm.data.errors import DataError
from psalm.data.restricted_pickle import load_plain_pickle

PLAIN = [
    {"tokens": ["a", "b"], "ref_id": 7, "big": 1 << 70, "share": 0.25, "none": None, "yes": True, "tuple": (1, ())},
    "naïve 猫",
]

PYTHON_2 = b"".join(
    [
        b"(lp1\n(dp2\nS'sent_ids'\np3\n(lp4\nI0\naI1\naL2L\nasS'file_name'\np5\n",
        b"S'COCO_train2014_000000581857_16.jpg'\np6\nsS'sentences'\np7\n(lp8\n(dp9\n",
        b"S'tokens'\np10\n(lp11\nS'the'\np12\naVwoman's\np13\na",
        b"sS'raw'\np14\nVcaf\\u00e9 \xe9\np15\nsS'sent'\np16\nS'it\\'s \\xe9'\np17\nsa",
        b"sS'ann_id'\np18\nL1719310L\nsS'split'\np19\nS'testA'\np20\nsS'score'\np21\nF0.5\nsS'flag'\np22\nI01\nsa.",
    ]
)
"""Protocol 0 as Python 2 wrote it: text lines, byte strings (S), unicode strings (V), longs (L), booleans as I01."""


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        load_plain_pickle(write(tmp_path / "refs.p", data))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'refs.p'} ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol(tmp_path, protocol):
    assert load_plain_pickle(write(tmp_path / "refs.p", pickle.dumps(PLAIN, protocol))) == PLAIN


def test_sets_and_bytes(tmp_path):
    value = [{1, 2}, frozenset({3}), b"\x00\xff"]
    assert load_plain_pickle(write(tmp_path / "refs.p", pickle.dumps(value, 4))) == value


def test_text_pickle_of_python_2(tmp_path):
    (record,) = load_plain_pickle(write(tmp_path / "refs.p", PYTHON_2))
    assert record == {
        "sent_ids": [0, 1, 2],
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "sentences": [{"tokens": ["the", "woman's"], "raw": "café é", "sent": "it's é"}],
        "ann_id": 1719310,
        "split": "testA",
        "score": 0.5,
        "flag": True,
    }
    assert record["flag"] is True


def test_binary_pickle_of_python_2(tmp_path):
    """Protocol 2: byte strings (U), unicode (X), a long (0x8a)."""
    data = b"\x80\x02]q\x01}q\x02(U\x05splitq\x03X\x05\x00\x00\x00testAU\x06ann_idq\x04\x8a\x03\x0e\x3c\x1aua."
    assert load_plain_pickle(write(tmp_path / "refs.p", data)) == [{"split": "testA", "ann_id": 0x1A3C0E}]


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: [{"sentences": [bad]}], lambda bad: {("a", bad): 1}])
def test_a_call_is_refused_and_does_not_happen(tmp_path, protocol, wrap):
    marker = tmp_path / "marker"
    data = pickle.dumps(wrap(Calls(os.system, f"touch {marker}")), protocol)
    assert f"refers to {os.system.__module__}.system: only plain containers, strings and num" in refused(tmp_path, data)
    assert not marker.exists()
    pickle.Unpickler(io.BytesIO(data)).load()
    assert marker.exists()  # the pickle does what the test believes


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"cos\nsystem\n(S'touch marker'\ntR.", "os.system"),
        (b"(S'touch marker'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'touch marker'\no.", "os.system"),
        (b'(lp1\nI1\nac__builtin__\neval\n(S\'open("marker", "w")\'\ntRa.', "__builtin__.eval"),
        (b"\x80\x02cbuiltins\nexec\nX\x04\x00\x00\x00passq\x00\x85R.", "builtins.exec"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "builtins.eval"),
        (b"\x80\x04\x8c\x03a\nb\x8c\x03c\nd\x93.", "a b.c d"),
        (b"\x80\x02cbuiltins\nobject\n)\x81}b.", "builtins.object"),
        (b"\x80\x04\x8c\x08builtins\x8c\x06object\x93)}\x92.", "builtins.object"),
    ],
)
def test_every_way_to_name_a_global_is_refused(tmp_path, monkeypatch, data, name):
    monkeypatch.chdir(tmp_path)
    assert f"refers to {name}: only plain" in refused(tmp_path, data)
    assert [path.name for path in tmp_path.iterdir()] == ["refs.p"]


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("value", "module"),
    [
        (np.float32(1.5), "numpy"),
        (np.arange(3), "numpy"),
        (datetime.date(2020, 1, 2), "datetime"),
        (array.array("i", [1]), "array"),
        (complex(1, 2), "builtin"),
        (Path("x"), "pathlib"),
    ],
)
def test_values_that_are_not_plain_are_refused(tmp_path, protocol, value, module):
    assert f"refers to {module}" in refused(tmp_path, pickle.dumps([value], protocol)).replace("__", "")


def test_nothing_is_imported(tmp_path):
    write(tmp_path / "intruder.py", b"raise SystemExit")
    assert "refers to intruder.anything" in refused(tmp_path, b"cintruder\nanything\n.")


def test_state_for_a_plain_object_is_refused(tmp_path):
    """BUILD sets attributes; no plain value has any."""
    assert "not a pickle of plain values" in refused(tmp_path, b"\x80\x02}}X\x01\x00\x00\x00aK\x01sb.")


def test_a_plain_value_is_not_called(tmp_path):
    assert "not a pickle of plain values" in refused(tmp_path, b"\x80\x02X\x01\x00\x00\x00a)R.")


@pytest.mark.parametrize("data", [b"\x80\x02X\x03\x00\x00\x00a\nbQ.", b"Pdatabase\n."])
def test_persistent_ids_are_refused(tmp_path, data):
    assert "refers to the persistent id '" in refused(tmp_path, data)


@pytest.fixture
def extension() -> Iterator[int]:
    code = 240
    copyreg.add_extension("os", "system", code)
    yield code
    copyreg.remove_extension("os", "system", code)
    copyreg.clear_extension_cache()


@pytest.mark.parametrize("cached", [False, True])
def test_extension_codes_are_refused(tmp_path, extension, cached):
    marker = tmp_path / "marker"
    data = b"\x80\x02\x82" + bytes([extension])
    if cached:
        assert pickle.Unpickler(io.BytesIO(data + b".")).load() is os.system
    call = data + b"X" + len(f"touch {marker}").to_bytes(4, "little") + f"touch {marker}".encode() + b"\x85R."
    assert "refers to os.system: only plain" in refused(tmp_path, call)
    assert not marker.exists()


def test_unknown_extension_code(tmp_path):
    assert "unregistered extension code 241" in refused(tmp_path, b"\x80\x02\x82\xf1.")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pickle.dumps(PLAIN, 0)[:-1],
        pickle.dumps(PLAIN, 2)[:40],
        pickle.dumps(PLAIN, 5)[:40],
        b'[{"split": "val"}]',
        b"PK\x03\x04not a pickle",
        b"<!DOCTYPE html><html>",
        b"(lp1\nVx\\uZZZZ\na.",
        b"]]]0000.",
        b"\x80\x09.",
        b"g7\n.",
        b"]L99999999999999999999L\nI1\ns.",
        b"\x80\x04\x95" + b"\xff" * 8 + b"].",
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00.",
    ],
    ids=range(14),
)
def test_truncated_or_no_pickle(tmp_path, data):
    assert "is truncated, or not a pickle of plain values (" in refused(tmp_path, data)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"refs\.p is missing: a pickle is expected there"):
        load_plain_pickle(tmp_path / "refs.p")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\): a pickle is expected there"):
        load_plain_pickle(tmp_path)
