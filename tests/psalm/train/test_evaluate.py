"""A finished run is scored by its folder alone; flags replace its settings, and wrong ones end with one line."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from psalm.train import evaluate
from psalm.train.arguments import parse_settings
from psalm.train.train import train

Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def checkpoint(settings_in: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """Of a run of two tasks, and the run's metrics."""
    tasks = {"seg_task": "region", "cross_image_seg_task": True, "data_ratio": "region=1,cross_image=2"}
    folder = tmp_path_factory.mktemp("run")
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = train(parse_settings(settings_in(folder, **tasks, max_steps=2, save_final_model=True)))
    return folder / "model", metrics


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, float]]:
    """The command line; returns what it prints."""

    def run_main(*argv: object) -> dict[str, float]:
        monkeypatch.setattr("sys.argv", ["evaluate", *map(str, argv)])
        capsys.readouterr()
        evaluate.main()
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        return {name: float(value) for name, value in lines if name.startswith("eval_")}

    return run_main


@pytest.fixture
def refusal(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The command line that must not be accepted; returns its only line."""

    def run_refused(*argv: object) -> str:
        with pytest.raises(SystemExit) as end:
            run(*argv)
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run_refused


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in metrics.items() if name.startswith("eval_")}


def test_figures_are_those_of_the_run(checkpoint: Any, run: Callable[..., Any]) -> None:
    folder, metrics = checkpoint
    assert run("--checkpoint", folder) == rounded(metrics)


def test_task_of_the_flag_replaces_all_tasks_of_the_run(checkpoint: Any, run: Callable[..., Any]) -> None:
    folder, metrics = checkpoint
    expected = {name.replace("region_", ""): value for name, value in metrics.items() if "eval_region_" in name}
    assert run("--checkpoint", folder, "--seg_task", "region") == rounded(expected)
    other = run("--checkpoint", folder, "--seg_task", "panoptic,semantic")
    assert {"eval_mean", "eval_panoptic_pq", "eval_semantic_miou"} <= other.keys()
    assert not any("region" in name or "cross" in name for name in other)


def test_types_of_prompts_can_be_chosen(checkpoint: Any, run: Callable[..., Any]) -> None:
    folder, metrics = checkpoint
    found = run("--checkpoint", folder, "--seg_task", "region", "--region_mask_type", "box||mask")
    assert found.keys() == {f"eval_{kind}{name}" for kind in ("", "box_", "mask_") for name in ("ciou", "miou")}
    assert found["eval_box_ciou"] == rounded(metrics)["eval_region_box_ciou"]


def test_other_split(checkpoint: Any, run: Callable[..., Any], tmp_path: Path) -> None:
    flags = ("--seg_task", "region", "--region_mask_type", "box", "--save_predictions", "--output_dir", tmp_path)
    run("--checkpoint", checkpoint[0], *flags, "--split", "train")
    results = json.loads((tmp_path / "predictions" / "region_predictions.json").read_text())
    assert len({result["image_id"] for result in results}) == 12


@pytest.mark.parametrize(("argv", "zeroed"), [((), False), (("--zero_deformable_tokens",), True)])
def test_zeroed_tokens_are_a_switch(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], zeroed: bool
) -> None:
    given = []
    monkeypatch.setattr(evaluate, "evaluate_checkpoint", lambda *args: given.append(args) or {})
    run("--checkpoint", "folder", *argv, "--per_device_eval_batch_size", "2")
    assert given == [("folder", "val", zeroed, {"per_device_eval_batch_size": "2"})]


def test_a_checkpoint_without_weights_is_refused(checkpoint: Any, refusal: Callable[..., str], tmp_path: Path) -> None:
    """As a run leaves it that is killed while it saves, or as other programs save with DeepSpeed."""
    folder, _ = checkpoint
    for name in ("settings.json", "config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "global_step3").mkdir()
    assert refusal("--checkpoint", tmp_path) == (
        f"checkpoint must hold weights, but {tmp_path} has no *.safetensors, as where saving it was cut off; "
        "give another checkpoint-N or model"
    )


def test_wrong_command_lines_end_with_one_line(checkpoint: Any, refusal: Callable[..., str], tmp_path: Path) -> None:
    folder, _ = checkpoint
    settings = folder / "settings.json"
    for argv, message in (
        ((), "checkpoint must be given; write --checkpoint DIR"),
        (
            ("--checkpoint", tmp_path),
            f"checkpoint must be a folder that a run has saved, but {tmp_path / settings.name} is missing; "
            "give a run's checkpoint-N or model",
        ),
        (
            ("--checkpoint", folder, "--split", "vall"),
            "split must be one of train, val, but got 'vall'; did you mean 'val'?",
        ),
        (("--checkpoint", folder, "--mm_n_point", "4"), "--mm_n_point is not an argument; did you mean 'mm_n_points'?"),
        (
            ("--checkpoint", folder, "--seg_task", "regions"),
            "seg_task must be one or more of panoptic, semantic, instance, referring, region, cross_image, "
            "but got 'regions'; did you mean 'region'?",
        ),
        (
            ("--checkpoint", folder, "--seg_task", "region", "--panoptic_json_path", tmp_path),
            f"region_json_path must be given for the task region: {tmp_path} has no coco_interactive_train_psalm.json",
        ),
        (
            ("--checkpoint", folder, "--eval_region_json_path", tmp_path / "no.json"),
            f"eval_region_json_path: {tmp_path / 'no.json'} does not exist",
        ),
    ):
        assert refusal(*argv) == message
