"""Whole runs on a very small model: what they record, resume, accumulation, divergence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback

from psalm.data.builtin import ensure_builtin
from psalm.data.errors import BadImageError
from psalm.train.arguments import Arguments, parse_settings
from psalm.train.loss_window import TrainingDiverged
from psalm.train.records import metric_history, read_records
from psalm.train.train import build_trainer, train

Make = Callable[..., Arguments]


def logged(folder: str) -> dict[str, dict[int, float]]:
    """Every logged value but those of the machine."""
    history = metric_history(read_records(folder))
    return {name: steps for name, steps in history.items() if not name.startswith("system/")}


def test_run_records_everything(arguments: Make, capfd: pytest.CaptureFixture[str]) -> None:
    args = arguments(max_steps=3, logging_steps=1, eval_strategy="steps", eval_steps=2, save_final_model=True)
    metrics = train(args)
    folder = Path(args.training.output_dir)
    records = list(read_records(folder))

    history = metric_history(records)
    for name in ("loss", "loss_mask", "loss_dice", "loss_class_name_class", "learning_rate", "grad_norm"):
        assert list(history[name]) == [1, 2, 3], name
    total = sum(history[name][3] for name in ("loss_mask", "loss_dice", "loss_class_name_class"))
    assert history["loss"][3] == pytest.approx(total, rel=1e-6)
    assert "loss_region_class" not in history, "a loss that the task does not have must be absent, not zero"
    assert list(history["eval_pq"]) == [2, 3], "every eval_steps and at the end, once"
    assert metrics["eval_pq"] == history["eval_pq"][3]
    assert {"system/step_seconds", "system/peak_memory_mb", "system/eval_seconds"} <= history.keys()
    assert history["epoch"][3] == pytest.approx(3 * 2 / 12), "epochs are passes over the 12 images"

    (settings,) = [r["values"] for r in records if r["kind"] == "settings"]
    assert (settings["max_steps"], settings["num_queries"], settings["projector_outdim"]) == (3, 8, 96)
    tags = {name: value for r in records if r["kind"] == "tags" for name, value in r["values"].items()}
    assert tags["seed"] == 3
    assert 0 < tags["trainable_parameters"] < tags["parameters"]
    assert [r["event"] for r in records if r["kind"] == "event"] == ["started", "completed"]

    artifacts = {r["path"] for r in records if r["kind"] == "artifact"}
    assert artifacts == {"artifacts/config.yaml", "artifacts/predictions.png", "artifacts/curves.png"}
    assert Image.open(folder / "artifacts/predictions.png").height > 4 * 100, "four images in rows"
    assert (folder / "model" / "model.safetensors").is_file()

    captured = capfd.readouterr()
    assert "✓ mm_projector 类型: MultiScaleDeformableCrossAttentionAlignment" in captured.out
    assert "n_levels=4, n_heads=2, n_points=2" in captured.out
    assert len(captured.out.splitlines()) + len(captured.err.splitlines()) <= 6, captured


def test_same_seed_same_run_and_settings_make_it_again(arguments: Make, tmp_path: Path) -> None:
    first = arguments(output_dir=str(tmp_path / "a"), max_steps=2)
    train(first)
    (recorded,) = [r["values"] for r in read_records(tmp_path / "a") if r["kind"] == "settings"]
    train(parse_settings(recorded | {"output_dir": str(tmp_path / "b")}))
    assert logged(str(tmp_path / "a")) == logged(str(tmp_path / "b"))


class Interrupt(TrainerCallback):
    """Ends a run as a crash would, right after a checkpoint."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_run_equals_uninterrupted_bit_for_bit(arguments: Make, tmp_path: Path, workers: int) -> None:
    common = {
        "max_steps": 5,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "save_final_model": True,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 1,
        "dataloader_num_workers": workers,
    }
    train(arguments(output_dir=str(tmp_path / "whole"), **common))
    with pytest.raises(KeyboardInterrupt):
        train(arguments(output_dir=str(tmp_path / "cut"), **common), callbacks=[Interrupt()])
    train(
        arguments(output_dir=str(tmp_path / "cut"), **common),
        resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"),
    )

    whole, cut = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, cut[name]), name
    assert logged(str(tmp_path / "whole")) == logged(str(tmp_path / "cut")), "the logging window goes on too"
    events = [(r["event"], r.get("step")) for r in read_records(tmp_path / "cut") if r["kind"] == "event"]
    assert events == [("started", None), ("resumed", 3), ("completed", 5)]


