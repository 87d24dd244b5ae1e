"""DeepSpeed's configuration, the run's folder, and the data of each task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.integrations.deepspeed import deepspeed_config

from psalm.data.builtin import ensure_builtin
from psalm.doctor.files import check_checkpoint, check_deepspeed, check_files, check_output
from psalm.doctor.findings import Status
from psalm.train.arguments import SettingError, check_inputs
from psalm.train.checkpoint_files import write_manifest

Settings = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_file_that_is_no_json_object_is_refused_as_by_the_training(
    given: Settings, values: Settings, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "zero.json"
    path.write_text(text)
    with pytest.raises(SettingError):
        check_inputs(given(deepspeed=str(path)))
    (finding,) = check_deepspeed(values(deepspeed=str(path)), 1)
    assert finding.status is Status.PROBLEM
    assert finding.text.startswith("deepspeed must be ")
    assert str(path) in finding.text


def test_the_projects_configurations_contradict_nothing(values: Settings) -> None:
    for stage in (2, 3):
        (finding,) = check_deepspeed(values(deepspeed=f"zero{stage}", bf16=True), 8)
        assert (finding.status, finding.text) == (Status.OK, f"DeepSpeed: ZeRO stage {stage}")
    assert deepspeed_config() is None, "transformers must not think that DeepSpeed is on"


def test_deepspeed_must_be_installed_where_it_is_asked_for(values: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psalm.doctor.files.find_spec", lambda name: None)
    (finding,) = check_deepspeed(values(deepspeed="zero2"), 1)
    assert finding.status is Status.PROBLEM
    assert finding.text.startswith("deepspeed is given, but the package is not installed; ")
    assert check_deepspeed(values(), 1) == []


def test_a_contradiction_names_both_sides(values: Settings) -> None:
    config = {"train_batch_size": 16, "bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    (finding,) = check_deepspeed(values(deepspeed=json.dumps(config)), 4)
    assert finding.status is Status.PROBLEM
    assert finding.text == (
        "DeepSpeed's configuration contradicts settings: train_batch_size=16 against train_batch_size "
        "(calculated)=8; bf16.enabled=True against bf16|bf16_full_eval=False; write auto there"
    )
    (finding,) = check_deepspeed(values(deepspeed=json.dumps(config), bf16=True), 8)
    assert finding.status is Status.OK, "2 samples on each of 8 devices"


def test_an_output_folder_that_cannot_be_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (finding,) = check_output(str(tmp_path / "file" / "run"))
    assert (finding.status, finding.text) == (
        Status.PROBLEM,
        f"output_dir must be a folder, but {tmp_path / 'file'} is a file; choose another one",
    )
    assert check_output(str(tmp_path / "a" / "b")) == []
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_is_looked_at(tmp_path: Path) -> None:
    run: dict[str, Any] = {"output_dir": str(tmp_path), "deepspeed": None}
    checkpoint = tmp_path / "checkpoint-7"
    checkpoint.mkdir()
    (finding,) = check_checkpoint(str(checkpoint), run)
    assert finding.status is Status.PROBLEM
    assert finding.text.startswith("resume_from_checkpoint must be a checkpoint's folder, but ")
    (checkpoint / "trainer_state.json").write_text('{"global_step": 7}')
    (checkpoint / "optimizer.pt").write_text("")
    write_manifest(checkpoint, ["trainer_state.json", "optimizer.pt"])
    (finding,) = check_checkpoint(str(checkpoint), run)
    assert (finding.status, finding.text) == (Status.OK, f"goes on after step 7 of {checkpoint}")
    (finding,) = check_checkpoint("True", run)
    assert (finding.status, finding.text) == (Status.OK, f"goes on from {checkpoint}")
    (checkpoint / "optimizer.pt").write_text("damaged")
    rejected, finding = check_checkpoint("True", run)
    assert "optimizer.pt" in rejected.text
    assert (finding.status, finding.text) == (Status.OK, "starts anew: there is no checkpoint")
    (finding,) = check_checkpoint(str(checkpoint), run | {"output_dir": str(tmp_path / "other")})
    assert finding.status is Status.PROBLEM
    assert "only the run's own is trusted" in finding.text


def test_every_task_is_counted_and_one_tasks_fault_hides_no_other(values: Settings, data: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "no.json")
    settings = values(seg_task="panoptic,region,semantic", region_json_path=missing)
    tasks, found = check_files(settings, None, 1)
    assert tasks == ("panoptic", "semantic")
    val = data / "annotations" / "panoptic_val2017.json"
    assert [(finding.status, finding.text) for finding in found] == [
        (Status.OK, f"panoptic: 12 samples; validation: 5 samples ({val})"),
        (Status.OK, f"semantic: 12 samples; validation: 5 samples ({val})"),
        (Status.PROBLEM, f"region: region_json_path: {missing} does not exist"),
    ]


def test_bad_images_are_a_problem_or_left_out(values: Settings, tmp_path: Path) -> None:
    root = ensure_builtin(tmp_path / "data", train_images=4, val_images=2)
    first, second, *_ = sorted((root / "train2017").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    _, (finding,) = check_files(values(panoptic_json_path=str(root)), None, 1)
    assert finding.status is Status.PROBLEM
    assert f"{first} is missing (2 of 4 samples" in finding.text
    tasks, found = check_files(values(panoptic_json_path=str(root), skip_bad_images=True), None, 1)
    assert tasks == ("panoptic",)
    assert (found[-1].status, found[-1].text) == (
        Status.ADVICE,
        f"panoptic: 2 bad images left out of training: {first.name}, {second.name}",
    )
