"""The launchers: what they want, and what they pass to the training."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from psalm.train.arguments import argument_fields, check_settings
from psalm.train.command_line import read_flags
from psalm.train.records import metric_history, read_records
from psalm.train.tasks import main_metric_names, tasks_of

REPO = Path(__file__).resolve().parents[3]
FOLDER = REPO / "experiments" / "scripts"
SINGLE, CROSS = FOLDER / "train_deformable.sh", FOLDER / "train_deformable_cross_image.sh"
SCRIPTS = pytest.mark.parametrize("script", [SINGLE, CROSS], ids=lambda script: script.stem)
BOX = "box_visual_prompt_mask"

FAKE = """#!/usr/bin/env bash
pwd
printf '%s\\n' "$@"
"""


@pytest.fixture(scope="module")
def fake_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH whose deepspeed prints where it was started and its arguments, one a line."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "deepspeed"
    program.write_text(FAKE)
    program.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def run(script: Path, *argv: str, path: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(script), *argv],
        capture_output=True,
        text=True,
        env={"PATH": path, **variables},
        timeout=10,
        check=False,
    )


def launched(script: Path, *argv: str, path: str, **variables: str) -> tuple[list[str], dict[str, Any]]:
    """(options of deepspeed, settings) that a script starts the training with; every flag must be an argument."""
    done = run(script, *argv, path=path, **variables)
    assert done.returncode == 0, done.stderr
    folder, *words = done.stdout.splitlines()
    assert folder == os.getcwd(), "relative paths are the caller's"
    place = words.index(str(REPO / "psalm" / "train" / "train.py"))
    return words[:place], check_settings(read_flags(words[place + 1 :], argument_fields()))


def variables_of(script: Path) -> list[str]:
    """The variables that stand for a flag."""
    own = re.findall(r'^([A-Z_]+)="\$\{\1:-', script.read_text(), re.MULTILINE)
    (paths,) = re.findall(r"^PATHS=\((.*?)^\)", (FOLDER / "common.sh").read_text(), re.MULTILINE | re.DOTALL)
    return [*own, *paths.split(), "MODEL_NAME_OR_PATH", "VISION_TOWER"]


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda script: script.name)
def test_syntax(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize(
    ("script", "variables", "missing"),
    [
        (SINGLE, {}, "MODEL_NAME_OR_PATH VISION_TOWER PANOPTIC_JSON_PATH"),
        (SINGLE, {"VISION_TOWER": "/t", "SEG_TASK": "semantic"}, "MODEL_NAME_OR_PATH PANOPTIC_JSON_PATH"),
        (
            SINGLE,
            {"SEG_TASK": "instance,region"},
            "MODEL_NAME_OR_PATH VISION_TOWER INSTANCE_JSON_PATH REGION_JSON_PATH REGION_IMAGE_FOLDER",
        ),
        (SINGLE, {"SEG_TASK": "referring"}, "MODEL_NAME_OR_PATH VISION_TOWER REF_COCO_PATH"),
        (SINGLE, {"SEG_TASK": "referring", "REF_COCO_G_PATH": "/g"}, "MODEL_NAME_OR_PATH VISION_TOWER"),
        (CROSS, {}, "MODEL_NAME_OR_PATH VISION_TOWER REGION_CROSS_JSON_PATH REGION_CROSS_IMAGE_FOLDER"),
        (
            CROSS,
            {"SEG_TASK": "panoptic,region", "MODEL_NAME_OR_PATH": "/m", "VISION_TOWER": "/t"},
            "REGION_CROSS_JSON_PATH REGION_CROSS_IMAGE_FOLDER PANOPTIC_JSON_PATH REGION_JSON_PATH REGION_IMAGE_FOLDER",
        ),
    ],
)
def test_all_missing_variables_are_named_in_one_line(
    fake_path: str, script: Path, variables: dict[str, str], missing: str
) -> None:
    done = run(script, path=fake_path, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == f"{script.name}: not set: {missing}"
    assert "DEMO=1" in done.stderr


@SCRIPTS
def test_every_variable_becomes_its_flag(fake_path: str, script: Path) -> None:
    names = variables_of(script)
    assert {"SEG_TASK", "MODEL_NAME_OR_PATH", "VISION_TOWER", "OUTPUT_DIR", "REGION_MASK_TYPE"} <= set(names)
    given = {name: f"/data/{name.lower()}" for name in names} | {"SEG_TASK": "panoptic,region", "REGION_MASK_TYPE": BOX}
    _, settings = launched(script, path=fake_path, **given, SWIN_TYPE="large")
    assert {name: settings[name.lower()] for name in names} == given
    assert settings["swin_type"] == "large"
    expected = ("panoptic", "region") if script == SINGLE else ("panoptic", "region", "cross_image")
    assert tasks_of({"cross_image_seg_task": False} | settings) == expected


@SCRIPTS
def test_recipe(fake_path: str, script: Path) -> None:
    needed = ("MODEL_NAME_OR_PATH", "VISION_TOWER", "PANOPTIC_JSON_PATH")
    needed += ("REGION_CROSS_JSON_PATH", "REGION_CROSS_IMAGE_FOLDER")
    options, settings = launched(script, path=fake_path, **dict.fromkeys(needed, "/data"))
    assert settings["mm_projector_type"] == "deformable"
    assert [settings[name] for name in ("mm_hidden_dim", "mm_n_heads", "mm_n_points")] == [256, 8, 4]
    assert settings["swin_type"] == "base"
    assert settings["deepspeed"] == str(REPO / "experiments" / "deepspeed" / "zero2.json")
    assert "--include" not in options
    assert settings.keys().isdisjoint({"pretrain_mm_mlp_adapter", "image_folder", "region_json_path"}), "not given"


@SCRIPTS
def test_devices_port_and_further_flags(fake_path: str, script: Path) -> None:
    options, settings = launched(
        script, "--learning_rate", "2e-5", "--image_folder", "/with space", path=fake_path, DEMO="1",
        INCLUDE="localhost:0,1", MASTER_PORT="29777",
    )  # fmt: skip
    assert options == ["--include", "localhost:0,1", "--master_port", "29777"]
    assert (settings["learning_rate"], settings["image_folder"]) == (2e-5, "/with space")


@SCRIPTS
def test_demo_needs_nothing(fake_path: str, script: Path) -> None:
    _, settings = launched(script, path=fake_path, DEMO="1")
    for name in ("model_name_or_path", "vision_tower", "panoptic_json_path"):
        assert settings[name] == "builtin"
    assert settings["use_cpu"] is True
    assert 0 < settings["max_steps"] <= 200


@SCRIPTS
def test_demo_of_other_tasks(fake_path: str, script: Path) -> None:
    _, settings = launched(script, path=fake_path, DEMO="1", SEG_TASK="semantic,region")
    assert settings["seg_task"] == "semantic,region"


@pytest.mark.full
@SCRIPTS
def test_demo_trains(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(script), "--max_steps", "4", "--eval_steps", "4", "--logging_steps", "2"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DEMO": "1",
            "OUTPUT_DIR": str(tmp_path / "run"),
            "OMP_NUM_THREADS": "1",
            "MASTER_PORT": "29547",
        },
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = list(read_records(tmp_path / "run"))
    (settings,) = [record["values"] for record in records if record["kind"] == "settings"]
    history = metric_history(records)
    assert list(history["loss"]) == [2, 4]
    assert list(history[main_metric_names(settings)[0]]) == [4]
