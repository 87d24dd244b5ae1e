"""What fills the model is told file by file; what does not fit is a problem."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from psalm.doctor.findings import Status
from psalm.doctor.surroundings import Device
from psalm.doctor.weights import check_projector, check_weights, only, report_findings
from psalm.model.key_report import KeyReport
from psalm.model.weight_files import open_weights
from psalm.train.trainer import PsalmTrainer

Settings = Callable[..., dict[str, Any]]
Build = Callable[..., tuple[PsalmTrainer, dict[str, Any]]]
CPU = Device("cpu", 2**40)


def test_every_file_is_told(values: Settings, tower: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.fc.bias": torch.zeros(96), "vision_tower.x": torch.zeros(1)}, adapter)
    _, found = check_weights(values(pretrain_mm_mlp_adapter=str(adapter)), ["panoptic"], CPU, str(tmp_path / "run"))
    texts = [finding.text for finding in found]
    assert texts[0].endswith(" of them trained")
    assert texts[1] == "language model: random weights (builtin); --model_name_or_path DIR takes a trained one"
    assert texts[2] == f"{tower / 'model.safetensors'}: 1 names matched, 1 not expected (criterion.empty_weight)"
    assert texts[3].endswith(" more")
    assert texts[4] == f"{adapter}: 1 names matched, 1 not expected (vision_tower.x)"
    assert "names missing, left at initial values: model.mm_projector.fc.weight, " in texts[5]
    kinds = [Status.OK, Status.ADVICE, Status.OK, Status.ADVICE, Status.OK, Status.ADVICE]
    assert [finding.status for finding in found] == kinds


def test_no_file_is_read_again_to_tell_of_it(values: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, opened = tmp_path / "mm_projector.bin", []
    torch.save({"model.mm_projector.fc.bias": torch.zeros(96)}, adapter)
    monkeypatch.setattr(
        "psalm.model.projector_weights.open_weights", lambda path: opened.append(path) or open_weights(path)
    )
    check_weights(values(pretrain_mm_mlp_adapter=str(adapter)), ["panoptic"], CPU, str(tmp_path / "run"))
    assert opened == [adapter]


def test_names_are_counted_and_shortened() -> None:
    report = KeyReport(Path("/a/tower/model.safetensors"), ("x",), ("u",), ("a", "b", "c", "d", "e"), ("i", "j"))
    matched, missing = report_findings(report)
    assert (matched.status, missing.status) == (Status.OK, Status.ADVICE)
    assert matched.text == "/a/tower/model.safetensors: 1 names matched, 2 computed instead, 1 not expected (u)"
    assert missing.text == "tower/model.safetensors: 5 names missing, left at initial values: a, b, c and 2 more"


def test_a_file_that_fills_nothing_is_worth_a_word() -> None:
    (finding,) = report_findings(KeyReport(Path("/a/b"), (), ("u",), (), ()))
    assert (finding.status, finding.text) == (Status.ADVICE, "/a/b: 0 names matched, 1 not expected (u)")


def test_shapes_that_do_not_fit_are_a_problem(values: Settings, tower: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((tower / "config.json").read_text())
    save_file({"sem_seg_head.predictor.decoder_norm.bias": torch.zeros(7)}, other / "model.safetensors")
    trainer, (finding,) = check_weights(values(vision_tower=str(other)), ["panoptic"], CPU, str(tmp_path / "run"))
    assert trainer is None
    assert finding.status is Status.PROBLEM
    assert finding.text == (
        f"{other / 'model.safetensors'}: sem_seg_head.predictor.decoder_norm.bias is [7] there, but [32] in the model"
    )


def test_a_file_that_is_damaged_is_a_problem(values: Settings, tower: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tower / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    trainer, (finding,) = check_weights(values(vision_tower=str(tmp_path)), ["panoptic"], CPU, str(tmp_path / "run"))
    assert trainer is None
    assert finding.status is Status.PROBLEM


def test_a_model_that_the_device_cannot_hold_is_a_problem(values: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("psalm.doctor.weights.build_trainer", fail)
    trainer, (finding,) = check_weights(values(), ["panoptic"], CPU, "run")
    assert trainer is None
    assert finding.status is Status.PROBLEM
    assert finding.text.startswith("the model alone does not fit into the device's memory: ")


def test_deepspeed_is_left_out(build: Build) -> None:
    trainer, _ = build(deepspeed="zero3")
    assert not trainer.is_deepspeed_enabled


def test_a_run_can_be_narrowed_to_some_of_its_tasks(values: Settings) -> None:
    settings = values(seg_task="panoptic,region", cross_image_seg_task=True, data_ratio="panoptic=2,region=3")
    assert only(("panoptic", "cross_image"), settings) == {
        "seg_task": "panoptic,cross_image",
        "cross_image_seg_task": False,
        "data_ratio": "panoptic=2",
    }


def test_the_projector_of_the_model_is_named(build: Build) -> None:
    (finding,) = check_projector(build()[0].model)
    assert (finding.status, finding.text) == (
        Status.OK,
        "MultiScaleDeformableCrossAttentionAlignment is on: n_levels=4, n_heads=2, n_points=2",
    )
    (finding,) = check_projector(build(mm_projector_type="swin_conv")[0].model)
    assert (finding.status, finding.text) == (
        Status.ADVICE,
        "SwinConvProjector: the deformable module is off: --mm_projector_type deformable",
    )


def test_a_language_model_with_weights_is_named(values: Settings, tmp_path: Path) -> None:
    from transformers import PhiConfig, PhiForCausalLM

    from psalm.model.weight_files import BUILTIN_FOLDER

    folder = tmp_path / "phi"
    config = json.loads((BUILTIN_FOLDER / "phi" / "config.json").read_text())
    PhiForCausalLM(PhiConfig(**config)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BUILTIN_FOLDER / "phi" / name).read_bytes())
    _, found = check_weights(values(model_name_or_path=str(folder)), ["panoptic"], CPU, str(tmp_path / "run"))
    assert (found[1].status, found[1].text) == (Status.OK, f"language model: loaded from {folder}")
    matched = f"{folder}: 31 names matched, 2 not expected (lm_head.bias, lm_head.weight)"
    assert (found[2].status, found[2].text) == (Status.OK, matched)
