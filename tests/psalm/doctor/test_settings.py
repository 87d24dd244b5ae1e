"""What a command line asks for is told right or wrong as the training would tell it; idle flags are named."""

from pathlib import Path
from typing import Any

import pytest

from psalm.doctor.findings import Status
from psalm.doctor.settings import Request, check_given, read_command_line
from psalm.train.arguments import SettingError


def test_flags_win_over_the_file_and_what_is_no_setting_is_apart(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("learning_rate: 1.0e-4\nevaluation_strategy: 'no'\n")
    flags = ["--learning-rate", "1e-3", "--lazy_preprocess", "--version=v1", "--resume_from_checkpoint", "x"]
    request = read_command_line(["--config", str(config), *flags, "--local_rank=0"])
    assert request == Request({"learning_rate": "1e-3", "eval_strategy": "no"}, ("lazy_preprocess", "version"), "x")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mm_n_point", "4"], "--mm_n_point is not an argument; did you mean 'mm_n_points'?"),
        (["--config", "nowhere.yaml"], "config must be a readable file, but got 'nowhere.yaml'"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(SettingError) as error:
        read_command_line(argv)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mm_n_points": "many"}, "mm_n_points must be a whole number, but got 'many'; change its type"),
        (
            {"mm_hidden_dim": 16, "mm_n_heads": 3},
            "mm_hidden_dim must be divisible by mm_n_heads, but got 16 and 3; change one of them",
        ),
        ({"version": "v1"}, "version is not an argument (its value is 'v1')"),  # retired, but not on a command line
    ],
)
def test_a_wrong_setting_is_a_problem(given: dict[str, Any], message: str) -> None:
    values, (finding,) = check_given(Request(given))
    assert values is None
    assert finding.status is Status.PROBLEM
    assert finding.text.startswith(message)


def test_a_variable_that_is_not_set_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COCO", raising=False)
    values, (finding,) = check_given(Request({"panoptic_json_path": "${COCO}"}))
    assert (values, finding.status) == (None, Status.PROBLEM)
    assert finding.text == "not set in the environment: COCO (panoptic_json_path); export it"


def test_defaults_fill_what_is_not_given() -> None:
    values, (finding,) = check_given(Request({"mm_n_points": "8"}))
    assert values is not None
    assert (values["mm_n_points"], values["mm_n_heads"]) == (8, 8)
    assert finding.status is Status.OK
    assert finding.text.startswith("1 settings given, ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"mm_projector_type": "swin_conv", "mm_n_points": 8, "mm_n_heads": 4},
            "no effect, because mm_projector_type is swin_conv: --mm_n_heads, --mm_n_points",
        ),
        (
            {"max_steps": 5, "num_train_epochs": 2},
            "no effect, because max_steps is given: --num_train_epochs",
        ),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "no effect, because warmup_steps is given: --warmup_ratio"),
        ({"eval_strategy": "no", "eval_steps": 5}, "no effect, because eval_strategy is no: --eval_steps"),
        ({"data_ratio": "panoptic=2"}, "no effect, because panoptic is the only task: --data_ratio"),
        (
            {"seg_task": "referring", "region_json_path": "a", "eval_region_image_folder": "b"},
            "no effect, because the run has no task region: --eval_region_image_folder, --region_json_path",
        ),
        (
            {"refer_expressions": "joined"},
            "no effect, because the run has no task referring: --refer_expressions",
        ),
    ],
)
def test_settings_without_effect_are_named(given: dict[str, Any], message: str) -> None:
    _, found = check_given(Request(given))
    assert [finding.text for finding in found if finding.status is Status.ADVICE] == [message]


def test_what_serves_every_task_has_an_effect() -> None:
    _, found = check_given(Request({"image_folder": "a", "eval_image_folder": "b", "panoptic_json_path": "c"}))
    assert [finding.status for finding in found] == [Status.OK]


def test_retired_flags_are_named() -> None:
    _, found = check_given(Request({}, ("lazy_preprocess", "version")))
    assert found[-1].status is Status.ADVICE
    assert found[-1].text == "no effect any more: --lazy_preprocess, --version"
