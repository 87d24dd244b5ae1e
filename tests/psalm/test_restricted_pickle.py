"""Pickled arrays come out as numpy wrote them; what else a pickle asks for is refused, named, and does not happen."""

import collections
import functools
import io
import math
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing._private.utils import runstring

from psalm import restricted_pickle
from psalm.restricted_pickle import (
    ARRAY_GLOBALS,
    ARRAY_VALUES,
    PickledArray,
    RestrictedPickleError,
    load_restricted,
    read_restricted,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
NUMBERS = np.array([[[0, 1, -1, 7], [2, 3, 4, 5], [6, 7, 8, 9]]] * 2)
DTYPES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")

SHAPES_AND_ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": lambda array: array,
    "Fortran": np.asfortranarray,
    "axes in another order": lambda array: array.transpose(1, 0, 2),
    "strided": lambda array: array[:, ::2, ::-1],
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "big-endian, Fortran": lambda array: np.asfortranarray(array.astype(array.dtype.newbyteorder(">"))),
    "one number": lambda array: array[0, 0, 3].reshape(()),
    "no numbers": lambda array: array[:0],
    "read-only": lambda array: np.frombuffer(array.tobytes(), array.dtype),
}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def load(tmp_path: Path, data: bytes) -> Any:
    return load_restricted(write(tmp_path / "model.pkl", data), ARRAY_GLOBALS, ARRAY_VALUES)


def refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(RestrictedPickleError) as caught:
        load(tmp_path, data)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'model.pkl'} ")
    assert message.isprintable()
    return message.removeprefix(f"{tmp_path / 'model.pkl'} ")


def as_numpy_1(data: bytes, protocol: int) -> bytes:
    """A short pickle with the names that numpy 1 gave its modules."""
    if protocol >= 4:
        data = data[:2] + data[11:]  # the length of its one frame would be wrong
    for new in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        old = new.replace(b"_core", b"core")
        data = data.replace(b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old).replace(new, old)
    assert b"numpy.core" in data
    assert b"_core" not in data
    return data


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("make", SHAPES_AND_ORDERS.values(), ids=SHAPES_AND_ORDERS.keys())
@pytest.mark.parametrize("version", [1, 2])
def test_arrays_of_every_protocol_and_order(tmp_path, protocol, make, version):
    for dtype in DTYPES:
        written = make(NUMBERS.astype(dtype))
        data = pickle.dumps(written, protocol)
        read = load(tmp_path, as_numpy_1(data, protocol) if version == 1 else data).array
        assert (read.dtype, read.shape, read.tolist()) == (written.dtype, written.shape, written.tolist())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scalars_of_numpy(tmp_path, protocol):
    written = [np.float32(1.5), np.int64(-7), np.bool_(True), np.float64(math.pi)]
    read = load(tmp_path, pickle.dumps(written, protocol))
    assert [(each.array.dtype, each.array.item()) for each in read] == [(each.dtype, each.item()) for each in written]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ordered_dictionaries_and_their_attributes(tmp_path, protocol):
    """As ``state_dict`` gives them: with ``_metadata``, which no weight needs."""
    written = collections.OrderedDict(b=np.arange(3), a=1)
    written._metadata = {"": {"version": 1}}
    read = load(tmp_path, pickle.dumps({"model": written}, protocol))["model"]
    assert list(read) == ["b", "a"]
    assert read["b"].array.tolist() == [0, 1, 2]


PYTHON_2_FLOATS = np.array([[1.5, -2.0, 3e7], [0.0, 4e-9, 130.0]], dtype="<f4")
PYTHON_2_TEXT = (
    b"(dp1\nS'model'\np2\n(dp3\nS'conv1_w'\np4\ncnumpy.core.multiarray\n_reconstruct\np5\n(cnumpy\nndarray\np6\n"
    b"(I0\ntp7\nS'b'\np8\ntp9\nRp10\n(I1\n(I2\nL3L\ntp11\ncnumpy\ndtype\np12\n(S'f4'\np13\nI0\nI1\ntp14\nRp15\n"
    b"(I3\nS'<'\np16\nNNNI-1\nI-1\nI0\ntp17\nbI00\nS"
    + repr(PYTHON_2_FLOATS.tobytes())[1:].encode()
    + b"\np18\ntp19\nbss."
)
PYTHON_2_BINARY = (
    b"\x80\x02}q\x01U\x05modelq\x02}q\x03U\x07conv1_wq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\n"
    b"q\x06K\x00\x85q\x07U\x01bq\x08\x87q\tRq\n(K\x01K\x02K\x03\x86q\x0bcnumpy\ndtype\nq\x0cU\x02f4q\rK\x00K\x01\x87q"
    b"\x0eRq\x0f(K\x03U\x01<q\x10NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x11b\x89U\x18"
    + PYTHON_2_FLOATS.tobytes()
    + b"q\x12tq\x13bss."
)


