"""What a user gets wrong is refused in one line; what is right comes out the same from every way in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from psalm.model.configuration import PsalmConfig
from psalm.train.arguments import (
    OF_THE_DISK,
    SettingError,
    argument_fields,
    check_inputs,
    check_setting,
    check_settings,
    parse_command_line,
    parse_settings,
    resolved_settings,
)

REPO = Path(__file__).resolve().parents[3]
Settings = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mm_n_point", 4, "mm_n_point is not an argument (its value is 4); did you mean 'mm_n_points'?"),
        ("mm_n_points", 2.5, "mm_n_points must be a whole number, but got 2.5; change its type"),
        ("mm_n_points", True, "mm_n_points must be a whole number, but got true; change its type"),
        ("mm_n_points", "many", "mm_n_points must be a whole number, but got 'many'; change its type"),
        ("mm_n_points", 0, "mm_n_points must be at least 1, but got 0; choose another value"),
        ("learning_rate", 0, "learning_rate must be greater than 0, but got 0; choose another value"),
        ("learning_rate", "nan", "learning_rate must be a number, but got 'nan'; change its type"),
        ("learning_rate", [1e-3], "learning_rate must be a number, but got [0.001]; change its type"),
        ("offset_lr_multiplier", 0, "offset_lr_multiplier must be greater than 0, but got 0; choose another value"),
        ("backbone_lr_multiplier", -1.0, "backbone_lr_multiplier must be greater than 0, but got -1; choose another"),
        ("learning_rate_changes", "50", "learning_rate_changes must map global steps to learning rates, as in {50: 3"),
        ("learning_rate_changes", "{50: ", "learning_rate_changes must map global steps to learning rates, as in {50"),
        ("learning_rate_changes", {0: 1e-3}, "learning_rate_changes must name each global step once, as a whole numbe"),
        ("learning_rate_changes", {2.5: 1e-3}, "learning_rate_changes must name each global step once, as a whole nu"),
        ("learning_rate_changes", {5: 1, "5": 1}, "learning_rate_changes must name each global step once, as a whole"),
        ("learning_rate_changes", {5: 0}, "learning_rate_changes must be learning rates above 0, but got 0 at step "),
        ("learning_rate_changes", {5: True}, "learning_rate_changes must be learning rates above 0, but got True at "),
        ("warmup_ratio", 1.5, "warmup_ratio must be at least 0 and at most 1, but got 1.5; choose another value"),
        ("bf16", 1, "bf16 must be true or false, but got 1; change its type"),
        ("swin_type", "bass", "swin_type must be one of tiny, small, base, large, but got 'bass'; did you mean 'base'"),
        ("seed", None, "seed must have a value, but got none; give a whole number"),
        ("max_steps", 0, "max_steps must be at least 1, or -1, but got 0; choose another value"),
        ("eval_steps", 2.5, "eval_steps must be greater than 0, and whole from 1 on, but got 2.5; choose"),
        ("eval_strategy", "epoch", "eval_strategy must be one of no, steps, but got 'epoch'; choose one of them"),
        ("output_dir", 3, "output_dir must be text, but got 3; change its type"),
        ("deepspeed", "zro2", "deepspeed must be a JSON file or a name, but there is no file 'zro2'; did you mean 'ze"),
        ("hub_token", "secret", "hub_token is not an argument"),
        ("seg_task", "panoptics", "seg_task must be one or more of panoptic, semantic, instance, referring, region, "),
        ("data_ratio", "panoptic", "data_ratio must name each task once with its weight, as in panoptic=1,region=2, b"),
        ("region_mask_type", "circle", "region_mask_type: visual prompts must be some of point_visual_prompt_mask||"),
        ("region_mask_type", None, "region_mask_type must have a value, but got none; give text"),
        ("refer_expressions", "all", "refer_expressions must be one of each, joined, but got 'all'; choose one of th"),
        ("image_size", 16, "image_size must be at least 32, but got 16; choose another value"),
    ],
)  # fmt: skip
def test_wrong_value_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(SettingError) as error:
        check_setting(name, value)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", "1e-3", 1e-3),
        ("learning_rate", 1, 1.0),
        ("mm_n_points", "8", 8),
        ("bf16", "yes", True),
        ("bf16", "False", False),
        ("eval_steps", "20", 20),
        ("save_steps", 0.1, 0.1),
        ("image_folder", "none", None),
        ("report_to", "none", "none"),
        ("lr_scheduler_kwargs", '{"num_cycles": 2}', {"num_cycles": 2}),
        ("learning_rate_changes", '{"100":6e-4, "50": 0.001}', {"50": 0.001, "100": 6e-4}),
        ("learning_rate_changes", "{100: 6e-4, 50: 1}", {"50": 1.0, "100": 6e-4}),
        ("learning_rate_changes", {}, None),
        ("learning_rate_changes", "none", None),
        ("vision_tower", "builtin", "builtin"),
        ("panoptic_json_path", "data/coco", str(Path.cwd() / "data" / "coco")),
        ("deepspeed", "zero2", str(REPO / "experiments" / "deepspeed" / "zero2.json")),
        ("deepspeed", "none", None),
        ("seg_task", ["region", "panoptic"], "panoptic,region"),
        ("seg_task", "none", None),
        ("data_ratio", {"region": 2, "panoptic": 1}, "panoptic=1,region=2"),
        ("region_mask_type", "box||mask", "box_visual_prompt_mask||mask_visual_prompt_mask"),
        ("region_json_path", "data/r.json", str(Path.cwd() / "data" / "r.json")),
        ("eval_region_image_folder", "~/images", str(Path.home() / "images")),
    ],
)
def test_right_value_is_normalised(name: str, value: Any, expected: Any) -> None:
    actual = check_setting(name, value)
    assert actual == expected
    assert type(actual) is type(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mm_hidden_dim": 64, "mm_n_heads": 7}, "mm_hidden_dim must be divisible by mm_n_heads, but got 64 and 7"),
        ({"mm_n_heads": 7}, "mm_hidden_dim must be divisible by mm_n_heads, but got 256 and 7"),
        ({"fp16": True, "bf16": True}, "fp16 and bf16 must not both be true"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor needs dataloader_num_workers of at least 1"),
        ({"tune_mm_mlp_adapter": True, "train_backbone": True}, "tune_mm_mlp_adapter trains nothing but"),
        (
            {"seg_task": "panoptic", "data_ratio": "panoptic=2,region=1"},
            "data_ratio must name tasks of the run, which are panoptic, but got region; drop it, or add it to seg_task",
        ),
    ],
)
def test_wrong_combination_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as error:
        check_settings(settings)
    assert str(error.value).startswith(message)


def test_deepspeed_must_say_what_it_shards() -> None:
    with pytest.raises(SettingError, match=r"^deepspeed must have a section zero_optimization, but has none; add "):
        check_settings({"deepspeed": {"train_batch_size": "auto"}})


@pytest.mark.parametrize("name", ["offset_lr_multiplier", "backbone_lr_multiplier"])
def test_an_optimizer_of_deepspeed_would_ignore_multipliers(tmp_path: Path, name: str) -> None:
    content = {"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 2}}
    file = tmp_path / "own.json"
    file.write_text(json.dumps(content))
    for deepspeed in (content, str(file)):
        with pytest.raises(SettingError) as error:
            check_settings({name: 0.1, "deepspeed": deepspeed})
        assert str(error.value) == (
            f"{name} must be 1 where DeepSpeed's configuration has an optimizer, which would ignore it, but got 0.1; "
            "take the section 'optimizer' out of the configuration"
        )
        check_settings({name: 1, "deepspeed": deepspeed})
    check_settings({name: 0.1, "deepspeed": "zero2"})


def test_variables_that_are_not_set_are_refused_before_anything_is_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PHI_1_5", "COCO"):
        monkeypatch.delenv(name, raising=False)
    given = settings(deepspeed="zero2", panoptic_json_path="${COCO}", model_name_or_path="$PHI_1_5", vision_tower="/no")
    with pytest.raises(SettingError) as error:
        check_inputs(given)
    assert str(error.value) == (
        "not set in the environment: PHI_1_5 (model_name_or_path), COCO (panoptic_json_path); export them"
    )


def test_inputs(settings: Settings, tmp_path: Path, small_data: Path) -> None:
    check_inputs(settings())
    broken = tmp_path / "broken"
    (broken / "annotations").mkdir(parents=True)
    for split in ("train2017", "annotations/panoptic_train2017"):
        (broken / split).mkdir()
    (broken / "annotations" / "panoptic_train2017.json").write_text('{"images": []}')
    not_json = tmp_path / "zero.json"
    not_json.write_text("{")
    no = tmp_path / "no"
    for changes, message in (
        ({"projector_outdim": 77}, "projector_outdim must be the LLM's hidden size 96, but got 77"),
        ({"vision_tower": str(no)}, "vision_tower must be 'builtin' or a folder"),
        ({"model_name_or_path": str(no)}, "model_name_or_path must be 'builtin' or a folder"),
        ({"swin_type": "large"}, "swin_type is large, but "),
        ({"panoptic_json_path": str(no)}, f"panoptic data: panoptic_json_path: {no} is not a folder: "),
        (
            {"panoptic_json_path": str(broken)},
            f"panoptic data: panoptic_json_path: {broken}/annotations/panoptic_train",
        ),
        ({"seg_task": "region", "region_json_path": str(no)}, f"region data: region_json_path: {no} does not exist"),
        (
            {"seg_task": "panoptic,instance", "instance_json_path": str(not_json)},
            f"instance data: instance_json_path: {not_json} is not JSON: ",
        ),
        (
            {"cross_image_seg_task": True, "panoptic_json_path": str(broken)},
            f"cross_image data: region_cross_json_path must be given for the task cross_image: {broken} has no ",
        ),
        ({"deepspeed": str(not_json)}, "deepspeed must be JSON, but "),
        ({"conv_dim": 33}, "conv_dim must be a multiple of num_heads, but got 33 and 2"),
        ({"fp16": True, "use_cpu": True}, "fp16 must be false on a CPU"),
    ):
        with pytest.raises(SettingError) as error:
            check_inputs(settings(**changes))
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)


def test_defaults_of_the_model_have_one_home() -> None:
    fields = argument_fields()
    shared = [name for name in PsalmConfig.__annotations__ if name in fields]
    assert {"mm_n_points", "mm_projector_type", "no_object_weight", "num_queries"} <= set(shared)
    for name in shared:
        assert fields[name].default in (None, getattr(PsalmConfig, name)), name


def test_every_argument_accepts_its_default_and_is_documented() -> None:
    for name, field in argument_fields().items():
        if field.default is not None:
            check_setting(name, field.default)
        assert field.kinds, name
        assert field.help, name


def test_resolved_settings_make_the_same_arguments_and_are_json(settings: Settings) -> None:
    given = settings(eval_strategy="steps", bf16=True, lr_scheduler_kwargs={"num_cycles": 0.5})
    resolved = resolved_settings(parse_settings(given))
    assert resolved.keys() == argument_fields().keys() - set(OF_THE_DISK)
    assert json.loads(json.dumps(resolved)) == resolved
    assert {name: resolved[name] for name in given} == given
    assert resolved_settings(parse_settings(resolved)) == resolved


def test_warm_up_is_a_fraction_of_the_steps_unless_steps_are_given(settings: Settings) -> None:
    assert parse_settings(settings(warmup_ratio=0.03)).training.get_warmup_steps(180) == 6
    assert parse_settings(settings(warmup_ratio=0.03, warmup_steps=10)).training.get_warmup_steps(180) == 10


def test_ratios_of_the_tasks_of_a_run_are_accepted() -> None:
    mixture = {"seg_task": "panoptic,region", "cross_image_seg_task": True, "data_ratio": "region=2,cross_image=3"}
    assert check_settings(mixture) == mixture


def test_faster_products_are_asked_for_only_where_a_device_has_them(settings: Settings) -> None:
    """transformers refuses tf32 elsewhere."""
    assert parse_settings(settings(tf32=True)).training.tf32 in (True, None)


def test_command_line_and_config_file(settings: Settings, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(settings(learning_rate=1e-4, seed=5)))
    flags = [
        "--learning-rate=1e-3",
        "--gradient_checkpointing",
        "--no_disable_tqdm",
        "--seg_task",
        "region",
        "panoptic",
    ]
    launched = ["--local_rank=0", "--resume_from_checkpoint", str(tmp_path)]
    args = parse_command_line(["--config", str(config), *flags, *launched])
    assert (args.training.learning_rate, args.training.seed) == (1e-3, 5)
    assert args.training.gradient_checkpointing is True
    assert args.training.disable_tqdm is False
    assert args.data.seg_task == "panoptic,region"
    assert args.training.resume_from_checkpoint == str(tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mm_nheads", "8"], "--mm_nheads is not an argument; did you mean 'mm_n_heads'?"),
        (["8"], "'8' does not follow a flag; write --name value"),
        (["--seed"], "--seed needs a value; write --seed VALUE"),
        (["--config", "nowhere.yaml"], "config must be a readable file, but got 'nowhere.yaml'"),
    ],
)
def test_wrong_command_line_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(SettingError) as error:
        parse_command_line(argv)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("text", ["a: [1", "- a\n- b", "3: x"])
def test_config_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(text)
    with pytest.raises(SettingError, match=r"^config must (be YAML|map names to values), but .*bad.yaml") as error:
        parse_command_line(["--config", str(config)])
    assert "\n" not in str(error.value)


def test_help_names_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_command_line(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert [name for name in argument_fields() if f"--{name} " not in text] == []
