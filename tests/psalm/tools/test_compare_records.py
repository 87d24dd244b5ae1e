"""A run's records against what an exported run is to give."""

import json
from pathlib import Path
from typing import Any

import pytest

from psalm.tools.compare_records import DIFFERENT, REFUSED, SAME, main
from psalm.train.records import RunRecords

TAGS = {"device": "cpu", "processor": "x, AVX2", "version.torch": "2.13.0", "data_fingerprint_val": "abc"}
EXPECTED: dict[str, Any] = {
    "run_id": "0123",
    "name": "0000 h4",
    "stopped_at": None,
    "changes": {},
    "tags": TAGS,
    "main_metrics": ["eval_pq"],
    "tolerance": {"rtol": 0.01, "atol": 2.0, "rtol_source": "default", "atol_source": "3 seeds"},
    "metrics": {"loss": [[1, 0.5], [2, 0.25]], "eval_pq": [[2, 100 / 7]]},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was begun twice, and recorded a figure of the machine."""
    with RunRecords(tmp_path / "run") as records:
        records.event("started")
        records.metrics(1, {"loss": 9.0})
        records.tags(TAGS | {"hostname": "here"})
        records.event("started")
        records.metrics(1, {"loss": 0.5, "system/step_seconds": 3.0})
        records.metrics(2, {"loss": 0.25})
        records.metrics(2, {"eval_pq": 100 / 7})
    return tmp_path / "run"


def compared(run: Path, *flags: str, **changes: Any) -> int:
    """The exit code, where these parts of what is expected are others."""
    path = run.parent / "expected.json"
    path.write_text(json.dumps(EXPECTED | changes))
    return main([str(run), str(path), *flags])


def test_equal_bit_for_bit(run: Path, capsys: Any) -> None:
    assert compared(run) == SAME
    assert "identical: 2 metrics, 3 values, equal bit for bit" in capsys.readouterr().out


def test_one_bit_is_a_difference_on_the_same_processor(run: Path, capsys: Any) -> None:
    metrics = EXPECTED["metrics"] | {"loss": [[1, 0.5000000000000001], [2, 0.25]]}
    assert compared(run, metrics=metrics) == DIFFERENT
    assert "step 1: recorded 0.5000000000000001, now 0.5" in " ".join(capsys.readouterr().out.split())
    assert compared(run, "--rtol", "0.001", metrics=metrics) == SAME
    assert "within tolerance" in capsys.readouterr().out


def test_elsewhere_the_tolerance_counts(run: Path, capsys: Any) -> None:
    tags = TAGS | {"processor": "y, AVX512"}
    metrics = EXPECTED["metrics"] | {"eval_pq": [[2, 16.0]]}
    assert compared(run, tags=tags, metrics=metrics) == SAME
    out = capsys.readouterr().out
    assert "note  processor: recorded y, AVX512, here x, AVX2" in out
    assert "within 2.00 points (3 seeds)" in out
    assert compared(run, "--atol", "1", tags=tags, metrics=metrics) == DIFFERENT


def test_settings_that_changed_leave_no_equal_bits(run: Path, capsys: Any) -> None:
    metrics = EXPECTED["metrics"] | {"loss": [[1, 0.501], [2, 0.25]]}
    assert compared(run, changes={"per_device_train_batch_size": "4 -> 2"}, metrics=metrics) == SAME
    assert "per_device_train_batch_size changed while the run was recorded: 4 -> 2" in capsys.readouterr().out


def test_a_stopped_run_is_compared_up_to_its_end(run: Path) -> None:
    assert compared(run, stopped_at=1, metrics={"loss": [[1, 0.5]]}) == SAME
    assert compared(run, stopped_at=None, metrics={"loss": [[1, 0.5]]}) == DIFFERENT


def test_other_data_are_named(run: Path, capsys: Any) -> None:
    assert compared(run, tags=TAGS | {"data_fingerprint_val": "other"}) == SAME
    assert "data fingerprint val differs: recorded other, here abc" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"metrics": {"loss": [1]}}'])
def test_a_file_that_is_another(run: Path, capsys: Any, content: str) -> None:
    (run / "expected.json").write_text(content)
    assert main([str(run), str(run / "expected.json")]) == REFUSED
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "is not what --export writes" in err


def test_what_is_not_there(run: Path, capsys: Any) -> None:
    assert main([str(run), str(run / "none.json")]) == REFUSED
    assert "No such file or directory; give the expected.json" in capsys.readouterr().err
    (run / "empty").mkdir()
    (run / "expected.json").write_text(json.dumps(EXPECTED))
    assert main([str(run / "empty"), str(run / "expected.json")]) == REFUSED
    assert "has no records.jsonl; give the folder that the run was trained in" in capsys.readouterr().err
    RunRecords(run / "empty").tags({"seed": 0})
    assert main([str(run / "empty"), str(run / "expected.json")]) == REFUSED
    assert "has recorded no metrics yet" in capsys.readouterr().err


def test_a_tolerance_below_nothing(run: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as refused:
        compared(run, "--atol", "-1")
    assert refused.value.code == REFUSED
    assert "must be a number of at least 0, but is '-1'" in capsys.readouterr().err
