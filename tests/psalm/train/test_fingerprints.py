"""A changed byte or name changes a fingerprint of weights; what has not changed is hashed once."""

import hashlib
import json
import logging
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from psalm.train import fingerprints
from psalm.train.arguments import argument_fields
from psalm.train.fingerprints import CACHED_FROM, input_fingerprints, processor_kind, weights_fingerprint

LARGE = b"w" * CACHED_FROM


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fingerprints._warn_once_of.cache_clear()
    yield tmp_path / "cache" / "psalm-deformable" / "fingerprints"
    fingerprints._warn_once_of.cache_clear()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were hashed, one after another."""
    names: list[str] = []

    def digest(file: Any, algorithm: Any) -> Any:
        names.append(Path(file.name).name)
        return hashlib.file_digest(file, algorithm)

    monkeypatch.setattr(fingerprints, "file_digest", digest)
    return names


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass."""

    def pass_by(seconds: float) -> None:
        now = time.time_ns() + int(seconds * 1e9)
        monkeypatch.setattr(fingerprints.time, "time_ns", lambda: now)

    return pass_by


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_file_is_what_sha256sum_says(tmp_path):
    path = write(tmp_path / "swin.pkl", LARGE + b"end")
    printed = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert weights_fingerprint(path) == printed[:32] == weights_fingerprint(str(path))


def test_a_folder_is_what_sha256sum_says_of_its_listing(tmp_path):
    for name in ("model-2.safetensors", "Model-1.safetensors", "config.json", ".hidden", "below/model.bin"):
        write(tmp_path / "phi" / name, name.encode())
    command = "LC_ALL=C sha256sum * 2>/dev/null | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=tmp_path / "phi", capture_output=True, text=True).stdout
    assert weights_fingerprint(tmp_path / "phi") == printed[:32]


def test_place_and_time_do_not_matter(tmp_path):
    for folder in ("here", "there/deeper"):
        write(tmp_path / folder / "model.safetensors", LARGE)
    os.utime(tmp_path / "here" / "model.safetensors", (1, 1))
    assert weights_fingerprint(tmp_path / "here") == weights_fingerprint(tmp_path / "there/deeper")
    os.rename(tmp_path / "here/model.safetensors", tmp_path / "other_name")
    assert weights_fingerprint(tmp_path / "other_name") == weights_fingerprint(
        tmp_path / "there/deeper/model.safetensors"
    )


@pytest.mark.parametrize("at", [0, 3 * 2**20, 6 * 2**20 - 1])
def test_every_byte_counts(tmp_path, at):
    content = bytearray(6 * 2**20)
    before = weights_fingerprint(write(tmp_path / "a.bin", content))
    content[at] = 1
    assert weights_fingerprint(write(tmp_path / "b.bin", content)) != before


def test_names_in_a_folder_count(tmp_path):
    path = write(tmp_path / "phi" / "a.safetensors", b"1")
    before = weights_fingerprint(tmp_path / "phi")
    path.rename(path.with_name("b.safetensors"))
    assert weights_fingerprint(tmp_path / "phi") != before


def test_links_as_in_the_hubs_cache_count_as_their_files(tmp_path):
    write(tmp_path / "blobs" / "5f3a", LARGE)
    write(tmp_path / "plain" / "model.safetensors", LARGE)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/5f3a")
    assert weights_fingerprint(tmp_path / "snapshot") == weights_fingerprint(tmp_path / "plain")


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"no\.pkl is missing: a file or folder of weights is expected"):
        weights_fingerprint(tmp_path / "no.pkl")


def test_a_second_time_nothing_is_hashed(tmp_path, hashed, later):
    write(tmp_path / "phi" / "a.safetensors", LARGE)
    write(tmp_path / "phi" / "b.safetensors", LARGE + b"b")
    later(3)
    found = weights_fingerprint(tmp_path / "phi")
    assert hashed == ["a.safetensors", "b.safetensors"]
    assert weights_fingerprint(tmp_path / "phi") == found
    assert len(hashed) == 2


def test_small_files_are_not_kept(tmp_path, hashed, later, cache):
    path = write(tmp_path / "config.json", LARGE[1:])
    later(3)
    assert weights_fingerprint(path) == weights_fingerprint(path)
    assert len(hashed) == 2
    assert not cache.exists()


def test_a_file_that_has_just_been_written_is_not_kept(tmp_path, hashed, later, cache):
    path = write(tmp_path / "a.bin", LARGE)
    later(1)
    weights_fingerprint(path)
    assert not cache.exists()
    os.utime(path, (1, 1))  # an old time stamp, as unpacking sets, does not make it old
    later(1)
    weights_fingerprint(path)
    assert not cache.exists()


def test_a_file_that_changes_while_it_is_hashed_is_not_kept(tmp_path, monkeypatch, later, cache):
    path = write(tmp_path / "a.bin", LARGE)

    def digest(file: Any, algorithm: Any) -> Any:
        found = hashlib.file_digest(file, algorithm)
        path.write_bytes(LARGE + b"more")
        return found

    monkeypatch.setattr(fingerprints, "file_digest", digest)
    later(3)
    weights_fingerprint(path)
    assert not cache.exists()


