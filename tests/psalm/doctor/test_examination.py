"""The whole examination: a good set-up, and what a fault hides and what not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from psalm.doctor.examination import CHECKS, Found, examine
from psalm.doctor.findings import Status, count
from psalm.doctor.settings import Request
from psalm.doctor.surroundings import Device

Settings = Callable[..., dict[str, Any]]
ALL_TASKS = {"seg_task": "panoptic,semantic,instance,referring,region", "cross_image_seg_task": True}


def unchecked(found: Found) -> dict[str, str]:
    """Checks that were left out as a whole, and what they say instead."""
    return {name: findings[0].text for name, findings in found.items() if findings[0].status is Status.NOT_CHECKED}


def test_a_good_set_up_passes_every_check_and_leaves_nothing_behind(given: Settings, tmp_path: Path) -> None:
    noted: list[str] = []
    found = examine(Request(given(**ALL_TASKS, data_ratio="region=2", bf16=True, deepspeed="zero2")), 2, noted.append)
    assert tuple(found) == CHECKS
    assert all(found.values())
    assert count(found, Status.PROBLEM) == count(found, Status.NOT_CHECKED) == 0
    assert len(found["files"]) == 7
    assert "gradients are finite" in found["batch"][-1].text
    assert noted[:2] == ["files and data", "building the model"]
    assert list(tmp_path.iterdir()) == [], "not even the run's folder"


def test_the_memory_that_a_run_needs_is_compared_with_what_is_free(
    given: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Device("cpu", 5 * 2**20)  # enough for weights and gradients, too little for the optimizer
    monkeypatch.setattr("psalm.doctor.examination.check_device", lambda values, count: (small, []))
    (finding,) = examine(Request(given()))["memory"]
    assert finding.status is Status.PROBLEM
    assert "but 5 MiB are free: --gradient_checkpointing True; " in finding.text


def test_wrong_settings_leave_only_what_needs_none(given: Settings) -> None:
    found = examine(Request(given(mm_n_heads=3)))
    assert count(found, Status.PROBLEM) == 1
    assert unchecked(found) == dict.fromkeys(CHECKS[2:], "see settings")


def test_precision_that_the_device_lacks_does_not_hide_files(given: Settings) -> None:
    found = examine(Request(given(fp16=True)))
    assert count(found, Status.PROBLEM) == 1
    assert found["files"][0].status is Status.OK
    assert unchecked(found) == dict.fromkeys(CHECKS[4:], "see device")


def test_data_of_one_task_do_not_hide_the_other(given: Settings, tmp_path: Path) -> None:
    request = Request(given(seg_task="panoptic,region", region_json_path=str(tmp_path / "no"), data_ratio="region=2"))
    found = examine(request)
    assert count(found, Status.PROBLEM) == 1
    assert [finding.status for finding in found["files"]] == [Status.OK, Status.PROBLEM]
    assert [finding.status for finding in found["batch"]] == [Status.OK, Status.OK, Status.NOT_CHECKED]
    assert found["batch"][-1].text == "region: see files"


def test_without_any_data_there_is_no_model(given: Settings, tmp_path: Path) -> None:
    found = examine(Request(given(panoptic_json_path=str(tmp_path / "no"))))
    assert count(found, Status.PROBLEM) == 1
    assert unchecked(found) == dict.fromkeys(CHECKS[4:], "see files")


def test_weights_that_do_not_fit_leave_the_rest_unchecked(given: Settings, tmp_path: Path) -> None:
    (tmp_path / "bad.bin").write_bytes(b"no tensors")
    found = examine(Request(given(pretrain_mm_mlp_adapter=str(tmp_path / "bad.bin"))))
    assert count(found, Status.PROBLEM) == 1
    assert "bad.bin is truncated, or not a pickle of plain values" in found["weights"][0].text
    assert unchecked(found) == dict.fromkeys(CHECKS[5:], "see weights")


def test_state_that_deepspeed_moves_away_is_not_estimated(given: Settings) -> None:
    config = '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}'
    (finding,) = examine(Request(given(deepspeed=config)))["memory"]
    assert finding.status is Status.ADVICE
    assert finding.text.startswith("not estimated")
