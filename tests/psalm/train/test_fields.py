"""Environment variables in paths: replaced where they are set, left for the check of files to refuse where not."""

from pathlib import Path

import pytest

from psalm.train.fields import Field, SettingError, expand_variables, unset_variables
from psalm.train.inputs import PATHS, check_variables

FOLDER = Field("folder", "data", (str,), True, None, None, "", path=True, words=("builtin",))
NAME = Field("name", "data", (str,), True, None, None, "")


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """DATA and WORD are set, EMPTY is empty, ABSENT and OTHER are not set."""
    monkeypatch.setenv("DATA", "/data/coco")
    monkeypatch.setenv("WORD", "builtin")
    monkeypatch.setenv("NOTHING", "none")
    monkeypatch.setenv("EMPTY", "")
    for name in ("ABSENT", "OTHER"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("$DATA", "/data/coco"),
        ("${DATA}/train2017", "/data/coco/train2017"),
        ("images${DATA}_x", str(Path.cwd() / "images/data/coco_x")),
        ("${WORD}", "builtin"),
        ("$NOTHING", None),
        ("${ABSENT}", "${ABSENT}"),
        ("${DATA}/$ABSENT", "${DATA}/$ABSENT"),
        ("relative/$EMPTY", "relative/$EMPTY"),
        ("/costs/5$", "/costs/5$"),
    ],
)
def test_a_path(given: str, expected: str | None) -> None:
    assert FOLDER.check(given) == expected


def test_text_that_is_no_path_keeps_its_dollars() -> None:
    assert NAME.check("$DATA") == "$DATA"


def test_a_relative_value_is_of_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "../coco")
    assert FOLDER.check("$DATA") == str(Path.cwd().parent / "coco")


def test_a_value_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "~/coco")
    assert FOLDER.check("$DATA") == str(Path.home() / "coco")


def test_a_variable_is_named_once_and_without_braces() -> None:
    assert unset_variables("${ABSENT}/$OTHER/$ABSENT/${DATA}") == ["ABSENT", "OTHER"]
    assert expand_variables("${DATA}/$OTHER") == "${DATA}/$OTHER"


def test_paths_are_settings_of_all_three_groups() -> None:
    assert {"model_name_or_path", "vision_tower", "image_folder", "eval_ref_coco_path", "output_dir"} <= set(PATHS)
    assert "run_name" not in PATHS


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([{"image_folder": "$ABSENT"}], "not set in the environment: ABSENT (image_folder); export it"),
        ([{"output_dir": "$EMPTY/runs"}], "not set in the environment: EMPTY (output_dir); export it"),
        (
            [
                {"image_folder": "$ABSENT", "vision_tower": "${OTHER}/base", "model_name_or_path": "$EMPTY"},
                {"image_folder": "$ABSENT", "vision_tower": "${OTHER}/$ANOTHER", "model_name_or_path": "/$EMPTY"},
            ],
            "not set in the environment: EMPTY (model_name_or_path), OTHER, ANOTHER (vision_tower), "
            "ABSENT (image_folder); export them",
        ),
        (
            [{"panoptic_json_path": "$ABSENT", "image_folder": "$ABSENT/train2017"}],
            "not set in the environment: ABSENT (panoptic_json_path, image_folder); export it",
        ),
    ],
)
def test_what_is_not_set_is_refused_at_once(runs: list[dict[str, str]], message: str) -> None:
    with pytest.raises(SettingError) as error:
        check_variables(*runs)
    assert str(error.value) == message


def test_what_is_set_or_no_path_is_not_refused() -> None:
    check_variables({"image_folder": FOLDER.check("$DATA"), "run_name": "$ABSENT", "vision_tower": None}, {})
