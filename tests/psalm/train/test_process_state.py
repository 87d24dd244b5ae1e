"""One process trains one run after another: each is as in a fresh process, and nothing of it is left."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from psalm.train.arguments import parse_settings
from psalm.train.measures import peak_memory_mb, reset_peak_memory
from psalm.train.process_state import own_process_state
from psalm.train.records import metric_history, read_records

PROGRAM = '''
import gc, hashlib, json, os, sys
import psutil, torch
from transformers import TrainerCallback
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.train.arguments import parse_settings
from psalm.train.distributed import leave_process_group
from psalm.train.train import train

class End(TrainerCallback):
    """Ends a run after its first step: stops it, or has it fail."""

    def __init__(self, how):
        self.how = how

    def on_step_end(self, args, state, control, **_):
        if self.how == "fail":
            raise torch.OutOfMemoryError("of this test")
        control.should_training_stop = self.how == "stop"

process = psutil.Process()
before = set(os.environ)
measures = []
for job in json.load(open(sys.argv[1])):
    try:
        train(parse_settings(job["settings"]), [End(job["end"])])
    except torch.OutOfMemoryError:
        pass
    gc.collect()
    measures.append({
        "memory": process.memory_info().rss / 2**20,
        "files": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(process.children(recursive=True)),
        "models": sum(type(each) is PsalmForSegmentation for each in gc.get_objects()),
        "environment": sorted(set(os.environ) - before),
    })
if os.environ.get("RANK", "0") == "0":
    print(json.dumps(measures))
leave_process_group()
'''
COMPARED = ("plain", "zero2")

Job = dict[str, Any]


def kinds(processes: int) -> dict[str, Job]:
    """Settings of the runs that follow each other: with and without DeepSpeed, of several sizes and precisions."""
    common: Job = {"max_steps": 2, "save_final_model": True}
    common["per_device_train_batch_size"] = 2 // processes
    larger = {"mm_hidden_dim": 32, "mm_n_heads": 4, "bf16": True, "gradient_checkpointing": True}
    return {
        "plain": common,
        "zero2": common | {"deepspeed": "zero2"},
        "zero3": common | larger | {"deepspeed": "zero3"},
        "exact": common | {"full_determinism": True, "dataloader_num_workers": 1},
    }


def run(folder: Path, jobs: list[Job], processes: int = 1) -> list[dict[str, Any]]:
    """Runs jobs one after another in one fresh process (group); what the first process had after each."""
    folder.mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    (folder / "program.py").write_text(PROGRAM)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else ()), folder / "program.py", folder / "jobs.json"],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        | {"OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    measures: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return measures


def result(folder: Path) -> tuple[dict[str, Any], bytes]:
    """What a run has logged, without figures of the machine, and its final weights."""
    history = metric_history(read_records(folder))
    logged = {name: steps for name, steps in history.items() if not name.startswith("system/")}
    return logged, (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_run_after_others_is_as_in_a_fresh_process_and_leaves_nothing(
    processes: int, tmp_path: Path, settings_in: Callable[..., dict[str, Any]]
) -> None:
    of_kind = kinds(processes)

    def jobs(*runs: tuple[str, str] | tuple[str, str, str]) -> list[Job]:
        return [
            {"settings": settings_in(tmp_path / name, **of_kind[kind]), "end": "".join(end)}
            for name, kind, *end in runs
        ]

    # One rank's failure would have the other wait for it: a search ends both processes then.
    failing = [("failed", "zero2", "fail")] if processes == 1 else []
    first = jobs(("0", "exact"), ("1", "zero3"), *failing, ("2", "zero2", "stop"))
    then = jobs(("plain-late", "plain"), ("3", "zero3"), ("zero2-late", "zero2"))
    with ThreadPoolExecutor(2) as pool:
        fresh = [pool.submit(run, tmp_path / kind, jobs((f"{kind}-fresh", kind)), processes) for kind in COMPARED]
        sequence = pool.submit(run, tmp_path / "sequence", first + then, processes)
    for done in fresh:
        done.result()
    for kind in COMPARED:
        assert result(tmp_path / f"{kind}-late") == result(tmp_path / f"{kind}-fresh"), kind
    measures = sequence.result()
    settled, last = measures[len(first) - 1], measures[-1]
    for name in ("files", "threads", "children", "models", "environment"):
        assert last[name] == settled[name], (name, measures)
    assert last["memory"] < settled["memory"] + 40, measures


def test_flags_and_environment_are_as_before(settings: Callable[..., dict[str, Any]]) -> None:
    """What full determinism and accelerate set, when a run fails too."""
    args = parse_settings(settings()).training
    environment = dict(os.environ)

    def meddle() -> None:
        with own_process_state(args):
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.deterministic = True
            os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "PATH": ""}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        meddle()
    assert dict(os.environ) == environment
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_tf32_of_a_run_is_not_the_next_one_s(settings: Callable[..., dict[str, Any]]) -> None:
    """transformers switches it on once only: it remembers that it has done so."""
    enable_tf32 = pytest.importorskip("transformers.utils.import_utils").enable_tf32
    args = parse_settings(settings()).training
    for _ in range(2):
        enable_tf32(True)
        assert torch.backends.fp32_precision == "tf32"
        with own_process_state(args):
            assert torch.backends.fp32_precision == "tf32"
        assert torch.backends.fp32_precision == "none"


def test_arguments_that_were_made_before_others_still_hold(settings: Callable[..., dict[str, Any]]) -> None:
    """accelerate has one state for all; a run's own arguments fill it again."""
    first = parse_settings(settings()).training
    parse_settings(settings(deepspeed="zero2"))
    with own_process_state(first):
        assert first.world_size == 1
        assert first.process_index == 0
        assert first.device.type == "cpu"
    assert first.process_index == 0, "callers ask for it after a run"


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux can reset a process's peak")
def test_peak_memory_is_that_of_the_run() -> None:
    reset_peak_memory()
    before = peak_memory_mb()
    large = np.ones(200 * 2**17)  # 200 MiB
    del large
    assert 190 < peak_memory_mb() - before < 260
    reset_peak_memory()
    assert peak_memory_mb() - before < 30
