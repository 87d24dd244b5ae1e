"""Checkpoints of real runs: killed in the middle of one, damaged, without room; and what saving takes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback

from psalm.train import disk, saving
from psalm.train.arguments import Arguments, SettingError, check_settings, resolved_settings
from psalm.train.checkpoint_files import checkpoints_in, drop_checkpoint, fault_of, is_complete
from psalm.train.disk import bytes_below, small_bytes
from psalm.train.records import metric_history, read_records
from psalm.train.saving import SavingTrainer
from psalm.train.train import train

Make = Callable[..., Arguments]

SAVED = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "save_final_model": True}
PROGRAM = '''
"""Runs jobs one after another; each may stand still in the middle of a checkpoint, or have no room on one rank."""
import errno, json, sys, time
from pathlib import Path
import torch
from psalm.train.arguments import parse_settings
from psalm.train.distributed import leave_process_group
from psalm.train.saving import SavingTrainer
from psalm.train.train import train

save_rng_state, save = SavingTrainer._save_rng_state, torch.save

def hang(trainer, output_dir):
    save_rng_state(trainer, output_dir)
    if trainer.state.global_step == job["hang_at"]:
        Path(output_dir, "..", "hangs").touch()
        time.sleep(600)

def fail(what, file, *args, **kwargs):
    if str(file).endswith(job["full"]) and f"checkpoint-{job['full_at']}/" in str(file):
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(file))
    save(what, file, *args, **kwargs)

for job in json.loads(Path(sys.argv[1]).read_text()):
    SavingTrainer._save_rng_state = hang if "hang_at" in job else save_rng_state
    torch.save = fail if "full_at" in job else save
    train(parse_settings(job["settings"]), [], job.get("resume"))
leave_process_group()
'''


def start(folder: Path, jobs: list[dict[str, Any]], processes: int = 1, port: int = 29557) -> subprocess.Popen[str]:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(port))
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else ()), folder / "program.py", folder / "jobs.json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def events(folder: Path, *names: str) -> list[dict[str, Any]]:
    """The run's events of these names, or all of them, without what every record has."""
    found = [record for record in read_records(folder) if record["kind"] == "event"]
    return [
        {key: value for key, value in record.items() if key not in ("n", "time", "kind")}
        for record in found
        if not names or record["event"] in names
    ]


def logged(folder: Path) -> dict[str, dict[int, float]]:
    history = metric_history(read_records(folder))
    return {name: steps for name, steps in history.items() if not name.startswith("system/")}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class CutAt(TrainerCallback):
    """Ends a run as a crash would, right after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("deepspeed", ["none", "zero2"])
def test_a_run_killed_in_the_middle_of_a_checkpoint_goes_on_from_the_one_before(
    settings_in: Callable[..., dict[str, Any]], tmp_path: Path, deepspeed: str
) -> None:
    """And ends as one that was never killed, bit for bit."""
    common = SAVED | {"deepspeed": deepspeed, "bf16": deepspeed != "none"}
    run, whole = tmp_path / "run", tmp_path / "whole"
    process = start(tmp_path, [{"settings": settings_in(run, **common), "hang_at": 4}])
    while not (run / "hangs").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "model.safetensors" in names_in(run / "checkpoint-4")
    assert not is_complete(run / "checkpoint-4")

    jobs = [{"settings": settings_in(run, **common), "resume": True}, {"settings": settings_in(whole, **common)}]
    output = finish(start(tmp_path, jobs))
    line = "checkpoint-4 cannot be gone on from: it is unfinished: manifest.json is missing"
    assert line in output.splitlines()
    assert events(run) == [
        {"event": "started"},
        {"event": "checkpoint_rejected", "reason": line},
        {"event": "resumed", "step": 2},
        {"event": "completed", "step": 6},
    ]
    for name in ("checkpoint-4", "model"):
        assert (run / name / "model.safetensors").read_bytes() == (whole / name / "model.safetensors").read_bytes()
        assert fault_of(run / name) is None
    assert logged(run) == logged(whole)
    assert names_in(run) - {"hangs"} == names_in(whole)


def test_a_run_goes_on_from_the_checkpoint_before_a_truncated_one(arguments: Make, tmp_path: Path) -> None:
    train(arguments(output_dir=str(tmp_path / "whole"), **SAVED))
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(arguments(output_dir=str(run), **SAVED), callbacks=[CutAt(4)])
    size = (run / "checkpoint-4" / "optimizer.pt").stat().st_size
    with (run / "checkpoint-4" / "optimizer.pt").open("rb+") as file:
        file.truncate(size // 2)
    train(arguments(output_dir=str(run), **SAVED), resume_from_checkpoint=True)
    (rejected,) = events(run, "checkpoint_rejected")
    assert rejected["reason"] == (
        f"checkpoint-4 cannot be gone on from: optimizer.pt has {size // 2:,} bytes instead of {size:,}"
    )
    models = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "run")]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert logged(tmp_path / "whole") == logged(run)


def test_an_older_checkpoint_goes_only_when_the_new_one_is_complete(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = []

    def drop(folder: Path) -> None:
        assert fault_of(max(checkpoints_in(folder.parent).items())[1]) is None
        dropped.append(folder.name)
        drop_checkpoint(folder)

    monkeypatch.setattr(disk, "drop_checkpoint", drop)
    changes = {"max_steps": 4, "save_steps": 1, "save_total_limit": 1, "save_final_model": False}
    train(arguments(**SAVED | changes))
    assert dropped == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert set(checkpoints_in(tmp_path / "run")) == {4}


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines that checkpoints were warned about with."""
    return lambda: [record.getMessage() for record in caplog.records if record.name == saving.__name__]


