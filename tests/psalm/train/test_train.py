"""Whole runs on a very small model: what they record, every task and all at once, resume, accumulation, divergence."""

import contextlib
import io
import json
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback

from psalm.constants import CLASS_TASKS, CROSS_IMAGE, INSTANCE, PANOPTIC, REFERRING, REGION, SEMANTIC, TASKS
from psalm.data.builtin import ensure_builtin
from psalm.data.errors import BadImageError
from psalm.train.arguments import Arguments, parse_settings
from psalm.train.evaluate import evaluate_checkpoint
from psalm.train.fields import SettingError
from psalm.train.loss_window import TrainingDiverged
from psalm.train.records import metric_history, read_records
from psalm.train.train import build_trainer, train

Make = Callable[..., Arguments]

LOSSES = {
    **dict.fromkeys(CLASS_TASKS, ("loss_mask", "loss_dice", "loss_class_name_class")),
    REFERRING: ("loss_mask", "loss_dice", "loss_SEG_class"),
    REGION: ("loss_mask", "loss_dice", "loss_region_class"),
    CROSS_IMAGE: ("loss_mask", "loss_dice", "loss_region_class"),
}
FIGURES = {
    PANOPTIC: ["pq", "sq", "rq", "pq_things", "sq_things", "rq_things", "pq_stuff", "sq_stuff", "rq_stuff"],
    SEMANTIC: ["miou", "fwiou", "pixel_accuracy"],
    INSTANCE: ["ap", "ap50", "ap75", "ap_small"],  # the built-in data have no larger objects
    REFERRING: ["ciou", "giou", "pr50", "pr70", "pr90"],
    REGION: [
        "ciou", "miou", "point_ciou", "point_miou", "box_ciou", "box_miou",
        "scribble_ciou", "scribble_miou", "mask_ciou", "mask_miou",
    ],
    CROSS_IMAGE: ["miou", "ciou", "location_error"],
}  # fmt: skip
MAIN = {PANOPTIC: "pq", SEMANTIC: "miou", INSTANCE: "ap", REFERRING: "ciou", REGION: "ciou", CROSS_IMAGE: "miou"}
ALL = ",".join(TASKS)

OF_ONE_TASK = {f"artifacts/{name}" for name in ("config.yaml", "weights.txt", "curves.png", "predictions.png")}
"""Artifacts of a run of one task."""
PER_CLASS = "artifacts/per_class.json"


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
    assert list(history["system/pictures_seconds"]) == list(history["system/eval_seconds"]) == [2, 3]
    assert history["epoch"][3] == pytest.approx(3 * 2 / 12), "epochs are passes over the 12 images"

    (settings,) = [r["values"] for r in records if r["kind"] == "settings"]
    assert (settings["max_steps"], settings["num_queries"], settings["projector_outdim"]) == (3, 8, 96)
    tags = {name: value for r in records if r["kind"] == "tags" for name, value in r["values"].items()}
    assert tags["seed"] == 3
    assert 0 < tags["trainable_parameters"] < tags["parameters"]
    assert [r["event"] for r in records if r["kind"] == "event"] == ["started", "completed"]

    artifacts = {r["path"] for r in records if r["kind"] == "artifact"}
    assert artifacts == OF_ONE_TASK | {PER_CLASS}
    assert Image.open(folder / "artifacts/predictions.png").height > 4 * 100, "four images in rows"
    (of_tower,) = (folder / "artifacts/weights.txt").read_text().splitlines()
    report = r"  weights: .*model\.safetensors: 0 loaded, 1 \(nothing\) unused, \d+ \(model\.vision_tower\."
    assert re.match(report, of_tower)
    assert (folder / "model" / "model.safetensors").is_file()

    captured = capfd.readouterr()
    assert "✓ mm_projector 类型: MultiScaleDeformableCrossAttentionAlignment" in captured.out
    assert "n_levels=4, n_heads=2, n_points=2" in captured.out
    data = "  panoptic: 12 samples, 3 of 3 steps (100%); validation: 5 samples ("
    assert data + settings["panoptic_json_path"] in captured.out
    assert len(captured.out.splitlines()) + len(captured.err.splitlines()) <= 6, captured


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_losses_metrics_and_pictures(arguments: Make, task: str) -> None:
    args = arguments(seg_task=task, max_steps=2)
    metrics = train(args)
    folder = Path(args.training.output_dir)
    history = logged(str(folder))
    assert {name for name in history if "loss" in name} == {"loss", *LOSSES[task]}
    for step in (1, 2):
        assert history["loss"][step] == pytest.approx(sum(history[name][step] for name in LOSSES[task]), rel=1e-6)
    expected = {f"eval_{name}" for name in FIGURES[task]}
    assert {name for name in metrics if name.startswith("eval_")} == expected
    assert all(0.0 <= metrics[name] <= 100.0 for name in expected)
    assert {name: history[name] for name in expected} == {name: {2: metrics[name]} for name in expected}
    artifacts = {r["path"] for r in read_records(folder) if r["kind"] == "artifact"}
    assert artifacts == OF_ONE_TASK | ({PER_CLASS} if task in CLASS_TASKS else set())
    if task in CLASS_TASKS:
        (classes,) = json.loads((folder / PER_CLASS).read_text()).values()
        main = [next(iter(of_class.values())) for of_class in classes.values()]
        assert statistics.mean(main) == pytest.approx(metrics[f"eval_{MAIN[task]}"], rel=1e-9)


