"""Every flag of the original scripts is accepted with the values that they give it."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from psalm.train.arguments import RENAMED, RETIRED, argument_fields, parse_command_line, resolved_settings
from psalm.train.fields import SettingError

REPO = Path(__file__).resolve().parents[3]

SEED: dict[str, str] = {
    "model_name_or_path": "checkpoints/phi-1_5_dev",
    "version": "llava_phi",
    "vision_tower": "checkpoints/swin_base.pkl",
    "pretrain_mm_mlp_adapter": "checkpoints/mm_projector.bin",
    "mm_projector_type": "deformable",
    "mm_hidden_dim": "256",
    "mm_n_heads": "8",
    "mm_n_points": "4",
    "projector_outdim": "2048",
    "swin_type": "base",
    "mm_vision_select_layer": "-2",
    "mm_use_im_start_end": "False",
    "mm_use_im_patch_token": "False",
    "freeze_vision_tower": "True",
    "train_backbone": "False",
    "seg_task": "region",
    "cross_image_seg_task": "True",
    "region_mask_type": "box_visual_prompt_mask||scribble_visual_prompt_mask||point_visual_prompt_mask",
    "panoptic_json_path": "datasets/coco",
    "ref_coco_path": "datasets/refcoco/refcoco_train.json",
    "ref_coco_plus_path": "datasets/refcoco/refcoco+_train.json",
    "ref_coco_g_path": "datasets/refcoco/refcocog_train.json",
    "refcoco_image_folder": "datasets/coco/train2014",
    "region_json_path": "datasets/coco_interactive_train_psalm.json",
    "region_image_folder": "datasets/coco/train2017",
    "region_cross_json_path": "datasets/cross_image_train.json",
    "region_cross_image_folder": "datasets/coco/train2017",
    "referring_json_path": "datasets/refer_train.json",
    "referring_image_folder": "datasets/coco/train2014",
    "image_folder": "datasets/coco/train2017",
    "mmconv_path": "datasets/llava_v1_5_mix665k.json",
    "lazy_preprocess": "True",
    "model_max_length": "2048",
    "tf32": "True",
    "fp16": "True",
    "bf16": "False",
    "output_dir": "runs/psalm",
    "num_train_epochs": "10",
    "per_device_train_batch_size": "4",
    "per_device_eval_batch_size": "4",
    "gradient_accumulation_steps": "1",
    "evaluation_strategy": "no",
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": "5000",
    "save_total_limit": "1",
    "learning_rate": "6e-5",
    "weight_decay": "0.",
    "warmup_ratio": "0.03",
    "lr_scheduler_type": "cosine",
    "logging_steps": "1",
    "gradient_checkpointing": "True",
    "dataloader_num_workers": "4",
    "report_to": "none",
    "deepspeed": "experiments/deepspeed/zero2.json",
}
WITHOUT_EFFECT = [
    "version",
    "mm_vision_select_layer",
    "mm_use_im_start_end",
    "mm_use_im_patch_token",
    "freeze_vision_tower",
    "mmconv_path",
    "lazy_preprocess",
    "model_max_length",
]
WITH_EFFECT = [flag for flag in SEED if flag not in WITHOUT_EFFECT]


def words(*flags: str) -> list[str]:
    return [word for flag in flags for word in (f"--{flag}", SEED[flag])]


@pytest.mark.parametrize("flag", [flag for flag in SEED if flag != "deepspeed"])
def test_flag_is_accepted(flag: str) -> None:
    """Alone; DeepSpeed starts a process group and is tried below, in a process of its own."""
    parse_command_line(words(flag))


@pytest.mark.parametrize("flag", WITH_EFFECT)
def test_flag_has_an_effect(flag: str) -> None:
    name = RENAMED.get(flag, flag)
    assert name in argument_fields()
    if flag != "deepspeed":
        resolved = resolved_settings(parse_command_line(words(flag)))
        expected = argument_fields()[name].check(SEED[flag])
        assert resolved[name] in ((True, None) if flag == "tf32" else (expected,))


def test_whole_script_at_once() -> None:
    """With deepspeed, and every flag in one command line."""
    program = (
        "import json, sys; from psalm.train.arguments import parse_command_line, resolved_settings; "
        "print(json.dumps(resolved_settings(parse_command_line(sys.argv[1:]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words(*SEED)], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert done.returncode == 0, done.stderr
    resolved = json.loads(done.stdout.splitlines()[-1])
    assert resolved["deepspeed"] == json.loads((REPO / SEED["deepspeed"]).read_text())
    assert resolved["eval_strategy"] == "no"
    assert resolved["vision_tower"] == str(REPO / SEED["vision_tower"])
    warnings = [line for line in done.stderr.splitlines() if "no effect" in line]
    assert warnings == [", ".join(f"--{flag}" for flag in SEED if flag in WITHOUT_EFFECT) + ": no effect any more"]


def test_flags_without_effect_are_named_once_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    assert set(WITHOUT_EFFECT) <= RETIRED
    assert RETIRED.isdisjoint(argument_fields())
    with caplog.at_level(logging.WARNING):
        parse_command_line([*words(*WITHOUT_EFFECT), "--version", "v1", "--learning_rate", "1e-3"])
    names = ", ".join(f"--{flag}" for flag in WITHOUT_EFFECT)
    assert [record.getMessage() for record in caplog.records] == [f"{names}: no effect any more"]


def test_flags_with_an_effect_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        parse_command_line(words("learning_rate", "evaluation_strategy"))
    assert caplog.records == []


@pytest.mark.parametrize("value", ["no", "steps"])
def test_evaluation_strategy_is_the_old_name_of_eval_strategy(tmp_path: Path, value: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"evaluation_strategy: '{value}'\n")
    for argv in (["--evaluation_strategy", value], ["--config", str(config)]):
        arguments: Any = parse_command_line(argv)
        assert arguments.training.eval_strategy == value


def test_wrong_value_of_an_old_name_is_told_under_the_new_one() -> None:
    with pytest.raises(SettingError, match=r"^eval_strategy must be one of no, steps, but got 'epochs'"):
        parse_command_line(["--evaluation_strategy", "epochs"])