def test_without_room_a_run_trains_on_and_says_so(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: Callable[[], list[str]]
) -> None:
    train(arguments(output_dir=str(tmp_path / "whole"), **SAVED))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8))
    train(arguments(**SAVED))
    run = tmp_path / "run"
    skipped = events(run, "checkpoint_skipped", "model_skipped")
    assert [(event["event"], event["step"]) for event in skipped] == [
        ("checkpoint_skipped", 2), ("checkpoint_skipped", 4), ("checkpoint_skipped", 6), ("model_skipped", 6)
    ]  # fmt: skip
    assert skipped[0]["reason"].endswith(f" GB needed, 0.1 GB free in {run} (0.105 GB of it are kept free)")
    assert warned()[0] == f"checkpoint of step 2 is not saved: {skipped[0]['reason']}"
    assert len(warned()) == 4
    assert not checkpoints_in(run)
    assert "model" not in names_in(run)
    assert logged(run) == logged(tmp_path / "whole")


def test_a_disk_that_fills_in_the_middle_of_a_checkpoint(
    arguments: Make, tmp_path: Path, file_size_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    """It takes the weights, and half of the optimizer's state; the next time nothing, then all."""

    limits = {2: 2_500_000, 4: 50_000}

    class Limit(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits.get(state.global_step, 10**8), most))

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            assert set(checkpoints_in(tmp_path / "run")) == ({6} if state.global_step == 6 else set())

    train(arguments(output_dir=str(tmp_path / "whole"), **SAVED))
    with file_size_limit(10**8):
        train(arguments(**SAVED), callbacks=[Limit()])
    run = tmp_path / "run"
    reasons = [event["reason"] for event in events(run, "checkpoint_skipped", "model_skipped")]
    assert len(reasons) == 2
    assert all(reason.startswith("no room was left while rank 0 wrote it (") for reason in reasons)
    assert logged(run) == logged(tmp_path / "whole")
    assert fault_of(run / "model") is None


