"""Where a search's time went, counted from records of known seconds."""

from pathlib import Path

import pytest

from psalm.train.records import RunRecords, read_records
from tune.costs import Work, cost_objectives, costs, work_of
from tune.study.board import Board, Status, trial_folder


def train(records: RunRecords, steps: range, seconds: float) -> None:
    for step in steps:
        records.metrics(step, {"loss": 1.0, "system/step_seconds": seconds})


def test_steps_that_were_run_twice_count_twice(tmp_path: Path) -> None:
    with RunRecords(tmp_path) as records:
        records.event("started")
        train(records, range(10, 41, 10), 0.5)  # 40 steps
        records.metrics(40, {"eval_pq": 3.0, "system/eval_seconds": 7.0})
        records.metrics(40, {"system/checkpoint_seconds": 2.0})
        train(records, range(50, 61, 10), 0.5)  # 20 steps; then it was killed
        records.event("resumed", step=40)
        train(records, range(50, 71, 10), 0.25)  # 30 steps
        records.metrics(70, {"eval_pq": 4.0, "system/eval_seconds": 5.0})
    assert work_of(read_records(tmp_path)) == Work(30 + 7.5, 12.0, 2.0)


def test_a_run_that_started_again_counts_from_its_first_step(tmp_path: Path) -> None:
    with RunRecords(tmp_path) as records:
        records.event("started")
        train(records, range(10, 31, 10), 1.0)
        records.event("started")
        train(records, range(10, 21, 10), 1.0)
    assert work_of(read_records(tmp_path)).training == 50


def test_costs_are_those_of_the_steps_that_count(tmp_path: Path) -> None:
    """Of a resumed run: without what it did twice; the median leaves out that the first log has the start in it."""
    with RunRecords(tmp_path) as records:
        records.tags({"parameters": 900, "trainable_parameters": 70})
        records.event("started")
        for step, seconds, memory in ((1, 5.0, 512.0), (2, 0.2, 2048.0), (3, 9.0, 9000.0)):
            records.metrics(step, {"loss": 1.0, "system/step_seconds": seconds, "system/peak_memory_mb": memory})
        records.event("resumed", step=2)
        records.metrics(3, {"loss": 1.0, "system/step_seconds": 0.3, "system/peak_memory_mb": 1024.0})
    assert cost_objectives(list(read_records(tmp_path))) == {"step_ms": 300.0, "parameters": 70.0, "peak_memory": 2.0}
    assert cost_objectives([]) == {}


def test_all_that_could_have_been_used_is_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board("s", "eval_pq", "max", 100, 2, started=1000.0)
    for number in range(2):
        board.add(number, {})
        board.start(number, 1010.0)
        board.finish(number, Status.COMPLETED, 1070.0 + 10 * number)
        with RunRecords(trial_folder(tmp_path, number)) as records:
            records.event("started")
            train(records, range(50, 101, 50), 0.25)  # 25 s
            records.metrics(100, {"eval_pq": 1.0, "system/eval_seconds": 8.0})
            records.metrics(100, {"system/checkpoint_seconds": 1.0})
    board.conclude(1100.0)
    seconds = costs(board, tmp_path, concurrency=2)
    assert seconds == {
        "wall": 100.0,
        "concurrency": 2,
        "trials": 130.0,
        "startup": 130.0 - 2 * 34,
        "training": 50.0,
        "evaluation": 16.0,
        "checkpointing": 2.0,
        "waiting": 70.0,
        "overhead_per_trial": (200 - 66) / 2,
    }
    kinds = ("startup", "training", "evaluation", "checkpointing", "waiting")
    assert sum(seconds[kind] for kind in kinds) == seconds["wall"] * 2


def test_a_search_without_trials_has_no_costs_but_time(tmp_path: Path) -> None:
    board = Board("s", "eval_pq", "max", 100, 2, started=1000.0)
    board.conclude(1005.0)
    seconds = costs(board, tmp_path, concurrency=1)
    assert (seconds["wall"], seconds["trials"], seconds["waiting"]) == (5.0, 0.0, 5.0)