@pytest.mark.parametrize("data", [PYTHON_2_TEXT, PYTHON_2_BINARY], ids=["text", "binary"])
def test_arrays_of_python_2(tmp_path, data):
    """Numbers whose bytes are beyond ASCII, in strings of Python 2."""
    assert max(PYTHON_2_FLOATS.tobytes()) > 127
    read = load(tmp_path, data)["model"]["conv1_w"].array
    assert (read.dtype, read.tolist()) == (PYTHON_2_FLOATS.dtype, PYTHON_2_FLOATS.tolist())


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_bytes_of_an_array_are_those_that_were_read(tmp_path, protocol):
    array = load(tmp_path, pickle.dumps(np.ones((4, 5), order="F"), protocol)).array
    while isinstance(array, np.ndarray):
        assert not array.flags.owndata
        array = array.base
    assert isinstance(array, bytes | bytearray | memoryview)


def test_an_array_without_a_state(tmp_path):
    assert load(tmp_path, b"cnumpy.core.multiarray\n_reconstruct\n)R.").array is None


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array([{}], dtype=object), "O8"),
        (np.zeros(2, "i4,f4"), "V8"),
        (np.zeros(2, [("x", "f4", (3,))]), "V12"),
        (np.array(["a"]), "U1"),
        (np.array([b"a"]), "S1"),
        (np.zeros(1, "M8[s]"), "M8"),
        (np.zeros(1, np.longdouble), "f16"),
        (np.datetime64("2020-01-01"), "M8"),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, protocol, value, dtype):
    said = f"holds an array of numpy.dtype {dtype}: only plain containers, strings, numbers and numpy arrays of numbers"
    assert refused(tmp_path, pickle.dumps({"model": value}, protocol)).startswith(said)


def array_pickle(
    shape: bytes = b"K\x02K\x03\x86",
    data: bytes = b"C\x18" + bytes(24),
    dtype: bytes = b"X\x02\x00\x00\x00f4",
    dtype_state: bytes = b"X\x01\x00\x00\x00<NNN",
) -> bytes:
    """A 2 x 3 array of f4, of which parts may be replaced by other opcodes."""
    built = (
        b"cnumpy\ndtype\n" + dtype + b"\x89\x88\x87R(K\x03" + dtype_state + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    return b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + shape + built + b"\x89" + data + b"tb."


def test_the_array_of_the_tests_below_is_read(tmp_path):
    assert load(tmp_path, array_pickle()).array.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"data": b"C\x17" + bytes(23)}, "holds an array of shape [2, 3] and dtype float32 whose data are 23 bytes"),
        ({"data": b"C\x19" + bytes(25)}, "holds an array of shape [2, 3] and dtype float32 whose data are 25 bytes"),
        ({"data": b"]"}, "holds an array whose data are a list"),
        ({"data": b"N"}, "holds an array whose data are a NoneType"),
        ({"shape": b"J\xff\xff\xff\xffJ\xfa\xff\xff\xff\x86"}, "holds an array whose shape is none"),
        ({"shape": b"K\x06"}, "holds an array whose shape is none"),
        ({"shape": b"\x88K\x06\x86"}, "holds an array whose shape is none"),
        ({"shape": b"(" + b"K\x01" * 65 + b"t"}, "holds an array whose shape is none"),
        (
            {"shape": b"(" + b"\x8a\x08" + b"\xff" * 7 + b"\x7fK\x02t"},
            "holds an array of shape [9223372036854775807, 2]",
        ),
        ({"shape": b"(K\x00" + (b"\x8a\x08" + b"\xff" * 7 + b"\x7f") * 2 + b"t", "data": b"C\x00"}, "is truncated, or"),
        ({"dtype_state": b"X\x01\x00\x00\x00<K\x01NN"}, "holds an array of a structured numpy.dtype"),
        ({"dtype_state": b"X\x01\x00\x00\x00<NK\x01N"}, "holds an array of a structured numpy.dtype"),
        ({"dtype_state": b"X\x01\x00\x00\x00<NN}"}, "holds an array of a structured numpy.dtype"),
        ({"dtype_state": b"X\x02\x00\x00\x00O,NNN"}, "holds an array of a structured numpy.dtype"),
        ({"dtype": b"K\x04"}, "holds an array of numpy.dtype int"),
        ({"dtype": b"X\x05\x00\x00\x00f4,O\n"}, "holds an array of numpy.dtype f4,O: only plain"),
    ],
)
def test_arrays_that_contradict_themselves_are_refused(tmp_path, parts, said):
    assert refused(tmp_path, array_pickle(**parts)).startswith(said)