def test_a_small_disk_that_is_really_full(arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is full for a second checkpoint of 5 MB, as if another one had written since the look at it."""
    mount = tmp_path / "mount"
    mount.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "none", mount], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("a file system of its own size cannot be mounted here: that needs root")
    try:
        monkeypatch.setattr(disk, "MARGIN", -(10**9))
        train(arguments(output_dir=str(mount / "run"), **SAVED))
        skipped = events(mount / "run", "checkpoint_skipped", "model_skipped")
        assert [event["step"] for event in skipped] == [4, 6, 6], "one fits, two do not"
        assert fault_of(mount / "run" / "checkpoint-2") is None
        assert names_in(mount / "run").isdisjoint({"checkpoint-4", "checkpoint-6", "model"})
    finally:
        subprocess.run(["umount", mount], check=True)


def test_runs_share_a_budget_and_the_final_model_counts(arguments: Make, tmp_path: Path) -> None:
    """Watched all the time by someone who counts by hand."""
    limit = 2 * disk.SMALL_FILES + 6_500_000
    budget = {"checkpoint_budget_gb": limit / 1e9, "checkpoint_budget_dir": str(tmp_path)}
    (tmp_path / "other" / "checkpoint-9").mkdir(parents=True)
    (tmp_path / "other" / "checkpoint-9" / "optimizer.pt").write_bytes(bytes(disk.SMALL_FILES))
    seen = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            folders = [*tmp_path.glob("*/checkpoint-*"), *tmp_path.glob("*/model")]
            seen.append(sum(map(bytes_below, folders)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        train(arguments(**SAVED | {"save_steps": 1, "save_total_limit": 5}, **budget))
    finally:
        ended.set()
        watcher.join()
    assert max(seen) <= limit
    run = tmp_path / "run"
    assert [event["step"] for event in events(run, "checkpoint_skipped")] == [2, 3, 4, 5, 6]
    assert [event["step"] for event in events(run, "model_skipped")] == [6]
    assert names_in(run) >= {"checkpoint-1"}


def test_seconds_of_saving_are_recorded_and_nothing_else(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With saving at steps at which nothing is logged."""
    changes = {"logging_steps": 4, "save_final_model": False}
    train(arguments(output_dir=str(tmp_path / "without"), **SAVED | changes | {"save_strategy": "no"}))
    save = SavingTrainer._save_scaler

    def slow(trainer: SavingTrainer, output_dir: str) -> None:
        time.sleep(0.5)
        save(trainer, output_dir)

    monkeypatch.setattr(SavingTrainer, "_save_scaler", slow)
    train(arguments(**SAVED | changes))
    run = tmp_path / "run"
    seconds = metric_history(read_records(run))["system/checkpoint_seconds"]
    assert list(seconds) == [2, 4, 6]
    assert all(0.5 < value < 60 for value in seconds.values())
    assert logged(run) == logged(tmp_path / "without")


@pytest.mark.parametrize(
    ("deepspeed", "bf16"),
    [("none", False), ("zero2", True)]
    + [pytest.param(*each, marks=pytest.mark.full) for each in (("zero2", False), ("zero3", True), ("zero3", False))],
)
def test_a_checkpoint_takes_what_was_estimated(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deepspeed: str, bf16: bool
) -> None:
    """Not more, and not much less: that of all weights, and of the state of the parts that have one."""
    estimates = []
    estimate = SavingTrainer._checkpoint_bytes

    def noted(trainer: SavingTrainer) -> int:
        estimates.append(estimate(trainer) - small_bytes(()))
        return estimate(trainer)

    monkeypatch.setattr(SavingTrainer, "_checkpoint_bytes", noted)
    with pytest.raises(KeyboardInterrupt):
        train(arguments(**SAVED, deepspeed=deepspeed, bf16=bf16), callbacks=[CutAt(2)])
    size = bytes_below(tmp_path / "run" / "checkpoint-2")
    (estimated,) = estimates
    assert size - 300_000 <= estimated <= 1.2 * size + 1_000_000


@pytest.mark.full
@pytest.mark.parametrize(
    ("deepspeed", "full"),
    [
        ("none", "rng_state_1.pth"),
        ("none", "optimizer.pt"),
        ("zero2", "zero_pp_rank_1_mp_rank_00_optim_states.pt"),
        ("zero3", "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    ],
)
def test_one_rank_without_room_leaves_no_rank_behind(
    settings_in: Callable[..., dict[str, Any]], tmp_path: Path, deepspeed: str, full: str
) -> None:
    common = SAVED | {"deepspeed": deepspeed, "bf16": deepspeed != "none", "per_device_train_batch_size": 1}
    run, whole = tmp_path / "run", tmp_path / "whole"
    jobs = [
        {"settings": settings_in(run, **common), "full": full, "full_at": 4},
        {"settings": settings_in(whole, **common)},
    ]
    finish(start(tmp_path, jobs, processes=2))
    (skipped,) = events(run, "checkpoint_skipped")
    rank = full.split("rank_")[1][0] if "rank" in full else "1" if "_1" in full else "0"
    assert skipped["step"] == 4
    assert skipped["reason"].startswith(f"no room was left while rank {rank} wrote it ([Errno 28] No space left")
    assert set(checkpoints_in(whole)) - set(checkpoints_in(run)) == {4}
    assert (run / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    assert logged(run) == logged(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"checkpoint_budget_gb": 2.0},
            "checkpoint_budget_gb needs checkpoint_budget_dir, but got 2.0 alone; give ",
        ),
        ({"checkpoint_budget_dir": "/a"}, "checkpoint_budget_dir needs checkpoint_budget_gb, but got /a alone; give b"),
        (
            {"checkpoint_budget_gb": 0, "checkpoint_budget_dir": "/a"},
            "checkpoint_budget_gb must be greater than 0, b",
        ),
        (
            {"checkpoint_budget_gb": 1, "checkpoint_budget_dir": "/a/b", "output_dir": "/a/bc/run"},
            "checkpoint_budget_dir must hold output_dir, which is /a/bc/run, but got /a/b; give a folder above it",
        ),
    ],
)
def test_a_budget_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as error:
        check_settings(changes)
    assert str(error.value).startswith(message)


def test_a_budget_is_not_a_run_s_own(arguments: Make, tmp_path: Path) -> None:
    """A run is repeated elsewhere from its record."""
    args = arguments(checkpoint_budget_gb=1, checkpoint_budget_dir=str(tmp_path))
    assert not {name for name in resolved_settings(args) if "budget" in name}