def test_another_file_with_the_same_size_and_time_stamp_is_hashed(tmp_path, hashed, later):
    """Archives whose members are all of 1970, say."""
    path = write(tmp_path / "a.bin", LARGE)
    os.utime(path, (1, 1))
    later(3)
    before = weights_fingerprint(path)
    other = write(tmp_path / "b.bin", LARGE[1:] + b"x")
    os.utime(other, (1, 1))
    os.replace(other, path)
    assert weights_fingerprint(path) != before
    assert len(hashed) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry | {"sha256": "0" * 63},
        lambda entry: entry | {"state": entry["state"] | {"size": 1}},
        lambda entry: [entry],
        lambda entry: {},
    ],
)
def test_an_entry_that_is_not_of_the_file_is_replaced(tmp_path, hashed, later, cache, change):
    path = write(tmp_path / "a.bin", LARGE)
    later(3)
    found = weights_fingerprint(path)
    (entry,) = cache.iterdir()
    right = entry.read_text()
    entry.write_text(json.dumps(change(json.loads(right))))
    assert weights_fingerprint(path) == found
    assert len(hashed) == 2
    assert entry.read_text() == right


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_cache_that_cannot_be_written_is_said_once(tmp_path, hashed, later, caplog):
    write(tmp_path / "cache", b"a file where the folder should be")
    paths = [write(tmp_path / name, LARGE) for name in ("a.bin", "b.bin")]
    later(3)
    assert weights_fingerprint(paths[0]) == weights_fingerprint(paths[1]) == hashlib.sha256(LARGE).hexdigest()[:32]
    assert hashed == ["a.bin", "b.bin"]
    assert warnings_of(caplog) == [
        "hashes of weights are not kept, and computed every time (Not a directory): "
        "set XDG_CACHE_HOME to a folder of yours"
    ]


def test_a_torn_entry_is_said_and_replaced(tmp_path, hashed, later, cache, caplog):
    path = write(tmp_path / "a.bin", LARGE)
    later(3)
    found = weights_fingerprint(path)
    (entry,) = cache.iterdir()
    entry.write_text(entry.read_text()[:-9])
    assert weights_fingerprint(path) == weights_fingerprint(path) == found
    assert len(hashed) == 2
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("base", [None, "", "relative/cache"])
def test_without_a_cache_folder_of_its_own_it_is_below_home(tmp_path, monkeypatch, later, base):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    if base is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", base)
    path = write(tmp_path / "a.bin", LARGE)
    later(3)
    weights_fingerprint(path)
    assert [each.suffix for each in (tmp_path / "home/.cache/psalm-deformable/fingerprints").iterdir()] == [".json"]


def test_processes_share_the_cache(tmp_path, cache, later):
    """Many at once, over the same files: every entry is whole, no draft is left."""
    files = [write(tmp_path / f"{number}.bin", LARGE + bytes([number])) for number in range(8)]
    later(3)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(weights_fingerprint, files * 4, chunksize=1)
    assert found == [hashlib.sha256(path.read_bytes()).hexdigest()[:32] for path in files] * 4
    assert sorted(each.suffix for each in cache.iterdir()) == [".json"] * 8
    assert {json.loads(each.read_text())["sha256"][:32] for each in cache.iterdir()} == set(found)


def test_inputs_of_a_run(tmp_path, small_data, small_tower):
    """A tower's folder, the built-in language model and a projector's file, each under its name."""
    projector = write(tmp_path / "mm_projector.bin", b"projector")
    settings = {name: field.default for name, field in argument_fields().items()}
    settings |= {"panoptic_json_path": str(small_data), "vision_tower": str(small_tower)}
    found = input_fingerprints(settings | {"pretrain_mm_mlp_adapter": str(projector)})
    assert found["weights_fingerprint_projector"] == hashlib.sha256(b"projector").hexdigest()[:32]
    assert found["weights_fingerprint_vision_tower"] == weights_fingerprint(small_tower)
    assert found.keys() - input_fingerprints(settings).keys() == {"weights_fingerprint_projector"}


def test_the_tower_of_a_run_from_a_whole_checkpoint_is_the_checkpoints(tmp_path, small_data):
    """The one that settings name is not read, and need not be there."""
    (tmp_path / "config.json").write_text('{"model_type": "psalm"}')
    settings = {name: field.default for name, field in argument_fields().items()}
    settings |= {"panoptic_json_path": str(small_data), "vision_tower": str(tmp_path / "missing.pkl")}
    found = input_fingerprints(settings | {"model_name_or_path": str(tmp_path)})
    assert found["weights_fingerprint_language_model"] == weights_fingerprint(tmp_path)
    assert "weights_fingerprint_vision_tower" not in found


def test_a_processor_is_its_model_and_the_instructions_that_torch_uses(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    first = "processor\t: 0\nmodel name\t: AMD EPYC\ncpu family\t: 25\nmodel\t\t: 17\n"
    cpuinfo.write_text(first + "\n" + first.replace("17", "1"))
    monkeypatch.setattr(fingerprints.torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert processor_kind(cpuinfo) == "AMD EPYC, family 25 model 17, AVX2"
    monkeypatch.setattr(fingerprints.platform, "processor", lambda: "")
    monkeypatch.setattr(fingerprints.platform, "machine", lambda: "arm64")
    assert processor_kind(tmp_path / "none") == "arm64, AVX2", "a system without that file"