def test_expressions_without_a_target_have_figures_of_their_own(
    arguments: Make, grefs_file: Path, small_data: Path
) -> None:
    paths = {"referring_json_path": str(grefs_file), "referring_image_folder": str(small_data)}
    metrics = train(arguments(seg_task="referring", max_steps=1, **paths))
    figures = {name for name in metrics if name.startswith("eval_")}
    assert figures == {f"eval_{name}" for name in (*FIGURES[REFERRING], "n_acc", "t_acc")}


def test_joined_expressions_have_other_names(arguments: Make) -> None:
    metrics = train(arguments(seg_task="referring", refer_expressions="joined", max_steps=1))
    assert {name for name in metrics if name.startswith("eval_")} == {f"eval_{n}_joined" for n in FIGURES[REFERRING]}


@dataclass(frozen=True)
class Mixture:
    """A run of all tasks, and what it has left."""

    folder: Path
    metrics: dict[str, float]
    printed: str

    @property
    def history(self) -> dict[str, dict[int, float]]:
        return logged(str(self.folder))


@pytest.fixture(scope="module")
def mixture(
    settings_in: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Mixture:
    folder = tmp_path_factory.mktemp("mixture")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        metrics = train(
            parse_settings(
                settings_in(
                    folder,
                    seg_task=ALL,
                    data_ratio="region=2",
                    max_steps=16,
                    logging_steps=4,
                    save_final_model=True,
                    save_predictions=True,
                )
            )
        )
    return Mixture(folder, metrics, printed.getvalue())


def test_losses_of_a_mixture_stand_below_their_tasks(mixture: Mixture) -> None:
    names = {f"{task}/{name}" for task in TASKS for name in ("loss", *LOSSES[task])}
    assert {name for name in mixture.history if "loss" in name} == {"loss", *names}
    assert list(mixture.history["loss"]) == [4, 8, 12, 16]


def test_steps_of_each_task_are_counted(mixture: Mixture) -> None:
    """A loss is absent from a log whose steps its task did not have."""
    steps = {task: mixture.history[f"{task}/steps"] for task in TASKS}
    assert all(min(counts.values()) >= 0 and counts[16] > 0 for counts in steps.values())
    for step in (4, 8, 12, 16):
        assert sum(counts[step] for counts in steps.values()) == step
        for task, counts in steps.items():
            assert (step in mixture.history[f"{task}/loss_mask"]) == (counts[step] > counts.get(step - 4, 0.0)), task


def test_loss_of_a_mixture_is_the_mean_over_all_its_steps(mixture: Mixture) -> None:
    history = mixture.history
    for step in (4, 8, 12, 16):
        total = 0.0
        for task in TASKS:
            steps = history[f"{task}/steps"][step] - history[f"{task}/steps"].get(step - 4, 0.0)
            total += steps * history[f"{task}/loss"].get(step, 0.0)
        assert history["loss"][step] == pytest.approx(total / 4, rel=1e-6)


def test_metrics_of_a_mixture_are_named_by_task_and_led_by_their_mean(mixture: Mixture) -> None:
    figures = {name: value for name, value in mixture.metrics.items() if name.startswith("eval_")}
    assert figures.keys() == {"eval_mean", *(f"eval_{task}_{name}" for task in TASKS for name in FIGURES[task])}
    main = [figures[f"eval_{task}_{MAIN[task]}"] for task in TASKS]
    assert figures["eval_mean"] == pytest.approx(statistics.mean(main), rel=1e-12)
    assert next(iter(mixture.metrics)) == "eval_mean"


def test_pictures_and_predictions_of_a_mixture_are_named_by_task(mixture: Mixture) -> None:
    artifacts = {r["path"] for r in read_records(mixture.folder) if r["kind"] == "artifact"}
    pictures = {f"artifacts/predictions_{task}.png" for task in TASKS}
    others = {f"artifacts/{name}" for name in ("config.yaml", "weights.txt", "curves.png", "per_class.json")}
    assert artifacts == others | pictures
    assert json.loads((mixture.folder / PER_CLASS).read_text()).keys() == set(CLASS_TASKS)
    results = {path.name for path in (mixture.folder / "predictions").iterdir()}
    assert results == {"panoptic_predictions", *(f"{task}_predictions.json" for task in TASKS)}


def test_data_of_a_mixture_are_told_and_tagged_by_task(mixture: Mixture, small_data: Path) -> None:
    tags = {
        name: value for r in read_records(mixture.folder) if r["kind"] == "tags" for name, value in r["values"].items()
    }
    for task in TASKS:
        steps = int(mixture.history[f"{task}/steps"][16])
        share = "29%" if task == REGION else "14%"
        assert f"  {task}: " in mixture.printed
        assert f" samples, {steps} of 16 steps ({share}); validation: " in mixture.printed
        assert tags[f"validation.{task}"].startswith(str(small_data))
        assert tags[f"samples.{task}"] >= 12
        assert tags[f"share.{task}"] == pytest.approx(2 / 7 if task == REGION else 1 / 7)
        assert tags[f"steps.{task}"] == steps
        assert tags[f"data_fingerprint_{task}_train"] != tags[f"data_fingerprint_{task}_val"]


@pytest.mark.parametrize("task", TASKS)
def test_a_mixture_scored_on_one_task_gives_that_task_s_figures(mixture: Mixture, task: str) -> None:
    metrics = evaluate_checkpoint(mixture.folder / "model", changes={"seg_task": task})
    assert {name: value for name, value in metrics.items() if name.startswith("eval_")} == {
        f"eval_{name}": mixture.metrics[f"eval_{task}_{name}"] for name in FIGURES[task]
    }


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


@pytest.mark.parametrize(
    ("tasks", "workers"), [("panoptic", 0), ("panoptic", 1), ("panoptic,referring,region,cross_image", 0)]
)
def test_resumed_run_equals_uninterrupted_bit_for_bit(
    arguments: Make, tmp_path: Path, tasks: str, workers: int
) -> None:
    common = {
        "seg_task": tasks,
        "max_steps": 5,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "save_final_model": True,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 1,
        "dataloader_num_workers": workers,
        "train_backbone": True,
        "backbone_lr_multiplier": 0.5,
        "offset_lr_multiplier": 0.1,
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


def test_resume_state_of_a_stranger_is_not_read(arguments: Make, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "run-by-a-stranger",)

    foreign = tmp_path / "downloads" / "checkpoint-3"
    (foreign / "global_step3").mkdir(parents=True)
    (foreign / "trainer_state.json").write_text('{"global_step": 3}')
    for name in ("global_step3/mp_rank_00_model_states.pt", "optimizer.pt", "rng_state.pth"):
        torch.save(Malicious(), foreign / name)
    args = arguments()
    with pytest.raises(SettingError, match="only the run's own is trusted"):
        train(args, resume_from_checkpoint=str(foreign))
    assert not (tmp_path / "run-by-a-stranger").exists()
    assert not Path(args.training.output_dir).exists(), "and nothing is recorded"


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


@pytest.mark.parametrize("task", TASKS)
def test_accumulation_equals_one_large_batch(arguments: Make, task: str) -> None:
    """Images of a batch have different numbers of masks and regions, and still every mask weighs the same."""
    common = {"seg_task": task, "max_steps": 1, "max_grad_norm": 0.0, "eval_strategy": "no"}
    large, large_losses = first_gradients(arguments(per_device_train_batch_size=4, **common))
    split, split_losses = first_gradients(
        arguments(per_device_train_batch_size=1, gradient_accumulation_steps=4, **common)
    )
    assert large.keys() == split.keys()
    assert large_losses.keys() == {"loss", *LOSSES[task]}
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


def test_epochs_of_a_mixture_are_passes_over_the_data_of_all_tasks(arguments: Make) -> None:
    trainer = build_trainer(arguments(seg_task="panoptic,region,cross_image", max_steps=-1, num_train_epochs=1.0))
    assert trainer.args.max_steps == 18, "12 images, 12 with regions and 12 pairs in steps of 2"


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


def test_a_bad_image_of_several_tasks_is_counted_once(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    data = ensure_builtin(tmp_path / "data", train_images=3, val_images=2)
    bad = sorted((data / "val2017").iterdir())[0]
    bad.write_bytes(bad.read_bytes()[:100])
    train(
        parse_settings(
            settings(seg_task="panoptic,region", panoptic_json_path=str(data), max_steps=1, skip_bad_images=True)
        )
    )
    *_, last = read_records(tmp_path / "run")
    assert (last["event"], last["bad_images"]) == ("completed", [bad.name])


def test_checkpoint_holds_what_evaluation_needs(arguments: Make) -> None:
    args = arguments(max_steps=1, save_strategy="steps", save_steps=1)
    train(args)
    checkpoint = Path(args.training.output_dir) / "checkpoint-1"
    names = {path.name for path in checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "settings.json", "tokenizer.json"} <= names
    assert json.loads((checkpoint / "settings.json").read_text())["mm_n_points"] == 2
