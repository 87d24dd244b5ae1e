"""Weights come out of every format as they went in, a tensor at a time; anything else in a file is refused, unrun."""

import argparse
import collections
import gc
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from psalm.model import weight_files
from psalm.model.weight_files import open_weights, read_json

WEIGHTS = {
    "backbone.norm.weight": torch.linspace(-1, 1, 24).reshape(4, 6),
    "head.bias": torch.arange(5, dtype=torch.int64),
    "head.scale": torch.tensor(2.5, dtype=torch.float16),
    "head.none": torch.zeros(0, 3),
}


def save_zip(weights: Any, path: Path) -> None:
    torch.save(weights, path)


def save_legacy(weights: Any, path: Path) -> None:
    torch.save(weights, path, _use_new_zipfile_serialization=False)


def save_compressed(weights: Any, path: Path) -> None:
    """As an archiver leaves it."""
    torch.save(weights, path.with_suffix(".tmp"))
    with (
        zipfile.ZipFile(path.with_suffix(".tmp")) as stored,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for record in stored.infolist():
            packed.writestr(record.filename, stored.read(record))


def save_pickle(weights: Mapping[str, Tensor], path: Path) -> None:
    """As Detectron2's model zoo has them."""
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody", "matching_heuristics": True}))


def save_shards(weights: Mapping[str, Tensor], folder: Path) -> None:
    folder.mkdir()
    place = {}
    for number, (name, tensor) in enumerate(weights.items()):
        place[name] = f"model-{number}.safetensors"
        save_file({name: tensor}, folder / place[name])
    write_index(folder / "model.safetensors.index.json", place)


def write_index(path: Path, places: Any) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


FORMATS: dict[str, tuple[str, Callable[[dict[str, Tensor], Path], Any]]] = {
    "safetensors": ("model.safetensors", save_file),
    "torch": ("model.bin", save_zip),
    "torch, compressed": ("model.pt", save_compressed),
    "torch, legacy": ("model.pth", save_legacy),
    "Detectron2": ("model.pkl", save_pickle),
    "shards": ("folder", save_shards),
}
each_format = pytest.mark.parametrize(("name", "save"), FORMATS.values(), ids=FORMATS)


def refused(path: Path) -> str:
    """The message, without the path that it begins with."""
    with pytest.raises(ValueError, match=rf"\A{re.escape(str(path))}") as caught:
        open_weights(path)
    message = str(caught.value)
    assert message.isprintable()
    return message.removeprefix(f"{path}").lstrip()


def assert_same(read: Mapping[str, Tensor], written: Mapping[str, Tensor]) -> None:
    assert read.keys() == written.keys()
    for name, tensor in read.items():
        assert not tensor.requires_grad
        assert tensor.dtype == written[name].dtype
        assert torch.equal(tensor, written[name]), name


@each_format
def test_weights_come_back(tmp_path, name, save):
    save(WEIGHTS, tmp_path / name)
    weights = open_weights(tmp_path / name)
    assert_same(weights, WEIGHTS)
    assert weights.shapes() == {name: tuple(tensor.shape) for name, tensor in WEIGHTS.items()}
    assert weights.source == tmp_path / ("folder/model.safetensors.index.json" if name == "folder" else name)


@each_format
def test_a_tensor_that_was_read_is_the_callers_own(tmp_path, name, save):
    save(WEIGHTS, tmp_path / name)
    weights = open_weights(tmp_path / name)
    weights["head.bias"].zero_()
    assert weights["head.bias"].tolist() == [0, 1, 2, 3, 4]
    assert open_weights(tmp_path / name)["head.bias"].tolist() == [0, 1, 2, 3, 4]


@each_format
def test_a_name_that_is_not_there(tmp_path, name, save):
    save(WEIGHTS, tmp_path / name)
    weights = open_weights(tmp_path / name)
    assert "other" not in weights
    assert weights.get("other") is None
    with pytest.raises(KeyError):
        weights["other"]


@pytest.mark.parametrize(("name", "save"), [FORMATS["safetensors"], FORMATS["torch"]], ids=["safetensors", "torch"])
def test_one_tensor_at_a_time_is_in_memory(tmp_path, monkeypatch, name, save):
    count, size = 24, 2 * 2**20
    monkeypatch.setattr(weight_files, "MAPPED", 2 * size)
    save({str(number): torch.full((size // 4,), float(number)) for number in range(count)}, tmp_path / name)
    target = {str(number): torch.ones(size // 4) for number in range(count)}
    process = psutil.Process()
    gc.collect()
    before = peak = process.memory_info().rss
    weights = open_weights(tmp_path / name)
    for each in weights:
        target[each].copy_(weights[each])
        peak = max(peak, process.memory_info().rss)
    assert [int(tensor[0]) for tensor in target.values()] == list(range(count))
    assert peak - before < 6 * size < count * size / 2


def test_shapes_are_known_without_the_numbers(tmp_path, monkeypatch):
    for name, save in (FORMATS["safetensors"], FORMATS["torch"]):
        save({"large": torch.zeros(16, 2**19)}, tmp_path / name)
        gc.collect()
        before = psutil.Process().memory_info().rss
        assert open_weights(tmp_path / name).shapes() == {"large": (16, 2**19)}
        assert psutil.Process().memory_info().rss - before < 8 * 2**20


@pytest.mark.parametrize("key", ["model", "state_dict"])
@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_a_training_checkpoint_is_unwrapped(tmp_path, key, save):
    """With an optimizer's state, a scheduler's counter, sizes and types beside the weights."""
    checkpoint = {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
        "milestones": collections.Counter([3, 3]),
        "shape": torch.Size([2]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        key: nn.ModuleDict({"a": nn.Linear(2, 3)}).state_dict(),
    }
    save(checkpoint, tmp_path / "last.pth")
    assert_same(open_weights(tmp_path / "last.pth"), checkpoint[key])


def test_parameters_views_and_half_precision(tmp_path):
    table = torch.arange(12.0).reshape(3, 4)
    written = {
        "parameter": nn.Parameter(table.clone()),
        "view": table[1:, ::2],
        "transposed": table.t(),
        "expanded": torch.ones(1).expand(3),
        "bfloat16": table.bfloat16(),
        "float8": table.to(torch.float8_e4m3fn),
    }
    torch.save(written, tmp_path / "model.bin")
    assert_same(open_weights(tmp_path / "model.bin"), {name: tensor.detach() for name, tensor in written.items()})


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_arrays_of_any_order_and_scalars(tmp_path, protocol):
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {"C": table, "F": np.asfortranarray(table), "big": table.astype(">f4"), "scalar": np.float64(0.5)}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol))
    expected = {name: torch.from_numpy(table) for name in ("C", "F", "big")} | {"scalar": torch.tensor(0.5).double()}
    assert_same(open_weights(tmp_path / "model.pkl"), expected)


def test_pickled_weights_need_no_wrapper(tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"a": np.ones(2, np.float32)}))
    assert_same(open_weights(tmp_path / "model.pkl"), {"a": torch.ones(2)})


@pytest.mark.golden("mask2former_tiny")
def test_detectron2_golden(golden):
    path = golden.path.with_suffix(".pkl")
    expected = pickle.loads(path.read_bytes())["model"]
    assert_same(open_weights(path), {name: torch.from_numpy(array) for name, array in expected.items()})


def test_a_folder_prefers_safetensors(tmp_path):
    save_file({"which": torch.ones(1)}, tmp_path / "a.safetensors")
    save_file({"which": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"which": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    torch.save({"which": torch.ones(4)}, tmp_path / "a.bin")
    torch.save({"projector": torch.ones(9)}, tmp_path / "mm_projector.bin")
    write_index(tmp_path / "model.safetensors.index.json", {"which": "a.safetensors"})
    write_index(tmp_path / "pytorch_model.bin.index.json", {"which": "a.bin"})
    for size, file, source in [
        (2, "model.safetensors", "model.safetensors"),
        (1, "a.safetensors", "model.safetensors.index.json"),
        (3, "pytorch_model.bin", "pytorch_model.bin"),
        (4, "a.bin", "pytorch_model.bin.index.json"),
    ]:
        weights = open_weights(tmp_path)
        assert weights.shapes() == {"which": (size,)}
        assert weights["which"].shape == (size,)
        assert weights.source == tmp_path / source
        (tmp_path / source).unlink()
        (tmp_path / file).unlink(missing_ok=True)
    assert refused(tmp_path) == (
        "has no weights: model.safetensors, model.safetensors.index.json, pytorch_model.bin or "
        "pytorch_model.bin.index.json is needed"
    )


def test_shards_that_are_links_as_in_the_hubs_cache(tmp_path):
    (tmp_path / "blobs").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "blobs" / "5f3a")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.safetensors").symlink_to("../blobs/5f3a")
    write_index(tmp_path / "snapshot" / "model.safetensors.index.json", {"a": "a.safetensors"})
    assert_same(open_weights(tmp_path / "snapshot"), {"a": torch.ones(1)})


def test_weights_that_an_index_forgets_are_weights(tmp_path):
    save_file({"a": torch.ones(1), "b": torch.ones(2)}, tmp_path / "1.safetensors")
    write_index(tmp_path / "model.safetensors.index.json", {"a": "1.safetensors"})
    assert open_weights(tmp_path).shapes() == {"a": (1,), "b": (2,)}


INDEX = "/model.safetensors.index.json "


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({"a": "1.safetensors", "b": "1.safetensors"}, INDEX + "says that 'b' is in 1.safetensors, but it is not"),
        ({"a": "3.safetensors"}, "/3.safetensors is missing: a file of weights (.safetensors, .bin, .pt, .pth, .pkl)"),
        ({"a": "../1.safetensors"}, INDEX + "must name .safetensors files beside it, but names '../1.safetensors'"),
        ({"a": "/etc/1.safetensors"}, INDEX + "must name .safetensors files beside it, but names '/etc/1.safetensors'"),
        ({"a": "below/1.safetensors"}, INDEX + "must name .safetensors files beside it, but names 'below/1.safetens"),
        ({"a": ".."}, INDEX + "must name .safetensors files beside it, but names '..'"),
        ({"a": ""}, INDEX + "must name .safetensors files beside it, but names ''"),
        ({"a": "evil.bin"}, INDEX + "must name .safetensors files beside it, but names 'evil.bin'"),
        ({"a": "folder.safetensors"}, "/folder.safetensors is missing: a file of weights"),
        (
            {"a": "1.safetensors", "c": "2.safetensors"},
            INDEX + "names 2.safetensors, which holds a, but so does another",
        ),
        ({"a": 1}, INDEX + "must say in weight_map which file each weight is in, but does not"),
        (["a"], INDEX + "must say in weight_map which file each weight is in, but does not"),
        (None, INDEX + "must say in weight_map which file each weight is in, but does not"),
    ],
)
def test_indices_that_are_wrong(tmp_path, places, said):
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    save_file({"a": torch.ones(1), "c": torch.ones(1)}, tmp_path / "2.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    write_index(tmp_path / "model.safetensors.index.json", places)
    assert refused(tmp_path).startswith(said)


def test_an_index_that_is_torn(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {')
    assert refused(tmp_path).startswith("/model.safetensors.index.json is not JSON: ")


def test_missing_files_and_other_formats(tmp_path):
    assert refused(tmp_path / "no.pkl") == (
        "is missing: a file of weights (.safetensors, .bin, .pt, .pth, .pkl) or a folder is expected"
    )
    (tmp_path / "model.ckpt").touch()
    assert refused(tmp_path / "model.ckpt") == "is of no format that is read: .safetensors, .bin, .pt, .pth, .pkl"


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pkl"])
def test_files_that_hold_no_weights(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    path.touch()
    assert refused(path) == "is empty: it was not written, or not fetched, to its end"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 428\n")
    assert refused(path) == "is a pointer of git LFS: fetch the file itself, with git lfs pull"
    path.write_text("<!DOCTYPE html><html>")
    assert re.match("is (damaged|truncated), or not ", refused(path))
    {"safetensors": save_file, "bin": torch.save, "pkl": save_pickle}[suffix]({}, path)
    assert refused(path) == "holds no weights"


@pytest.mark.parametrize(
    ("save", "suffix", "said"),
    [
        (save_file, "bin", "is a safetensors file under another name: name it .safetensors"),
        (save_file, "pkl", "is a safetensors file under another name: name it .safetensors"),
        (save_zip, "safetensors", "is a zip file, as torch.save writes them, under another name: name it .bin"),
        (save_zip, "pkl", "is a zip file, as torch.save writes them, under another name: name it .bin"),
        (
            save_pickle,
            "safetensors",
            "is a pickle under another name: name it .pkl if it is of numpy, .bin if it is of",
        ),
        (
            save_pickle,
            "bin",
            "refers to numpy._core.multiarray._reconstruct: only plain containers, strings, numbers and",
        ),
        (save_legacy, "pkl", "must hold weights by name, but holds a int"),
    ],
)
def test_another_format_under_a_name(tmp_path, save, suffix, said):
    save(WEIGHTS, tmp_path / "right")
    (tmp_path / "right").rename(tmp_path / f"model.{suffix}")
    assert refused(tmp_path / f"model.{suffix}").startswith(said)


@each_format
def test_truncated_files(tmp_path, name, save):
    if name == "folder":
        name = "folder/model-0.safetensors"
        save(WEIGHTS, tmp_path / "folder")
    else:
        save(WEIGHTS, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for length in (*range(1, 40), len(data) // 2, len(data) - 4):
        (tmp_path / name).write_bytes(data[:length])
        assert re.match(r"is (damaged|truncated), or not ", refused(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.ones(2)], "must hold weights by name, but holds a list"),
        (torch.ones(2), "must hold weights by name, but holds a Tensor"),
        ({"a": torch.ones(2), "step": 3}, ": step is a int, but only tensors are weights"),
        ({"model": {"a": {"b": torch.ones(2)}}}, ": a is a dict, but only tensors are weights"),
        ({1: torch.ones(2)}, "must hold weights by name, but holds one whose name is 1"),
        ({"a\nb": torch.ones(2)}, r"must hold weights by name, but holds one whose name is 'a\nb'"),
        ({"a": torch.ones(2).to_sparse()}, "refers to torch._utils._rebuild_sparse_tensor: only plain containers"),
        ({"a": torch.ones(2, device="meta")}, "refers to torch._utils._rebuild_meta_tensor_no_storage: only plain"),
        ({"a": torch.ones(2), "args": argparse.Namespace()}, "refers to argparse.Namespace: only plain containers"),
        (
            nn.Linear(1, 1),
            "refers to torch.nn.modules.linear.Linear: only plain containers, strings, numbers and dense",
        ),
    ],
)
@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_files_of_torch_that_hold_something_else(tmp_path, save, content, said):
    save(content, tmp_path / "model.bin")
    assert refused(tmp_path / "model.bin").startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([np.ones(2)], "must hold weights by name, but holds a list"),
        ({"model": {"a": 3}}, ": a is a int, but only arrays are weights"),
        ({"model": {"a": None}}, ": a is a NoneType, but only arrays are weights"),
        ({"model": {b"a": np.ones(2)}}, "must hold weights by name, but holds one whose name is b'a'"),
        ({"model": {"a": np.array([None])}}, "holds an array of numpy.dtype O8: only plain containers"),
        ({"model": {"a": torch.ones(2)}}, "refers to torch._utils._rebuild_tensor_v2: only plain containers, strings"),
    ],
)
def test_pickles_that_hold_something_else(tmp_path, content, said):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content))
    assert refused(tmp_path / "model.pkl").startswith(said)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}},
        {"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"a": {"dtype": "object", "shape": [2], "data_offsets": [0, 8]}},
        {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        [1],
    ],
)
def test_a_lying_header(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert refused(tmp_path / "model.safetensors").startswith(
        "is damaged, or not of the format that its name says (Error"
    )


@pytest.mark.parametrize("length", [2**63, 2**40, 0])
def test_a_lying_length_of_a_header(tmp_path, length):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" + bytes(8))
    assert refused(tmp_path / "model.safetensors").startswith(
        "is damaged, or not of the format that its name says (Error"
    )


def test_a_lying_size_of_a_tensor(tmp_path):
    """A tensor that would reach beyond its storage, into what is not the file's."""
    torch.save({"a": torch.arange(4.0)}, tmp_path / "right.bin")
    with zipfile.ZipFile(tmp_path / "right.bin") as right, zipfile.ZipFile(tmp_path / "model.bin", "w") as lying:
        for record in right.infolist():
            lying.writestr(record.filename, right.read(record).replace(b"K\x04\x85", b"K\x40\x85"))
    assert refused(tmp_path / "model.bin").startswith(
        "is damaged, or not of the format that its name says (Trying to re"
    )


class Attack:
    """An object whose pickle creates a file."""

    def __init__(self, marker: Path) -> None:
        self.command = f"touch '{marker}'"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


CONTENTS: dict[str, Callable[[Attack], Any]] = {
    "alone": lambda attack: attack,
    "as a weight": lambda attack: {"a": torch.ones(2), "b": attack},
    "beside the weights": lambda attack: {"model": {"a": torch.ones(2)}, "optimizer": attack},
    "as a key": lambda attack: {attack: torch.ones(2)},
}


@pytest.mark.parametrize("make", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_an_attack_in_a_file_of_torch(tmp_path, make, protocol, zipped):
    marker, path = tmp_path / "marker", tmp_path / "model.bin"
    torch.save(make(Attack(marker)), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert refused(path) == "refers to posix.system: only plain containers, strings, numbers and dense tensors are read"
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_the_attack_would_succeed(tmp_path, zipped):
    torch.save(Attack(tmp_path / "marker"), tmp_path / "model.bin", _use_new_zipfile_serialization=zipped)
    torch.load(tmp_path / "model.bin", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("suffix", ["pkl", "bin", "pt", "pth"])
def test_an_attack_in_a_plain_pickle(tmp_path, protocol, suffix):
    marker, path = tmp_path / "marker", tmp_path / f"model.{suffix}"
    path.write_bytes(pickle.dumps({"model": {"w": Attack(marker)}}, protocol))
    assert refused(path).startswith("refers to posix.system: only plain containers, strings, numbers and ")
    assert not marker.exists()


def test_an_attack_in_a_shard(tmp_path):
    marker = tmp_path / "marker"
    torch.save({"a": torch.ones(1)}, tmp_path / "1.bin")
    torch.save({"b": Attack(marker)}, tmp_path / "2.bin")
    write_index(tmp_path / "pytorch_model.bin.index.json", {"a": "1.bin", "b": "2.bin"})
    assert refused(tmp_path).startswith("/2.bin refers to posix.system: only plain containers")
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["other/data.pkl", "model/data.pkl"])
def test_an_attack_in_a_second_pickle_of_a_zip_file(tmp_path, name):
    """Whichever of them a reader takes."""
    marker, path = tmp_path / "marker", tmp_path / "model.bin"
    torch.save({"a": torch.ones(1)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, pickle.dumps(Attack(marker)))
    assert refused(path).startswith("refers to posix.system: only plain containers")
    assert not marker.exists()


def test_an_attack_in_a_part_that_other_libraries_allow(tmp_path):
    """What they add to torch's list holds for the whole process, but not for files of weights."""
    marker, path = tmp_path / "marker", tmp_path / "model.bin"
    torch.save({"a": Path(marker)}, path)
    with torch.serialization.safe_globals([(Path, "pathlib.PosixPath"), (Path, "pathlib.Path")]):
        assert refused(path).startswith("refers to pathlib.PosixPath: only plain containers")


def test_json_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json must hold one JSON object, but holds a list"):
        read_json(tmp_path / "config.json")


def test_a_safetensors_file_may_begin_like_a_pickle(tmp_path: Path) -> None:
    """Its first byte is the lowest of the header's length."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(0x80)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.float32(3).tobytes())
    assert path.read_bytes()[0] == 0x80
    assert open_weights(path)["a"].tolist() == [3]
