"""Room for checkpoints: what is deleted for it and what never, and a budget that processes share without passing it."""

import errno
import multiprocessing
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from psalm.train import disk
from psalm.train.checkpoint_files import MANIFEST, checkpoint_folder, checkpoints_in, fault_of, write_manifest
from psalm.train.disk import Budget, RunCheckpoints, is_full, optimizer_bytes, shortage, weights_bytes

SIZE = 1000  # bytes of a checkpoint's only file


def save(run: Path, step: int, complete: bool = True) -> Path:
    folder = checkpoint_folder(run, step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_bytes(bytes(SIZE))
    if complete:
        write_manifest(folder, ["weights"])
    return folder


def steps(run: Path) -> list[int]:
    return list(checkpoints_in(run))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "search" / "run"


@pytest.fixture
def checkpoints(run: Path) -> RunCheckpoints:
    run.mkdir(parents=True)
    return RunCheckpoints(run, None)


def free(monkeypatch: pytest.MonkeyPatch, run: Path, others: int = 0) -> None:
    """A disk that is full but for the margin, ``others`` bytes, and what the run's checkpoints leave."""
    total = disk.MARGIN + others

    def usage(_: Any) -> SimpleNamespace:
        return SimpleNamespace(free=total - sum(SIZE for _ in run.rglob("weights")))

    monkeypatch.setattr(shutil, "disk_usage", usage)


def test_the_oldest_go_once_the_new_one_is_there(run: Path, checkpoints: RunCheckpoints) -> None:
    for step in (2, 4, 6, 8, 10):  # "10" sorts before "2"
        assert checkpoints.make_room(checkpoint_folder(run, step), SIZE) is None
        save(run, step)
        assert steps(run) == [kept for kept in (step - 4, step - 2, step) if kept > 0]
        checkpoints.add(step, limit=2)
    assert steps(run) == [8, 10]


def test_without_a_limit_all_are_kept(run: Path, checkpoints: RunCheckpoints) -> None:
    for step in (2, 4, 6):
        save(run, step)
        checkpoints.add(step, limit=None)
    assert steps(run) == [2, 4, 6]


def test_the_best_is_kept_beside_the_newest(run: Path, checkpoints: RunCheckpoints) -> None:
    for step in (2, 4, 6, 8):
        save(run, step)
        checkpoints.add(step, limit=1, best=4)
    assert steps(run) == [4, 8]


def test_unfinished_ones_go_at_the_start_and_count_for_nothing(run: Path, checkpoints: RunCheckpoints) -> None:
    save(run, 2)
    save(run, 4, complete=False)
    checkpoints.begin(2)
    assert steps(run) == [2]
    save(run, 6)
    checkpoints.add(6, limit=2)
    assert steps(run) == [2, 6]


@pytest.mark.parametrize(("begun_at", "kept"), [(0, [3]), (2, [2, 3]), (4, [2, 3, 4])])
def test_what_an_earlier_start_left_goes_with_the_first_checkpoint(
    run: Path, checkpoints: RunCheckpoints, begun_at: int, kept: list[int]
) -> None:
    """Also later ones: they would be taken for this run's when it is resumed."""
    for step in (2, 4, 100):
        save(run, step)
    checkpoints.begin(begun_at)
    assert steps(run) == [2, 4, 100]
    save(run, 3)
    checkpoints.add(3, limit=5)
    assert steps(run) == kept


def test_older_ones_make_room_and_the_newest_stays(
    run: Path, checkpoints: RunCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (2, 4, 6):
        save(run, step)
        checkpoints.add(step, limit=None)
    free(monkeypatch, run, others=4 * SIZE)
    assert checkpoints.make_room(checkpoint_folder(run, 8), SIZE) is None
    assert steps(run) == [2, 4, 6, 8], "there is room: nothing is deleted"
    assert list(checkpoint_folder(run, 8).iterdir()) == []
    save(run, 8)
    checkpoints.add(8, limit=None)
    assert checkpoints.make_room(checkpoint_folder(run, 10), SIZE, best=4) is None
    assert steps(run) == [4, 8, 10]


def test_nothing_is_deleted_where_that_does_not_help(
    run: Path, checkpoints: RunCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (2, 4):
        save(run, step)
        checkpoints.add(step, limit=None)
    free(monkeypatch, run, others=2 * SIZE)
    reason = checkpoints.make_room(checkpoint_folder(run, 6), 2 * SIZE)
    assert reason == f"2e-06 GB needed, 0.105 GB free in {run} (0.105 GB of it are kept free)"
    assert steps(run) == [2, 4]


def test_a_folder_of_the_same_step_is_replaced(run: Path, checkpoints: RunCheckpoints) -> None:
    folder = save(run, 2)
    assert checkpoints.make_room(folder, SIZE) is None
    assert list(folder.iterdir()) == []


def test_the_last_checkpoint_becomes_the_final_model(run: Path, checkpoints: RunCheckpoints) -> None:
    """Without room for another copy, and in place of one that an earlier start left."""
    (run / "model" / "old").mkdir(parents=True)
    folder = save(run, 2)
    (folder / "optimizer.pt").touch()
    write_manifest(folder, ["weights", "optimizer.pt"])
    checkpoints.add(2, limit=1)
    assert not checkpoints.make_final(3, run / "model")
    assert checkpoints.make_final(2, run / "model")
    assert {path.name for path in (run / "model").iterdir()} == {"weights", MANIFEST}
    assert fault_of(run / "model") is None
    assert steps(run) == []


def test_a_budget_counts_checkpoints_and_final_models_of_all_runs(tmp_path: Path) -> None:
    budget = Budget(tmp_path, 10 * SIZE)
    assert budget.used() == 0
    for folder in ("trials/0000/checkpoint-2/global_step2", "trials/0001/model", "0002/checkpoint-40"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "weights").write_bytes(bytes(SIZE))
    for folder in ("trials/0000", "trials/0000/artifacts", "trials/checkpoint-best", "models"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "other").write_bytes(bytes(100 * SIZE))
    assert budget.used() == 3 * SIZE
    assert shortage(7 * SIZE, tmp_path, budget) is None
    assert shortage(7 * SIZE + 1, tmp_path, budget) == (
        f"7e-06 GB needed, 3e-06 GB of the 1e-05 GB for {tmp_path} are taken"
    )
    assert shortage(7 * SIZE + 1, tmp_path, budget, freed=1) is None


def write_much(search: Path, number: int, limit: int) -> None:
    """A run that saves as fast as it can, and notes what is there after each file, until it is ended."""
    run = search / f"{number:04d}"
    run.mkdir()
    budget = Budget(search, limit)
    checkpoints = RunCheckpoints(run, budget)
    for step in range(1, 10**6):
        size = SIZE * (1 + (step * (number + 3)) % 4)
        with budget.held():
            folder = checkpoint_folder(run, step)
            if checkpoints.make_room(folder, size) is not None:
                continue
            for part in range(4):
                (folder / f"{part}").write_bytes(bytes(size // 4))
                there = sum(path.stat().st_size for path in search.glob("*/checkpoint-*/*"))
                with (search / "seen").open("a") as seen:
                    seen.write(f"{number} {there}\n")
            (folder / "manifest.json").touch()
            checkpoints.add(step, limit=2)


def wait_for_writes(seen: Path, numbers: str) -> None:
    """Until each of these writers has written a hundred files more."""
    begun = len(seen.read_text()) if seen.exists() else 0
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.1)
        lines = seen.read_text()[begun:].splitlines() if seen.exists() else []
        if all(sum(line.startswith(f"{number} ") for line in lines) > 100 for number in numbers):
            return
    raise AssertionError("a writer finds no room, or has ended")


def test_processes_never_pass_a_shared_budget(tmp_path: Path) -> None:
    """One of them is killed, and another one comes."""
    limit = 18 * SIZE
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_much, args=(tmp_path, number, limit)) for number in range(4)]
    for writer in writers[:3]:
        writer.start()
    wait_for_writes(tmp_path / "seen", "012")
    writers[0].kill()
    writers[3].start()
    wait_for_writes(tmp_path / "seen", "123")
    for writer in writers:
        writer.kill()
        writer.join()
    assert [writer.exitcode for writer in writers] == [-signal.SIGKILL] * 4, "none has failed before"
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()[:-1]]
    assert limit // 2 < max(int(there) for _, there in seen) <= limit


def test_errors_of_a_full_disk_are_known_by_their_words(tmp_path: Path) -> None:
    assert is_full(OSError(errno.ENOSPC, "no"))
    assert is_full(OSError(errno.EDQUOT, "no"))
    assert not is_full(PermissionError(errno.EACCES, "no"))
    assert not is_full(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_full(RuntimeError("shape"))


@pytest.mark.parametrize("zip_format", [True, False])
def test_torch_and_safetensors_say_that_a_disk_is_full(tmp_path: Path, zip_format: bool, file_size_limit: Any) -> None:
    tensors = {"weight": torch.zeros(100_000)}
    with file_size_limit(50_000):
        with pytest.raises(Exception, match="inline_container" if zip_format else "File too large") as of_torch:
            torch.save(tensors, tmp_path / "file", _use_new_zipfile_serialization=zip_format)
        with pytest.raises(Exception, match="File too large") as of_safetensors:
            save_file(tensors, tmp_path / "file")
    assert is_full(of_torch.value)
    assert is_full(of_safetensors.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, amsgrad=True),
        torch.optim.Adafactor,
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ],
)
def test_sizes_are_upper_bounds_and_close(tmp_path: Path, make: Any) -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), *[nn.Linear(8, 8) for _ in range(50)])
    model[2].requires_grad_(False)
    optimizer = make(model.parameters())
    model[:2](torch.randn(4, 512)).sum().backward()  # the rest has no state yet
    optimizer.step()
    save_file(model.state_dict(), tmp_path / "weights")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer")
    for estimate, name in ((weights_bytes(model), "weights"), (optimizer_bytes(optimizer, None), "optimizer")):
        size = (tmp_path / name).stat().st_size
        assert size <= estimate + 2**16, name
        assert estimate <= size + 2**18, name