def first_gradients(args: Arguments) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradients of the first optimizer step, and its logged losses."""

    class Keep(TrainerCallback):
        gradients: dict[str, torch.Tensor] = {}

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    keep = Keep()
    trainer = build_trainer(args)
    # Statistics of a batch change with its split; what is tested is how losses are normalised.
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.forward = lambda x, norm=module: x * norm.weight[:, None, None] + norm.bias[:, None, None]
    trainer.add_callback(keep)
    trainer.train()
    losses = trainer.state.log_history[0]
    return keep.gradients, {name: losses[name] for name in losses if name.startswith("loss")}


def test_accumulation_equals_one_large_batch(arguments: Make) -> None:
    common = {"max_steps": 1, "max_grad_norm": 0.0}
    large, large_losses = first_gradients(arguments(per_device_train_batch_size=4, **common))
    split, split_losses = first_gradients(
        arguments(per_device_train_batch_size=1, gradient_accumulation_steps=4, **common)
    )
    assert large.keys() == split.keys()
    for name, gradient in large.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            split[name], gradient, rtol=1e-3, atol=1e-5 + 1e-4 * scale, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert split_losses == pytest.approx(large_losses, rel=1e-5)


def test_divergence_names_step_and_last_finite_values(arguments: Make) -> None:
    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            if state.global_step == 2:  # the third step
                model.seg_query.data.fill_(float("nan"))

    args = arguments(max_steps=6, logging_steps=2)
    with pytest.raises(
        TrainingDiverged, match=r"not finite at step 3 \(loss = nan.*last finite values, step 2: loss \d"
    ):
        train(args, callbacks=[Poison()])
    *_, last = read_records(args.training.output_dir)
    assert last["event"] == "failed"
    assert last["reason"].startswith("TrainingDiverged: loss is not finite at step 3")


def test_mixed_precision_and_checkpointed_activations(arguments: Make) -> None:
    args = arguments(max_steps=1, bf16=True, gradient_checkpointing=True)
    train(args)
    plain = arguments(max_steps=1, output_dir=args.training.output_dir + "-plain")
    train(plain)
    rounded, exact = (logged(a.training.output_dir)["loss"][1] for a in (args, plain))
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact


def test_epochs_become_steps(arguments: Make) -> None:
    trainer = build_trainer(arguments(max_steps=-1, num_train_epochs=2.5, gradient_accumulation_steps=2))
    assert trainer.args.max_steps == 8, "2.5 x 12 images in steps of 2 x 2"


def test_bad_images_are_left_out_and_counted(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    data = ensure_builtin(tmp_path / "data", train_images=4, val_images=2)
    bad = [sorted((data / split).iterdir())[0] for split in ("train2017", "val2017")]
    for image in bad:
        image.write_bytes(image.read_bytes()[:100])
    damaged = settings(panoptic_json_path=str(data), max_steps=3)
    with pytest.raises(BadImageError, match=bad[0].name):
        train(parse_settings(damaged))
    metrics = train(parse_settings(damaged | {"skip_bad_images": True, "output_dir": str(tmp_path / "skip")}))
    assert "eval_pq" in metrics
    *_, last = read_records(tmp_path / "skip")
    assert (last["event"], last["bad_images"]) == ("completed", [image.name for image in bad])


def test_checkpoint_holds_what_evaluation_needs(arguments: Make) -> None:
    args = arguments(max_steps=1, save_strategy="steps", save_steps=1)
    train(args)
    checkpoint = Path(args.training.output_dir) / "checkpoint-1"
    names = {path.name for path in checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "settings.json", "tokenizer.json"} <= names
    assert json.loads((checkpoint / "settings.json").read_text())["mm_n_points"] == 2
