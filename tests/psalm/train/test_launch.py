"""The command lines, in processes of their own: DeepSpeed, two processes, evaluation, wrong settings."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from psalm.constants import TASKS
from psalm.model.postprocess import panoptic
from psalm.train import scorers
from psalm.train.arguments import parse_settings
from psalm.train.evaluate import evaluate_checkpoint
from psalm.train.records import metric_history, read_records
from psalm.train.tasks import METRICS
from psalm.train.train import main, train

REPO = Path(__file__).resolve().parents[3]
TRAIN = REPO / "psalm" / "train" / "train.py"

Settings = Callable[..., dict[str, Any]]


def run(*command: Any, code: int = 0, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def flags(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def logged(folder: Path) -> dict[str, dict[int, float]]:
    history = metric_history(read_records(folder))
    return {name: steps for name, steps in history.items() if not name.startswith("system/")}


def metrics_of(output: str) -> dict[str, float]:
    lines = (line.split() for line in output.splitlines() if line.startswith("eval_"))
    return {name: float(value) for name, value in lines}


def test_wrong_setting_is_one_line_and_exit_code_2(settings: Settings) -> None:
    done = run(TRAIN, *flags(settings()), "--mm_n_heads", "3", code=2)
    assert done.stderr == "mm_hidden_dim must be divisible by mm_n_heads, but got 16 and 3; change one of them\n"


def test_resuming_from_elsewhere_is_one_line_and_exit_code_2(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["train.py", *flags(settings()), "--resume_from_checkpoint", str(tmp_path / "checkpoint-1")]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"resume_from_checkpoint must be a checkpoint-N in output_dir, which is {tmp_path}/run")


@pytest.mark.full
def test_deepspeed_run_is_quiet(settings: Settings, tmp_path: Path) -> None:
    saved = {"save_strategy": "steps", "save_steps": 2, "save_final_model": True}
    done = run(TRAIN, *flags(settings(deepspeed="zero2", **saved)), cwd=tmp_path)
    assert len((done.stdout + done.stderr).splitlines()) <= 8, done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.parametrize("deepspeed", ["zero2", "none"])
def test_two_processes(settings: Settings, tmp_path: Path, deepspeed: str) -> None:
    """The same records as of one; and evaluation gives identical numbers, five images being no multiple of 2 x 2."""
    pair, single = tmp_path / "pair", tmp_path / "single"
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29541")
    train_flags = settings(
        output_dir=pair, deepspeed=deepspeed, per_device_train_batch_size=1, max_steps=3, save_final_model=True
    )
    run(*launcher, TRAIN, *flags(train_flags))
    train(parse_settings(settings(output_dir=str(single), max_steps=3)))
    history, history_single = logged(pair), logged(single)
    assert {name: list(steps) for name, steps in history.items()} == {
        name: list(steps) for name, steps in history_single.items()
    }
    for name in ("loss_mask", "loss_dice", "loss_class_name_class"):
        # Not equal: each process normalises the projector's features by the statistics of its own images.
        assert history[name][1] == pytest.approx(history_single[name][1], rel=0.1), name

    evaluate = ("-m", "psalm.train.evaluate", "--checkpoint", pair / "model", "--per_device_eval_batch_size", "2")
    one = metrics_of(run(*evaluate).stdout)
    two = metrics_of(run(*launcher, *evaluate).stdout)
    assert one == two
    assert one["eval_pq"] == pytest.approx(history["eval_pq"][3], abs=1e-3)


@pytest.mark.full
@pytest.mark.parametrize("deepspeed", ["none", "zero2", "zero3"])
def test_two_processes_train_a_mixture(settings: Settings, tmp_path: Path, deepspeed: str) -> None:
    """Steps of different tasks train different parts of the model; every process must be at the same one."""
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29549")
    common = {"seg_task": ",".join(TASKS), "seed": 0, "max_steps": 8}  # a seed that draws every task
    parallel = {"deepspeed": deepspeed, "per_device_train_batch_size": 1, "eval_strategy": "no"}
    run(*launcher, TRAIN, *flags(settings(**common, **parallel)))
    train(parse_settings(settings(**common, output_dir=str(tmp_path / "single"))))
    history, history_single = logged(tmp_path / "run"), logged(tmp_path / "single")
    assert {name: list(steps) for name, steps in history.items()} == {
        name: list(steps) for name, steps in history_single.items()
    }
    for task in TASKS:
        assert history[f"{task}/steps"] == history_single[f"{task}/steps"]
    assert all(history[f"{task}/steps"][8] > 0 for task in TASKS)
    # Not equal: each process normalises the projector's features by the statistics of its own images.
    assert history["loss"][1] == pytest.approx(history_single["loss"][1], rel=0.2)


@pytest.mark.full
def test_two_processes_score_a_mixture_as_one_does(settings: Settings, tmp_path: Path) -> None:
    """To the last digit, and with the same results files."""
    train(parse_settings(settings(seg_task=",".join(TASKS), max_steps=12, save_final_model=True)))
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29545")
    program = tmp_path / "score.py"
    program.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "from accelerate import PartialState\n"
        "from psalm.train.distributed import leave_process_group\n"
        "from psalm.train.evaluate import evaluate_checkpoint\n"
        "changes = {'output_dir': sys.argv[2], 'per_device_eval_batch_size': 2, 'save_predictions': True}\n"
        "metrics = evaluate_checkpoint(sys.argv[1], changes=changes)\n"
        "rank = PartialState().process_index\n"
        "Path(sys.argv[2], f'{rank}.json').write_text(json.dumps(metrics))\n"
        "leave_process_group()\n"
    )
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, start in zip(folders, ((), launcher), strict=True):
        folder.mkdir()
        run(*start, program, tmp_path / "run" / "model", folder)
    one, *two = (
        {name: value for name, value in json.loads((folder / f"{rank}.json").read_text()).items() if "eval_" in name}
        for folder, rank in ((folders[0], 0), (folders[1], 0), (folders[1], 1))
    )
    for metrics in (one, *two):
        metrics.pop("system/eval_seconds")
    assert {f"eval_{name}" for name in ("mean", *(f"{t}_{m[0]}" for t, m in METRICS.items()))} <= one.keys()
    assert two == [one, one]
    files = [
        {path.relative_to(folder): path.read_bytes() for path in (folder / "predictions").rglob("*") if path.is_file()}
        for folder in folders
    ]
    assert len(files[0]) == len(TASKS) + 5
    assert files[0] == files[1]


@pytest.mark.full
@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_deepspeed_launcher_bf16(settings: Settings, tmp_path: Path, config: str) -> None:
    launcher = ("-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port", "29543")
    train_flags = settings(
        output_dir=tmp_path / "run", deepspeed=config, bf16=True, max_steps=2, save_final_model=True,
        gradient_checkpointing=True,
    )  # fmt: skip
    run(*launcher, TRAIN, *flags(train_flags))
    assert list(logged(tmp_path / "run")["loss"]) == [1, 2]
    run("-m", "psalm.train.evaluate", "--checkpoint", tmp_path / "run" / "model")


def test_evaluation_of_a_checkpoint_gives_the_metrics_of_the_run(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = []

    def keep(class_logits: torch.Tensor, mask_logits: torch.Tensor, isthing: Any) -> Any:
        logits.append((class_logits.clone(), mask_logits.clone()))
        return panoptic(class_logits, mask_logits, isthing)

    monkeypatch.setattr(scorers, "panoptic", keep)
    metrics = train(parse_settings(settings(max_steps=2, save_final_model=True)))
    again = evaluate_checkpoint(tmp_path / "run" / "model")
    names = {name for name in metrics if name.startswith("eval_")}
    assert {name: again[name] for name in names} == {name: metrics[name] for name in names}
    for (classes, masks), (classes_again, masks_again) in zip(logits[:5], logits[5:], strict=True):
        assert torch.equal(classes, classes_again)
        assert torch.equal(masks, masks_again)

    evaluate_checkpoint(tmp_path / "run" / "model", zero_deformable_tokens=True)
    assert not torch.equal(logits[0][0], logits[10][0]), "without its tokens the model says something else"
