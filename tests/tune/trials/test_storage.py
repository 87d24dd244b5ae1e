"""Trials below a URI: what arrives, in which order, and what is left there wherever an upload is cut off."""

import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow import PythonFile
from pyarrow.fs import FSSpecHandler, PyFileSystem

from psalm.train.checkpoint_files import drop_checkpoint, drop_checkpoints, fault_of, write_manifest
from psalm.train.records import FILE_NAME, RunRecords, read_records
from tune.errors import SearchError
from tune.trials.storage import TrialStorage, is_uri, open_storage

NUMBER = 7

MOTO = """
import sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

application = DomainDispatcherApplication(create_backend_app)

def as_s3_answers(environ, start_response):
    started = []
    body = b"".join(application(environ, lambda status, headers, error=None: started.append((status, headers))))
    # pyarrow refuses the name that moto gives to this element.
    fixed = body.replace(b"CompleteMultipartUploadResponse", b"CompleteMultipartUploadResult")
    (status, headers), = started
    if fixed != body:
        headers = [(k, v if k.lower() != "content-length" else str(len(fixed))) for k, v in headers]
    start_response(status, headers)
    return [fixed]

run_simple("127.0.0.1", int(sys.argv[1]), as_s3_answers, threaded=True)
"""


class Trial:
    """A trial's folder, as a run writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def evaluate(self, step: int) -> None:
        with RunRecords(self.folder) as records:
            records.metrics(step, {"eval_pq": step / 10})
            (self.folder / "artifacts").mkdir(exist_ok=True)
            for name in ("curves.png", f"step_{step}.png"):  # one is replaced, one is new
                path = self.folder / "artifacts" / name
                path.write_bytes(f"picture of step {step}".encode())
                records.artifact(path)

    def save(self, step: int, keep: int = 1) -> None:
        self._write(f"checkpoint-{step}", step)
        for older in sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[:-keep]:
            drop_checkpoint(older)

    def complete(self, step: int) -> None:
        self._write("model", step)
        with RunRecords(self.folder) as records:
            records.event("completed", step=step)
        drop_checkpoints(self.folder)

    def _write(self, name: str, step: int) -> None:
        names = ["model.safetensors", "config.json", f"global_step{step}/rank_0.pt"]
        for each in names:
            path = self.folder / name / each
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{each} of step {step}".encode() * 100)
        write_manifest(self.folder / name, names)


def content_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder but the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "records.lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def steps_in(folder: Path) -> list[int]:
    return [record["step"] for record in read_records(folder) if record["kind"] == "metrics"]


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path / "worker" / "0007")


# ---- the same on every file system


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Options of a URI for a server of S3's protocol."""
    pythons = (sys.executable, str(Path(sys.base_prefix) / "bin" / "python3"))
    pythons = [
        each
        for each in pythons
        if not subprocess.run([each, "-c", "import moto.server"], capture_output=True).returncode
    ]
    if not pythons:
        pytest.skip("moto's S3 server is installed neither here nor where this environment was made from")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([pythons[0], "-c", MOTO, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        options = f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
        filesystem, _ = pyarrow.fs.FileSystem.from_uri(f"s3://key:secret@b?{options}&allow_bucket_creation=true")
        filesystem.create_dir("bucket")
        yield options
    finally:
        server.kill()
        server.wait()


@pytest.fixture(params=["file", "memory", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = tmp_path.name
    if request.param == "s3":
        return f"s3://key:secret@bucket/{name}?{request.getfixturevalue('s3')}"
    return f"memory://{name}/searches" if request.param == "memory" else (tmp_path / "remote").as_uri()


def test_a_trial_moves_to_another_machine_and_back(uri: str, trial: Trial, tmp_path: Path) -> None:
    first = open_storage(uri, "tiny")
    first.check(new=True)
    assert not first.pull(NUMBER, trial.folder)  # a new one
    trial.evaluate(50)
    trial.save(50)
    first.push(NUMBER, trial.folder)

    second = pickle.loads(pickle.dumps(first))
    other = Trial(tmp_path / "other" / "0007")
    assert second.pull(NUMBER, other.folder)
    assert content_of(other.folder) == {k: v for k, v in content_of(trial.folder).items() if "artifacts" not in k}
    other.evaluate(100)
    other.save(100)
    second.push(NUMBER, other.folder)

    assert open_storage(uri, "tiny").pull(NUMBER, trial.folder)
    assert {name.split("/")[0] for name in content_of(trial.folder)} == {FILE_NAME, "checkpoint-100"}
    assert (trial.folder / "checkpoint-100" / "global_step100" / "rank_0.pt").read_bytes().startswith(b"global_step100")
    assert steps_in(trial.folder) == [50, 100]


def test_the_driver_gets_records_artifacts_and_the_model(uri: str, trial: Trial, tmp_path: Path) -> None:
    worker, driver, here = open_storage(uri, "tiny"), open_storage(uri, "tiny"), tmp_path / "driver" / "0007"
    assert not driver.fetch(NUMBER, here)
    for step in (50, 100):
        trial.evaluate(step)
        trial.save(step)
        worker.push(NUMBER, trial.folder)
        assert driver.fetch(NUMBER, here)
        assert not driver.fetch(NUMBER, here)
        expected = content_of(trial.folder)
        assert content_of(here) == {name: expected[name] for name in expected if not name.startswith("checkpoint-")}
    with pytest.raises(OSError, match=r"trial 7 in .* is unfinished"):
        driver.fetch(NUMBER, here, model=True)

    trial.complete(100)
    worker.push(NUMBER, trial.folder, ended=True)
    assert driver.fetch(NUMBER, here, model=True)
    assert content_of(here) == content_of(trial.folder)

    driver.drop(NUMBER, model=True)
    with pytest.raises(OSError, match="unfinished"):
        open_storage(uri, "tiny").fetch(NUMBER, tmp_path / "late", model=True)
    assert steps_in(tmp_path / "late") == [50, 100]


def test_a_search_of_the_same_name_is_not_mixed_with_a_new_one(uri: str, trial: Trial) -> None:
    storage = open_storage(uri, "tiny")
    trial.evaluate(50)
    storage.push(NUMBER, trial.folder)
    storage.check(new=False)
    open_storage(uri, "tiny-2").check(new=True)
    with pytest.raises(SearchError, match="has a search tiny already; give another path, or remove that search"):
        storage.check(new=True)


# ---- cut off anywhere


class Cut(Exception):  # noqa: N818
    """The process has been killed."""


class Failing(FSSpecHandler):
    """Local files, written and changed by so many operations and no more; a write that is cut off is half done."""

    def __init__(self, left: float) -> None:
        super().__init__(LocalFileSystem())
        self.left = left
        self._lock = threading.Lock()

    def spend(self) -> None:
        with self._lock:
            self.left -= 1
            if self.left < 0:
                raise Cut

    def create_dir(self, path: str, recursive: bool) -> None:
        self.spend()
        super().create_dir(path, recursive)

    def delete_dir(self, path: str) -> None:
        for file in sorted(Path(path).rglob("*")):
            if file.is_file():
                self.spend()
                file.unlink()
        shutil.rmtree(path)

    def delete_file(self, path: str) -> None:
        self.spend()
        os.unlink(path)

    def move(self, src: str, dest: str) -> None:
        self.spend()
        os.replace(src, dest)

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        self.spend()
        return PythonFile(HalfWritten(path, self.spend), mode="w")


class HalfWritten:
    closed = False

    def __init__(self, path: str, spend: Callable[[], None]) -> None:
        self.file = Path(path).open("wb", buffering=0)  # noqa: SIM115
        self.spend = spend

    def write(self, content: bytes) -> int:
        self.file.write(content[: len(content) // 2])
        self.spend()
        return len(content) // 2 + (self.file.write(content[len(content) // 2 :]) or 0)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.file.close()
        self.closed = True


def storage_at(root: Path, left: float = float("inf")) -> TrialStorage:
    return TrialStorage(PyFileSystem(Failing(left)), str(root), "file:///unused", "tiny")


def assert_can_be_gone_on_from(root: Path, scratch: Path, truth: dict[str, bytes], least: int) -> None:
    """What every machine may count on."""
    storage = storage_at(root)
    there = root / "trials" / "0007"
    for manifest in there.glob("*/manifest.json"):
        assert fault_of(manifest.parent) is None
    for record in read_records(there):
        if record["kind"] == "artifact":
            assert (there / record["path"]).read_bytes().startswith(b"picture of step ")
        if record["kind"] == "event" and record["event"] == "completed":
            assert fault_of(there / "model") is None
            return
    assert storage.pull(NUMBER, scratch)
    (checkpoint,) = scratch.glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert step >= least
    assert fault_of(checkpoint) is None
    for name, content in content_of(scratch).items():
        if name.startswith("checkpoint-"):
            assert content == truth[name]
    assert step in steps_in(scratch)


@pytest.mark.parametrize("last", [False, True], ids=["goes on", "completes"])
def test_wherever_a_push_is_cut_off_the_trial_can_be_gone_on_with(last: bool, trial: Trial, tmp_path: Path) -> None:
    before, truth = tmp_path / "before", {}
    storage = storage_at(before)
    trial.evaluate(50)
    trial.save(50)
    storage.push(NUMBER, trial.folder)
    truth |= content_of(trial.folder)
    trial.evaluate(100)
    trial.save(100)
    truth |= content_of(trial.folder)
    if last:
        trial.complete(100)

    for left in range(1000):
        root = tmp_path / f"cut-{left}"
        shutil.copytree(before, root)
        cut = storage_at(root, left)
        try:
            cut.push(NUMBER, trial.folder, ended=last)
            break
        except Cut:
            assert_can_be_gone_on_from(root, tmp_path / "scratch", truth, least=50)
        storage_at(root).push(NUMBER, trial.folder, ended=last)  # another process goes on
        assert {
            k: v for k, v in content_of(root / "trials" / "0007").items() if not k.endswith(".draft")
        } == content_of(trial.folder)
    assert left > 15  # it was cut off at many places
    assert content_of(root / "trials" / "0007") == content_of(trial.folder)


def test_a_failed_upload_is_tried_again_by_the_same_process(trial: Trial, tmp_path: Path) -> None:
    trial.evaluate(50)
    trial.save(50)
    for left in range(1000):
        root = tmp_path / f"cut-{left}"
        storage = storage_at(root, left)
        try:
            storage.push(NUMBER, trial.folder)
            break
        except Cut:
            storage.filesystem.handler.left = float("inf")
        storage.push(NUMBER, trial.folder)
        assert {
            k: v for k, v in content_of(root / "trials" / "0007").items() if not k.endswith(".draft")
        } == content_of(trial.folder)
    assert left > 10


# ---- what is damaged or stale


def test_a_damaged_checkpoint_is_brought_with_the_one_before_it(trial: Trial, tmp_path: Path) -> None:
    storage = storage_at(tmp_path / "remote")
    for step in (50, 100):
        trial.evaluate(step)
        trial.save(step, keep=2)
    storage.push(NUMBER, trial.folder)
    path = tmp_path / "remote" / "trials" / "0007" / "checkpoint-100" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    storage.pull(NUMBER, tmp_path / "other")
    assert "model.safetensors is damaged" in str(fault_of(tmp_path / "other" / "checkpoint-100"))
    assert fault_of(tmp_path / "other" / "checkpoint-50") is None


def test_a_checkpoint_that_is_whole_here_is_not_copied_again(trial: Trial, tmp_path: Path) -> None:
    storage = storage_at(tmp_path / "remote")
    trial.evaluate(50)
    trial.save(50)
    storage.push(NUMBER, trial.folder)
    path = trial.folder / "checkpoint-50" / "model.safetensors"
    before = path.stat().st_mtime_ns
    storage.pull(NUMBER, trial.folder)
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"damaged here")
    storage.pull(NUMBER, trial.folder)
    assert fault_of(path.parent) is None


def test_what_this_machine_has_of_an_earlier_attempt_gives_way(trial: Trial, tmp_path: Path) -> None:
    storage = storage_at(tmp_path / "remote")
    trial.evaluate(50)
    trial.save(50)
    storage.push(NUMBER, trial.folder)
    trial.evaluate(75)  # killed before it was pushed
    trial.save(75)
    storage.pull(NUMBER, trial.folder)
    assert steps_in(trial.folder) == [50]
    assert [path.name for path in trial.folder.glob("checkpoint-*")] == ["checkpoint-50"]


def test_an_unfinished_checkpoint_does_not_travel(trial: Trial, tmp_path: Path) -> None:
    storage = storage_at(tmp_path / "remote")
    trial.evaluate(50)
    trial.save(50)
    (trial.folder / "checkpoint-50" / "manifest.json").unlink()
    storage.push(NUMBER, trial.folder)
    assert storage.pull(NUMBER, tmp_path / "other")
    assert list((tmp_path / "other").glob("checkpoint-*")) == []


def test_a_checkpoint_stays_there_until_another_has_arrived(trial: Trial, tmp_path: Path) -> None:
    storage = storage_at(tmp_path / "remote")
    trial.evaluate(50)
    trial.save(50)
    storage.push(NUMBER, trial.folder)
    drop_checkpoints(trial.folder)  # it will write another
    there = tmp_path / "remote" / "trials" / "0007"
    storage.push(NUMBER, trial.folder)
    assert fault_of(there / "checkpoint-50") is None
    storage.push(NUMBER, trial.folder, ended=True)
    assert list(there.glob("checkpoint-*")) == []


def test_the_same_step_saved_anew_replaces_what_was_there(trial: Trial, tmp_path: Path) -> None:
    storage = storage_at(tmp_path / "remote")
    trial.evaluate(50)
    trial.save(50)
    storage.push(NUMBER, trial.folder)
    path = trial.folder / "checkpoint-50"
    (path / "model.safetensors").write_bytes(b"trained with other settings")
    (path / "config.json").unlink()
    write_manifest(path, ["model.safetensors", "global_step50/rank_0.pt"])
    storage.push(NUMBER, trial.folder)
    assert content_of(tmp_path / "remote" / "trials" / "0007") == content_of(trial.folder)


def test_a_pull_waits_for_the_earlier_attempt(trial: Trial, tmp_path: Path) -> None:
    storage = storage_at(tmp_path / "remote")
    trial.evaluate(50)
    storage.push(NUMBER, trial.folder)
    writer = RunRecords(trial.folder)
    pulling = threading.Thread(target=storage.pull, args=(NUMBER, trial.folder))
    pulling.start()
    pulling.join(0.3)
    assert pulling.is_alive()
    writer.close()
    pulling.join(10)
    assert not pulling.is_alive()


def test_names_cannot_lead_out_of_the_trials_folder(trial: Trial, tmp_path: Path) -> None:
    with RunRecords(trial.folder) as records:
        records._append("artifact", path="../../escaped", folder="")
    storage = storage_at(tmp_path / "remote")
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "escaped").write_text("x")
    storage.push(NUMBER, trial.folder)
    with pytest.raises(ValueError, match="is not the name of a trial's file"):
        storage.fetch(NUMBER, tmp_path / "driver" / "trials" / "0007")


# ---- what a user can get wrong


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/mnt/shared", False), ("runs", False), ("s3://bucket/x", True), ("file:///x", True), ("C:/x", False)],
)
def test_uris_are_told_from_paths(path: str, expected: bool) -> None:
    assert is_uri(path) is expected


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("foo://x/y", "--storage-path foo://x/y: Protocol not known: foo; give a folder that all machines see"),
        ("s3://", "names no bucket or folder"),
        ("s3://key:secret@bucket/x?nonsense=secret", "--storage-path s3://bucket/x: Unexpected query parameter"),
        ("abfs://x/y", "give a folder that all machines see, or a URI such as s3://BUCKET/PREFIX"),
    ],
)
def test_a_uri_that_cannot_be_opened_is_refused_in_one_line(uri: str, words: str) -> None:
    with pytest.raises(SearchError) as mistake:
        open_storage(uri, "tiny")
    assert words in str(mistake.value)
    assert "secret" not in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(
        SearchError, match=r"--storage-path file:///proc/x cannot be used: .* No such file or directory"
    ):
        open_storage("file:///proc/x", "tiny").check(new=True)


def test_buckets_without_access_are_refused(s3: str) -> None:
    with pytest.raises(SearchError, match="s3://missing/x cannot be used: Bucket 'missing' not found"):
        open_storage(f"s3://key:secret@missing/x?{s3}", "tiny").check(new=True)
