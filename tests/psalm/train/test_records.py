"""Records survive torn writes, are numbered, and forget what a resumed run repeats."""

import errno
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from psalm.train.records import RunRecords, metric_history, read_records


def test_numbered_and_read_after(tmp_path: Path) -> None:
    records = RunRecords(tmp_path)
    records.settings({"learning_rate": 1e-3, "swin_type": "base"})
    records.metrics(5, {"loss": 1.5})
    records.event("completed", step=5)
    assert [(r["n"], r["kind"]) for r in read_records(tmp_path)] == [(0, "settings"), (1, "metrics"), (2, "event")]
    assert [r["n"] for r in read_records(tmp_path, after=0)] == [1, 2]
    assert next(read_records(tmp_path))["values"] == {"learning_rate": 1e-3, "swin_type": "base"}


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_torn_line_is_cut_and_numbering_goes_on(tmp_path: Path, cut: int) -> None:
    records = RunRecords(tmp_path)
    records.metrics(1, {"loss": 1.0})
    records.metrics(2, {"loss": 2.0})
    records.close()
    records.path.write_bytes(records.path.read_bytes()[:-cut])

    assert [r["step"] for r in read_records(tmp_path)] == [1], "a reader must not see half a line"
    reopened = RunRecords(tmp_path)
    reopened.metrics(3, {"loss": 3.0})
    assert [(r["n"], r["step"]) for r in read_records(tmp_path)] == [(0, 1), (1, 3)]


def test_float_values_come_back_exactly(tmp_path: Path) -> None:
    value = math.pi * 1e-17
    RunRecords(tmp_path).metrics(1, {"loss": value})
    assert next(read_records(tmp_path))["values"]["loss"] == value


def test_values_that_are_not_finite_are_named_not_written(tmp_path: Path) -> None:
    RunRecords(tmp_path).metrics(1, {"grad_norm": math.inf, "loss": 2.0})
    text = (tmp_path / "records.jsonl").read_text()
    assert "Infinity" not in text
    assert json.loads(text)["not_finite"] == ["grad_norm"]
    assert json.loads(text)["values"] == {"loss": 2.0}


def test_altered_file_is_noticed(tmp_path: Path) -> None:
    records = RunRecords(tmp_path)
    for step in range(3):
        records.metrics(step, {"loss": 1.0})
    lines = records.path.read_text().splitlines(keepends=True)
    records.path.write_text(lines[0] + lines[2])
    with pytest.raises(ValueError, match=r"line 2 has number 2 instead of 1"):
        list(read_records(tmp_path))


def test_artifact_is_relative(tmp_path: Path) -> None:
    records = RunRecords(tmp_path)
    records.artifact(tmp_path / "artifacts" / "curves.png", folder="plots")
    record = next(read_records(tmp_path))
    assert (record["path"], record["folder"]) == ("artifacts/curves.png", "plots")


def test_history_drops_steps_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    records = RunRecords(tmp_path)
    for step in (10, 20, 30):
        records.metrics(step, {"loss": float(step), "system/step_seconds": 0.1})
    records.event("resumed", step=10)
    records.metrics(20, {"loss": 21.0})
    assert metric_history(read_records(tmp_path)) == {"loss": {10: 10.0, 20: 21.0}, "system/step_seconds": {10: 0.1}}


def test_history_begins_anew_with_a_start(tmp_path: Path) -> None:
    records = RunRecords(tmp_path)
    records.metrics(0, {"eval_pq": 1.0})
    records.event("started")
    records.metrics(2, {"loss": 2.0})
    assert metric_history(read_records(tmp_path)) == {"loss": {2: 2.0}}


def test_missing_file_reads_as_nothing(tmp_path: Path) -> None:
    assert list(read_records(tmp_path)) == []


def test_a_record_without_room_leaves_nothing_behind(
    tmp_path: Path, file_size_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    """The disk takes some bytes of it first."""
    with RunRecords(tmp_path) as records:
        records.metrics(1, {"loss": 1.0})
        before = records.path.read_bytes()
        with file_size_limit(len(before) + 20), pytest.raises(OSError, match="nothing of the record is") as error:
            records.metrics(2, {"loss": 2.0})
        assert error.value.errno == errno.EFBIG
        assert error.value.filename == str(records.path)
        assert records.path.read_bytes() == before
        records.metrics(3, {"loss": 3.0})
    assert [(r["n"], r["step"]) for r in read_records(tmp_path)] == [(0, 1), (1, 3)]
