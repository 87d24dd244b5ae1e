"""What a fork has of its parent before it trains: its values, and its checkpoint where that still is."""

from pathlib import Path

import pytest

from psalm.train.checkpoint_files import (
    FINAL_MODEL,
    checkpoint_folder,
    drop_checkpoints,
    fault_of,
    finish_checkpoints,
    last_good_checkpoint,
    write_manifest,
)
from psalm.train.records import RunRecords, metric_history, read_records
from tune.study.board import Fork
from tune.trials.forking import copy_checkpoint, is_saved, take_over
from tune.trials.resources import TrialResources
from tune.trials.storage import open_storage
from tune.trials.trial import TrialPlan

FILES = {"model.safetensors": b"weights", "optimizer.pt": b"moments", "trainer_state.json": b"{}"}


def save(folder: Path, step: int) -> Path:
    checkpoint = checkpoint_folder(folder, step)
    (checkpoint / "deep").mkdir(parents=True)
    names = {**FILES, "deep/state": b"more"}
    for name, content in names.items():
        (checkpoint / name).write_bytes(content)
    write_manifest(checkpoint, names)
    return checkpoint


def record(folder: Path) -> None:
    """A run to step 30 that was interrupted after step 25, and had gone on from step 20."""
    with RunRecords(folder) as records:
        records.settings({"learning_rate": 1e-3})
        records.event("started")
        for step in (10, 20, 25):
            records.metrics(step, {"loss": 9.0 - step, "system/step_seconds": 1.0})
            records.metrics(step, {"eval_pq": step + 0.5})
        records.event("resumed", step=20)
        for step in (25, 30):
            records.metrics(step, {"loss": 8.0 - step, "eval_pq": step + 0.75})


@pytest.fixture
def plan(tmp_path: Path) -> TrialPlan:
    plan = TrialPlan(tmp_path / "search", {}, TrialResources(), "eval_pq")
    record(plan.trial_folder(3))
    return plan


def test_values_up_to_the_fork_and_the_checkpoint_are_there(plan: TrialPlan) -> None:
    save(plan.trial_folder(3), 25)
    assert is_saved(plan, 3, 25)
    assert not is_saved(plan, 3, 20)
    take_over(plan, 8, Fork(3, 25))
    folder = plan.trial_folder(8)
    assert metric_history(read_records(folder)) == {
        "loss": {10: -1.0, 20: -11.0, 25: -17.0},
        "eval_pq": {10: 10.5, 20: 20.5, 25: 25.75},
    }, "what was trained twice is there as it came out last, and no seconds are"
    newest, rejected = last_good_checkpoint(folder, deepspeed=False)
    assert (newest, rejected) == (checkpoint_folder(folder, 25), [])

    with RunRecords(folder) as records:
        records.event("resumed", step=25)
        records.metrics(30, {"eval_pq": 31.0})
    take_over(plan, 8, Fork(3, 25))
    assert metric_history(read_records(folder))["eval_pq"] == {10: 10.5, 20: 20.5, 25: 25.75, 30: 31.0}, "only once"


def test_what_becomes_of_the_parents_checkpoint_does_not_matter(plan: TrialPlan) -> None:
    source = save(plan.trial_folder(3), 25)
    target = checkpoint_folder(plan.trial_folder(8), 25)
    assert copy_checkpoint(source, target)
    assert target.joinpath("optimizer.pt").stat().st_ino == source.joinpath("optimizer.pt").stat().st_ino, "no copy"
    finish_checkpoints(plan.trial_folder(3))
    assert fault_of(target) is None
    drop_checkpoints(plan.trial_folder(3))
    assert fault_of(target) is None
    assert not copy_checkpoint(source, checkpoint_folder(plan.trial_folder(9), 25))
    assert not checkpoint_folder(plan.trial_folder(9), 25).exists()


def test_without_the_checkpoint_it_begins_anew(plan: TrialPlan) -> None:
    take_over(plan, 8, Fork(3, 25))
    assert last_good_checkpoint(plan.trial_folder(8), deepspeed=False) == (None, [])
    with RunRecords(plan.trial_folder(8)) as records:
        records.event("started")
        records.metrics(10, {"eval_pq": 10.5})
    assert metric_history(read_records(plan.trial_folder(8))) == {"eval_pq": {10: 10.5}}


def test_a_fork_is_made_in_a_storage(tmp_path: Path) -> None:
    storage = open_storage(f"file://{tmp_path}/storage", "search")
    plan = TrialPlan(tmp_path / "search", {}, TrialResources(), "eval_pq", storage=storage)
    worker = tmp_path / "worker"
    record(worker)
    save(worker, 25)
    storage.push(3, worker)
    storage.fetch(3, plan.trial_folder(3))
    assert is_saved(plan, 3, 25)
    assert not is_saved(plan, 3, 20)
    take_over(plan, 8, Fork(3, 25))
    assert storage.pull(8, tmp_path / "other")
    newest, _ = last_good_checkpoint(tmp_path / "other", deepspeed=False)
    assert newest == checkpoint_folder(tmp_path / "other", 25)
    assert metric_history(read_records(tmp_path / "other"))["eval_pq"] == {10: 10.5, 20: 20.5, 25: 25.75}
    assert not (tmp_path / "other" / FINAL_MODEL).exists()
