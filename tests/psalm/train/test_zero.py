"""What runs promise of checkpoints, frozen parts and learning rates, without DeepSpeed, with ZeRO-2 and with ZeRO-3."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from psalm.model.checkpoints import load_model
from psalm.train.arguments import parse_settings
from psalm.train.records import metric_history, read_records
from psalm.train.train import build_trainer

REPO = Path(__file__).resolve().parents[3]
PROGRAM = '''
import json, sys
from pathlib import Path
import deepspeed
from accelerate import PartialState
from safetensors.torch import save_file
from transformers import TrainerCallback
from psalm.train.arguments import parse_settings
from psalm.train.distributed import leave_process_group
from psalm.train.train import train

class Cut(TrainerCallback):
    """Ends a run as a crash would, right after a checkpoint, and keeps what the model's weights are."""

    def on_save(self, args, state, control, model, **_):
        sharded = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
        with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if args.should_save:
            save_file(weights, Path(args.output_dir) / "kept.safetensors")
        raise KeyboardInterrupt

for job in json.loads(Path(sys.argv[1]).read_text()):
    try:
        train(parse_settings(job["settings"]), [Cut()] if job["cut"] else [], job["resume"])
    except KeyboardInterrupt:
        pass
    PartialState().wait_for_everyone()
leave_process_group()
'''
SMALL = 300_000
"""Bytes of everything that does not grow with the model: tokenizer, settings, DeepSpeed's scripts."""
DECODER = ("seg_query", "class_name_projector.", "pixel_decoder.", "predictor.")
NOT_OF_PANOPTIC = ("SEG_token_projector.", "region_projector.", "predictor.SEG_proj.", "predictor.REGION_proj.")
"""No gradient reaches them; ZeRO takes it for zero, so they decay."""
SLOW = (
    "model.mm_projector_deformable.attention.sampling_offsets.",
    "model.mm_projector_deformable.reference_proj.",
)


@dataclass(frozen=True)
class Runs:
    """Folders of runs: ``whole``; ``cut`` after its first checkpoint; ``resumed`` from there; and two short ones."""

    folder: Path
    settings: dict[str, Any]

    @cached_property
    def model(self) -> nn.Module:
        """As all runs began."""
        plain = self.settings | {"deepspeed": None, "bf16": False, "output_dir": str(self.folder / "unused")}
        return build_trainer(parse_settings(plain)).model

    @property
    def weight(self) -> int:
        """Bytes of a weight."""
        return 2 if self.settings["deepspeed"] and self.settings["bf16"] else 4

    def counts(self) -> tuple[int, int]:
        """Weights, trained weights."""
        parameters = list(self.model.parameters())
        return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)

    def changes(self, run: str) -> dict[str, Tensor]:
        """What a run has added to each weight and statistic."""
        initial = self.model.state_dict()
        final = load_file(self.folder / run / "model" / "model.safetensors")
        assert final.keys() == initial.keys()
        return {name: value - initial[name] for name, value in final.items()}


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def configuration(name: str) -> dict[str, Any] | None:
    """DeepSpeed's, which may say that it does not gather weights when it saves: they are saved all the same."""
    if name == "none":
        return None
    content: dict[str, Any] = json.loads((REPO / "experiments" / "deepspeed" / f"{name}.json").read_text())
    content["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = False
    return content


def jobs_in(folder: Path, settings_in: Callable[..., dict[str, Any]], **common: Any) -> list[dict[str, Any]]:
    """What is run, one after another in one process (group)."""
    common |= {"eval_strategy": "no", "mm_reference_points": "learned", "save_final_model": True}
    long = common | {"bf16": common["deepspeed"] is not None, "save_strategy": "steps", "save_steps": 2}
    frozen = {"max_steps": 3, "weight_decay": 0.1, "freeze_backbone": True, "freeze_mm_mlp_adapter": True}
    rated = {"max_steps": 1, "warmup_ratio": 0.0, "learning_rate": 1e-3, "offset_lr_multiplier": 0.1}
    return [
        {"settings": settings_in(folder / name, **changes), "cut": cut, "resume": resume}
        for name, changes, cut, resume in (
            ("whole", long, False, None),
            ("cut", long, True, None),
            ("resumed", long, True, None),
            ("resumed", long, False, str(folder / "resumed" / "checkpoint-2")),
            ("frozen", common | frozen, False, None),
            ("rated", common | rated, False, None),
        )
    ]


@pytest.fixture(
    scope="module",
    params=[("none", 1), ("zero2", 1)]
    + [pytest.param(each, marks=pytest.mark.full) for each in (("zero3", 1), ("none", 2), ("zero2", 2), ("zero3", 2))],
    ids=lambda each: f"{each[0]}-{each[1]}",
)
def runs(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    settings_in: Callable[..., dict[str, Any]],
) -> Runs:
    name, processes = request.param
    folder = tmp_path_factory.mktemp(name)
    jobs = jobs_in(folder, settings_in, deepspeed=configuration(name), per_device_train_batch_size=2 // processes)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    (folder / "program.py").write_text(PROGRAM)
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29553")
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else ()), folder / "program.py", folder / "jobs.json"],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Runs(folder, jobs[0]["settings"])


def test_a_checkpoint_is_the_weights_once_and_the_optimizer_s_state(runs: Runs) -> None:
    """Of every trained weight two moments in float32, and with DeepSpeed its value in float32."""
    weights, trained = runs.counts()
    state = 12 if runs.settings["deepspeed"] else 8
    checkpoint = runs.folder / "cut" / "checkpoint-2"
    assert (checkpoint / "model.safetensors").stat().st_size == pytest.approx(runs.weight * weights, abs=40_000)
    assert bytes_in(checkpoint) == pytest.approx(runs.weight * weights + state * trained, abs=SMALL)


def test_a_checkpoint_opens_while_its_run_goes_on_or_is_dead(runs: Runs) -> None:
    model, _ = load_model(runs.folder / "cut" / "checkpoint-2")
    assert {parameter.dtype for parameter in model.parameters()} == {(torch.bfloat16, torch.float32)[runs.weight // 4]}


def test_a_checkpoint_has_the_model_s_weights_bit_for_bit(runs: Runs) -> None:
    model = load_file(runs.folder / "cut" / "kept.safetensors")
    for run in ("cut", "whole"):
        saved = load_file(runs.folder / run / "checkpoint-2" / "model.safetensors")
        assert saved.keys() == model.keys()
        assert [n for n, t in saved.items() if t.dtype != model[n].dtype or not torch.equal(t, model[n])] == []


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(runs: Runs) -> None:
    files = [runs.folder / run / "model" / "model.safetensors" for run in ("whole", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    whole, resumed = (metric_history(read_records(runs.folder / run)) for run in ("whole", "resumed"))
    assert list(whole["loss"]) == [1, 2, 3, 4]
    for name, values in whole.items():
        assert name.startswith("system/") or resumed[name] == values, name


@pytest.mark.parametrize("run", ["whole", "resumed"])
def test_a_finished_run_is_weights_alone(runs: Runs, run: str) -> None:
    """The last checkpoint would say what the final model says; nothing that is left can run code."""
    folder = runs.folder / run
    models = {path.name: path for path in folder.iterdir() if path.is_dir() and path.name != "artifacts"}
    assert models.keys() == {"checkpoint-2", "model"}
    names = {name: {path.name for path in model.rglob("*")} for name, model in models.items()}
    assert names["checkpoint-2"] == names["model"]
    assert {Path(name).suffix for name in names["model"]} == {".json", ".safetensors"}
    weights, _ = runs.counts()
    for model in models.values():
        assert bytes_in(model) == pytest.approx(runs.weight * weights, abs=SMALL)


def test_frozen_parts_do_not_move(runs: Runs) -> None:
    changes = runs.changes("frozen")
    moved = {name for name, change in changes.items() if change.any()}
    assert [name for name in moved if not name.startswith((*DECODER, *NOT_OF_PANOPTIC))] == []
    reached = {name for name in changes if name.startswith(DECODER) and not name.startswith(NOT_OF_PANOPTIC)}
    assert reached <= moved


def test_the_first_step_moves_each_part_by_its_rate(runs: Runs) -> None:
    """Adam's first step is the rate itself, whatever the gradient."""
    steps = {name: change.abs().max().item() for name, change in runs.changes("rated").items()}
    slow = {name: step for name, step in steps.items() if name.startswith(SLOW)}
    assert slow == pytest.approx(
        dict.fromkeys((f"{part}{kind}" for part in SLOW for kind in ("weight", "bias")), 1e-4), rel=0.02
    )
    for part in ("model.layers.", "model.mm_projector.", "pixel_decoder.", "predictor."):
        names = [name for name, _ in runs.model.named_parameters() if name.startswith(part)]
        assert max(steps[name] for name in names) == pytest.approx(1e-3, rel=0.02), part
    offsets = [name for name in steps if name.startswith("pixel_decoder.") and "sampling_offsets.weight" in name]
    assert {name: steps[name] for name in offsets} == pytest.approx(dict.fromkeys(offsets, 1e-3), rel=0.02)
    assert offsets
