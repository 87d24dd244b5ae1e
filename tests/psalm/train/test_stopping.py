"""Runs that a callback ends early, that go on from their last checkpoint, and that want a folder in use."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from psalm.train.arguments import Arguments, parse_command_line
from psalm.train.records import RecordsInUse, RunRecords, metric_history, read_records
from psalm.train.train import train

Make = Callable[..., Arguments]


class Stop(TrainerCallback):
    """Ends a run at an event of a step, with a checkpoint or without, and notes what is called."""

    def __init__(self, event: str, step: int, save: bool = False) -> None:
        self.event = event
        self.step = step
        self.save = save
        self.called: list[tuple[str, int]] = []

    def _at(self, event: str, state: Any, control: Any) -> None:
        self.called.append((event, state.global_step))
        if (event, state.global_step) == (self.event, self.step):
            control.should_training_stop = True
            control.should_save = self.save

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._at("step", state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._at("evaluate", state, control)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._at("log", state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._at("save", state, control)


def events(folder: Path) -> list[tuple[str, int | None]]:
    return [(r["event"], r.get("step")) for r in read_records(folder) if r["kind"] == "event"]


def logged(folder: Path) -> dict[str, dict[int, float]]:
    history = metric_history(read_records(folder))
    return {name: steps for name, steps in history.items() if not name.startswith("system/")}


EVALUATED = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_final_model": True}


def test_a_stopped_run_ends_at_its_evaluation(arguments: Make, tmp_path: Path) -> None:
    stop = Stop("evaluate", 2)
    metrics = train(arguments(**EVALUATED), [stop])
    folder = tmp_path / "run"
    assert stop.called == [("step", 1), ("log", 1), ("step", 2), ("log", 2), ("log", 2), ("evaluate", 2)]
    assert events(folder) == [("started", None), ("stopped", 2)]
    history = metric_history(read_records(folder))
    assert list(history["eval_pq"]) == [2]
    assert metrics["eval_pq"] == history["eval_pq"][2]
    assert not (folder / "model").exists()
    assert not list(folder.glob("checkpoint-*"))


def test_a_run_that_is_stopped_before_its_first_evaluation_has_no_metrics(arguments: Make, tmp_path: Path) -> None:
    assert train(arguments(**EVALUATED), [Stop("step", 1)]) == {}
    assert events(tmp_path / "run") == [("started", None), ("stopped", 1)]


def test_a_stop_at_the_last_step_is_a_run_s_end(arguments: Make, tmp_path: Path) -> None:
    train(arguments(**EVALUATED), [Stop("evaluate", 4)])
    assert events(tmp_path / "run") == [("started", None), ("completed", 4)]
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize(("event", "step"), [("evaluate", 2), ("step", 3)])
@pytest.mark.parametrize("deepspeed", [None, "zero2"])
def test_an_interrupted_run_goes_on_bit_for_bit(
    arguments: Make, tmp_path: Path, event: str, step: int, deepspeed: str | None
) -> None:
    """It saves once, although its settings save nothing; that it was to stop is not taken up from the checkpoint."""
    common = EVALUATED | {"deepspeed": deepspeed, "logging_steps": 2}
    train(arguments(output_dir=str(tmp_path / "whole"), **common))
    cut = arguments(output_dir=str(tmp_path / "cut"), **common)
    stop = Stop(event, step, save=True)
    train(cut, [stop])
    assert [call for call in stop.called if call[0] == "save"] == [("save", step)]
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")] == [f"checkpoint-{step}"]
    train(arguments(output_dir=str(tmp_path / "cut"), **common), resume_from_checkpoint=True)
    assert events(tmp_path / "cut") == [("started", None), ("stopped", step), ("resumed", step), ("completed", 4)]
    assert logged(tmp_path / "whole") == logged(tmp_path / "cut")
    whole, cut_weights = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert [name for name, weight in whole.items() if not torch.equal(weight, cut_weights[name])] == []


def test_resuming_the_last_begins_anew_where_there_is_none(arguments: Make, tmp_path: Path) -> None:
    train(arguments(**EVALUATED), [Stop("evaluate", 2)])
    train(arguments(**EVALUATED), resume_from_checkpoint=True)
    assert events(tmp_path / "run") == [("started", None), ("stopped", 2), ("started", None), ("completed", 4)]


def test_a_run_that_was_cut_after_its_last_checkpoint_only_ends(arguments: Make, tmp_path: Path) -> None:
    class Cut(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            raise KeyboardInterrupt

    common = EVALUATED | {"save_strategy": "steps", "save_steps": 4}
    whole = train(arguments(output_dir=str(tmp_path / "whole"), **common))
    with pytest.raises(KeyboardInterrupt):
        train(arguments(**common), [Cut()])
    metrics = train(arguments(**common), resume_from_checkpoint=True)
    assert events(tmp_path / "run") == [("started", None), ("resumed", 4), ("completed", 4)]
    assert metrics["eval_pq"] == whole["eval_pq"]
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


@pytest.mark.parametrize(("words", "asked"), [(["True"], True), (["true"], True), ([], None)])
def test_the_flag_true_asks_for_the_last(
    settings: Callable[..., dict[str, Any]], words: list[str], asked: bool | None
) -> None:
    flags = [word for name, value in settings().items() for word in (f"--{name}", str(value))]
    parsed = parse_command_line([*flags, *(["--resume_from_checkpoint", *words] if words else [])])
    assert parsed.training.resume_from_checkpoint is asked


def test_seconds_of_a_run_are_in_its_records(arguments: Make, tmp_path: Path) -> None:
    """All of it but start and end; what a search's decision takes is no part of an evaluation or a step."""

    class Wait(TrainerCallback):
        def on_evaluate(self, *_: Any, **__: Any) -> None:
            time.sleep(1.0)

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.begun = self.begun if state.global_step else time.monotonic()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.monotonic() - self.begun

    common = EVALUATED | {"max_steps": 6, "logging_steps": 2, "save_strategy": "steps", "save_steps": 2}
    clock = Clock()
    train(arguments(**common), [Wait(), clock])
    history = metric_history(read_records(tmp_path / "run"))
    training = sum(2 * seconds for seconds in history["system/step_seconds"].values())
    others = [
        seconds for kind in ("eval", "pictures", "checkpoint") for seconds in history[f"system/{kind}_seconds"].values()
    ]
    assert len(others) == 9
    assert training + sum(others) + 3.0 == pytest.approx(clock.seconds, abs=0.5)