def test_buffers_that_contradict_themselves_are_refused(tmp_path):
    data = pickle.dumps(np.zeros((2, 3)), 5)
    assert refused(tmp_path, data.replace(b"\x8c\x01C", b"\x8c\x01Q")).startswith(
        "holds an array whose memory order is none"
    )
    assert "shape [2, 9]" in refused(tmp_path, data.replace(b"K\x02K\x03\x86", b"K\x02K\x09\x86"))


class Calls:
    """An object whose pickle calls a function; what it gives can be called in turn."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced

    def __call__(self) -> None:
        raise AssertionError


def touch(marker: str) -> str:
    return f"__import__('pathlib').Path({marker!r}).touch()"


ATTACKS: dict[str, Callable[[str], Any]] = {
    "posix.system": lambda marker: Calls(os.system, f"touch '{marker}'"),
    "builtins.eval": lambda marker: Calls(eval, touch(marker)),
    "builtins.exec": lambda marker: Calls(exec, touch(marker)),
    "subprocess.check_call": lambda marker: Calls(subprocess.check_call, ["touch", marker]),
    "numpy.testing._private.utils.runstring": lambda marker: Calls(runstring, touch(marker), {}),
    "builtins.getattr": lambda marker: Calls(Calls(getattr, Calls(Path, marker), "touch")),
    "functools.partial": lambda marker: Calls(functools.partial(eval, touch(marker))),
}
"""Pickles that create the file ``marker``; by a global that they need."""

PYTHON_2_MODULES = {"builtins": "__builtin__", "subprocess": "commands"}
"""Under whose names Python 3 pickles modules up to protocol 2."""

WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "alone": lambda attack: attack,
    "as a weight": lambda attack: {"model": {"w": np.ones(2), "v": attack}},
    "beside the weights": lambda attack: {"__author__": [attack], "model": {}},
    "as a key": lambda attack: {("a", attack): 1},
    "in an array": lambda attack: {"model": {"w": np.array([attack], dtype=object)}},
    "as an array's bytes": lambda attack: {"model": Calls(np._core.multiarray._reconstruct, np.ndarray, (0,), attack)},
    "as an attribute": lambda attack: with_attribute(collections.OrderedDict(), attack),
}


def with_attribute(holder: Any, value: Any) -> Any:
    holder.attribute = value
    return holder


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_and_does_not_happen(tmp_path, protocol, name):
    marker = tmp_path / "marker"
    data = pickle.dumps(ATTACKS[name](str(marker)), protocol)
    module, _, function = name.rpartition(".")
    named = f"{PYTHON_2_MODULES.get(module, module)}.{function}" if protocol < 3 else name
    said = f"refers to {named}: only plain containers, strings, numbers and numpy arrays of numbers are read"
    assert refused(tmp_path, data) == said
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists()  # the pickle does what the test believes


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_an_attack_is_found_anywhere(tmp_path, protocol, wrap):
    marker = tmp_path / "marker"
    data = pickle.dumps(wrap(ATTACKS["posix.system"](str(marker))), protocol)
    assert refused(tmp_path, data).startswith(("refers to posix.system: ", "holds an array of numpy.dtype O8: "))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"(S'touch marker'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'touch marker'\no.", "os.system"),
        (b"(lp1\nI1\na(dp2\nS'm'\nc__builtin__\neval\n(S'open(\"marker\", \"w\")'\ntRsa.", "__builtin__.eval"),
        (b"ccopy_reg\n_reconstructor\n(c__builtin__\nobject\nc__builtin__\nobject\nNtR.", "copy_reg._reconstructor"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93\x8c\x06marker\x85R.", "numpy.ndarray.tofile"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0fdtype.__class__\x93.", "numpy.dtype.__class__"),
        (b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.", "numpy.load"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x16OrderedDict.__reduce__\x93.", "collections.OrderedDict.__reduce__"),
        (b"\x80\x04\x8c\x15numpy.core.multiarray\x8c\x0c_reconstruct\x93\x8c\x00\x8c\x07_codecs\x93.", "._codecs"),
        (b"cpsalm.restricted_pickle\nload_restricted\n.", "psalm.restricted_pickle.load_restricted"),
        (b"c_codecs\ndecode\n.", "_codecs.decode"),
        (b"cos\x1b[31m\nsys\x07tem\n.", "os?[31m.sys?tem"),
        (b"c" + b"a" * 9999 + b"\nb\n.", "a" * 100),
    ],
)
def test_every_way_to_name_another_global_is_refused(tmp_path, monkeypatch, data, name):
    monkeypatch.chdir(tmp_path)
    assert refused(tmp_path, data).startswith(f"refers to {name}: only plain")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pkl"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"c_codecs\nencode\n(S'uryyb'\nS'rot13'\ntR.", "calls _codecs.encode for something else than bytes"),
        (b"c_codecs\nencode\n(K\x01S'latin1'\ntR.", "calls _codecs.encode for something else than bytes"),
        (b"cnumpy\nndarray\n(K\x01tR.", "calls numpy.ndarray"),
        (b"c__builtin__\nbytes\n(J\xff\xff\xff\x7ftR.", "is truncated, or not a pickle of plain values"),
        (b"cnumpy.core.numeric\n_frombuffer\n(C\x01aS'f4'\n)S'C'\ntR.", "holds an array without a numpy.dtype"),
        (b"\x80\x02cnumpy\ndtype\n(X\x02\x00\x00\x00f4t\x81.", "is truncated, or not a pickle of plain values (NEWOBJ"),
        (b"\x80\x02cnumpy\ndtype\n(X\x02\x00\x00\x00f4tRK\x01a.", "is truncated, or not a pickle of plain values"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "refers to the persistent id 'a'"),
        (b"\x80\x02]Q.", "refers to the persistent id of type list"),
        (b"\x80\x05\x97.", "is truncated, or not a pickle of plain values"),
    ],
)
def test_what_is_allowed_does_nothing_else(tmp_path, data, said):
    assert refused(tmp_path, data).startswith(said)


@pytest.mark.parametrize("name", [f"{module}\n{name}" for module, name in ARRAY_GLOBALS])
@pytest.mark.parametrize(
    "state",
    [b"}X\x04\x00\x00\x00evilK\x01s", b"N}X\x08\x00\x00\x00__call__K\x01s\x86", b"(K\x01K\x02K\x03K\x04K\x05t", b"N"],
)
def test_a_global_itself_is_given_no_state(tmp_path, name, state):
    """BUILD would set attributes of the class or function, in this process and for good."""
    said = f"sets attributes of {name.replace(chr(10), '.')}: only plain"
    before = {each: dict(vars(each)) for each in vars(restricted_pickle).values() if isinstance(each, type)}
    assert refused(tmp_path, b"\x80\x02c" + name.encode() + b"\n" + state + b"b.").startswith(said)
    assert {each: dict(vars(each)) for each in before} == before


@pytest.mark.parametrize("state", [b"}X\x05\x00\x00\x00arrayK\x01s", b"N}X\x05\x00\x00\x00arrayK\x01s\x86"])
def test_an_array_is_given_no_state_but_an_arrays(tmp_path, state):
    assert "is truncated, or not" in refused(
        tmp_path, b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n)R" + state + b"b."
    )


def test_an_arrays_bytes_are_not_appended_to(tmp_path):
    data = pickle.dumps([np.zeros(1)], 5)
    unframed, get_bytes, append = data[:2] + data[11:-1], b"h\x04", b"(K\x01e"
    assert "is truncated, or not a pickle of plain values (Existing exports of data" in refused(
        tmp_path, unframed + get_bytes + append + b"."
    )


def test_nothing_of_numpy_is_handed_out(tmp_path):
    for module, name in ARRAY_GLOBALS:
        handed = load(tmp_path, f"c{module}\n{name}\n.".encode())
        assert type(handed).__module__ == "psalm.restricted_pickle"
        assert not isinstance(handed, type)


def test_several_pickles_in_one_file_and_their_persistent_ids(tmp_path):
    file = io.BytesIO(b"\x80\x02X\x01\x00\x00\x00aQ.\x80\x02K\x07.")
    assert read_restricted(file, tmp_path, {}, "numbers", lambda pid: [pid]) == ["a"]
    assert read_restricted(file, tmp_path, {}, "numbers") == 7


def test_the_caller_says_what_is_allowed(tmp_path):
    path = write(tmp_path / "model.pkl", pickle.dumps(np.ones(2), 4))
    with pytest.raises(
        RestrictedPickleError, match=r"refers to numpy\._core\.multiarray\._reconstruct: only plain conta"
    ):
        load_restricted(path)
    assert isinstance(load_restricted(path, ARRAY_GLOBALS, ARRAY_VALUES), PickledArray)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(RestrictedPickleError, match=r"model\.pkl is missing: a pickle is expected there"):
        load_restricted(tmp_path / "model.pkl")
    with pytest.raises(RestrictedPickleError, match=r"cannot be read \(Is a directory\): a pickle is expected there"):
        load_restricted(tmp_path)