HOLDER = """
import sys, time
from psalm.train.records import RunRecords
records = RunRecords(sys.argv[1])
records.metrics(1, {"loss": 1.0})
print("holds", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Another process that writes the records of a run."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_in_use_is_refused_before_anything_is_built(
    arguments: Make, tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psalm.train.train.build_trainer", lambda args: pytest.fail("too late"))
    with pytest.raises(RecordsInUse) as refused:
        train(arguments())
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{tmp_path / 'run'} is in use: its records are written by process {holder.pid} on ")
    assert len(list(read_records(tmp_path / "run"))) == 1


def test_a_run_waits_for_a_writer_that_is_killed(
    arguments: Make, tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        holder.kill()
        holder.wait()

    monkeypatch.setattr("psalm.train.records.time.sleep", sleep)
    train(arguments(max_steps=1), wait_seconds=60.0)
    assert waited
    assert events(tmp_path / "run") == [("started", None), ("completed", 1)]


def test_a_closed_writer_s_children_do_not_keep_the_lock(tmp_path: Path) -> None:
    """Workers of a data loader are forked and have the file too."""
    records = RunRecords(tmp_path)
    with pytest.raises(RecordsInUse, match=rf"{tmp_path} is in use: .* process {os.getpid()} on "):
        RunRecords(tmp_path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent closes its end
        os._exit(0)
    records.close()
    with RunRecords(tmp_path) as again:
        again.event("started")
    os.close(writer)
    os.waitpid(child, 0)
    os.close(reader)
    RunRecords(tmp_path).close()


@pytest.mark.parametrize("end", ["failure", "stop", "completion"])
def test_the_folder_is_free_after_every_end(arguments: Make, tmp_path: Path, end: str) -> None:
    class Fail(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("of this test")

    if end == "failure":
        with pytest.raises(torch.OutOfMemoryError) as failure:
            train(arguments(), [Fail()])
        assert type(failure.value) is torch.OutOfMemoryError
        *_, last = read_records(tmp_path / "run")
        assert (last["event"], last["reason"]) == ("failed", "OutOfMemoryError: of this test")
    else:
        train(arguments(max_steps=2), [Stop("step", 1)] if end == "stop" else [])
    RunRecords(tmp_path / "run").close()


RANKS = """
import json, sys
from psalm.train.arguments import parse_settings
from psalm.train.distributed import leave_process_group
from psalm.train.records import RecordsInUse, RunRecords
from psalm.train.train import train
from transformers import TrainerCallback

class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3:
            control.should_training_stop = control.should_save = True

for job in json.load(open(sys.argv[1])):
    arguments = parse_settings(job["settings"])
    train(arguments, [Interrupt()] if job["cut"] else [], resume_from_checkpoint=True)
held = RunRecords(arguments.training.output_dir) if arguments.training.process_index == 0 else None
try:
    train(arguments)
except RecordsInUse:
    (open(f"{sys.argv[1]}.refused-{arguments.training.process_index}", "w")).close()
leave_process_group()
"""


@pytest.mark.full
@pytest.mark.parametrize("deepspeed", [None, "zero2"])
def test_two_ranks_agree_where_to_go_on_and_that_a_folder_is_in_use(
    settings: Callable[..., dict[str, Any]], tmp_path: Path, deepspeed: str | None
) -> None:
    common = EVALUATED | {"deepspeed": deepspeed, "per_device_train_batch_size": 1}
    whole, cut = (settings(output_dir=str(tmp_path / name), **common) for name in ("whole", "cut"))
    jobs = [{"settings": whole, "cut": False}, {"settings": cut, "cut": True}, {"settings": cut, "cut": False}]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    (tmp_path / "program.py").write_text(RANKS)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = subprocess.run(
        [sys.executable, *launcher, tmp_path / "program.py", tmp_path / "jobs.json"],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert events(tmp_path / "cut") == [("started", None), ("stopped", 3), ("resumed", 3), ("completed", 4)]
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    assert {path.name for path in tmp_path.glob("*.refused-*")} == {"jobs.json.refused-0", "jobs.json.refused-1"}
