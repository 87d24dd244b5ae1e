"""How far does a new deformable projector move a trained baseline before it has learnt anything?

    python -m psalm.tools.measure_deformable_start --checkpoint runs/baseline/model [--mm_hidden_dim 64] ...

A deformable projector is put beside the baseline by each of several starts: fresh weights, or a token that is the same
for every query. What the model says about the validation data is compared with what it said before: the language
model's last states at the segmentation queries, mask logits and scores, each as the mean absolute difference in
standard deviations of the baseline's. ``psalm.model.deformable_start`` is what came of it.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psalm.data.collator import Collator
from psalm.data.prompts import PromptBuilder
from psalm.data.questions import Evaluation
from psalm.model.checkpoints import build_model, load_model
from psalm.model.deformable_start import start_with_zero_tokens
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.mask_decoder.prediction import Prediction
from psalm.model.weight_files import BUILTIN
from psalm.tools.adapt_pretrain_to_deformable import SETTINGS
from psalm.train.arguments import argument_fields, check_setting, check_settings
from psalm.train.evaluate import read_settings
from psalm.train.quiet import quiet_libraries
from psalm.train.scorers import SCORERS
from psalm.train.scoring import answer_batches, make_loader, shard
from psalm.train.task_data import load_validation
from psalm.train.tasks import METRICS, tasks_of
from psalm.train.train import task_examples

QUANTITIES = ("states", "masks", "scores")
FRESH, ZERO, RANDOM = "fresh weights", "zero (used)", "random token as long as an image token"


@dataclass(frozen=True)
class Said:
    """What a model says about the questions of a task: each of ``QUANTITIES``, flat; and the task's main metric."""

    quantities: dict[str, Tensor]
    metric: float


def listen(model: PsalmForSegmentation, evaluation: Evaluation, collate: Collator, batch_size: int) -> Said:
    """Asks all questions of an evaluation."""
    heard: dict[str, list[Tensor]] = {name: [] for name in QUANTITIES}

    def hear_states(_: Any, inputs: tuple[Tensor]) -> None:
        heard["states"].append(inputs[0].flatten())

    def hear_prediction(_: Any, __: Any, predictions: list[Prediction]) -> None:
        said = predictions[-1]
        scores = (said.class_logits, said.seg_logits, *(said.region_logits or ()))
        heard["masks"].append(said.masks.flatten())
        heard["scores"] += [each.flatten() for each in scores if each is not None]

    hooks = (
        model.seg_query_projector.register_forward_pre_hook(hear_states),
        model.predictor.register_forward_hook(hear_prediction),
    )
    scorer = SCORERS[evaluation.task](evaluation.data)
    loader = make_loader(evaluation, shard(len(evaluation), batch_size, 0, 1).batches, collate)
    for answers in answer_batches(model, loader, lambda batch: batch, scorer):
        for asked, answer in answers:
            scorer.count(asked, answer)
    for hook in hooks:
        hook.remove()
    quantities = {name: torch.cat(tensors) for name, tensors in heard.items()}
    return Said(quantities, scorer.metric.compute()[METRICS[evaluation.task][0]])


def distances(said: Said, baseline: Said) -> dict[str, float]:
    """Mean absolute difference of each quantity, in standard deviations of the baseline's."""
    return {
        name: float((said.quantities[name] - before).abs().mean() / before.std())
        for name, before in baseline.quantities.items()
    }


def constant_tokens(model: PsalmForSegmentation, image_token: Tensor) -> dict[str, Tensor]:
    """Tokens [D] to start with, by what they are."""
    direction = torch.randn(len(image_token), generator=torch.Generator().manual_seed(0))
    return {
        "the baseline's fc.bias": model.model.mm_projector.fc.bias,
        "mean image token": image_token,
        "mean embedding": model.model.get_input_embeddings().weight.mean(0),
        "mean segmentation query": model.seg_query.mean(0),
        RANDOM: direction * image_token.norm() / direction.norm(),
    }


@torch.no_grad()
def measure(checkpoint: Path, settings: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    """A table in Markdown: a row per start."""
    baseline, tokenizer = load_model(checkpoint)
    baseline.float()
    (task,) = tasks_of(settings)
    evaluation = Evaluation(task_examples(settings, load_validation(settings, task), PromptBuilder(tokenizer)))
    asked = (evaluation, Collator(tokenizer.pad_token_id), settings["per_device_eval_batch_size"])
    image_tokens: list[Tensor] = []
    hook = baseline.model.mm_projector.register_forward_hook(
        lambda _, __, tokens: image_tokens.append(tokens.mean((0, 1)))
    )
    before = listen(baseline, *asked)
    hook.remove()

    torch.manual_seed(settings["seed"])
    model, _ = build_model(
        str(checkpoint), BUILTIN, settings["swin_type"], **{**changes, "mm_projector_type": "deformable"}
    )
    model.eval()
    metric = METRICS[task][0]
    lines = [f"| start | {' | '.join(QUANTITIES)} | {metric} |", "|---" * (len(QUANTITIES) + 2) + "|"]

    def add(start: str) -> None:
        said = listen(model, *asked)
        shown = " | ".join(f"{value:.4f}" for value in distances(said, before).values())
        lines.append(f"| {start} | {shown} | {said.metric:.2f} |")

    add(FRESH)
    start_with_zero_tokens(model.model.mm_projector_deformable)
    add(ZERO)
    for name, token in constant_tokens(baseline, torch.stack(image_tokens).mean(0)).items():
        model.model.mm_projector_deformable.output_proj.bias.copy_(token)
        add(name)
    return "\n".join([*lines, f"| the baseline itself | {'0 | ' * len(QUANTITIES)}{before.metric:.2f} |"])


def main() -> None:
    """Command line."""
    quiet_libraries()
    parser = argparse.ArgumentParser(description="Compare starts of a deformable projector beside a trained baseline.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="A run's model: swin_conv, one task.")
    for name in SETTINGS:
        field = argument_fields()[name]
        parser.add_argument(f"--{name}", default=field.default, help=field.help)
    given = parser.parse_args()
    changes = {name: check_setting(name, getattr(given, name)) for name in SETTINGS}
    settings = check_settings(read_settings(given.checkpoint) | {"deepspeed": None})
    sys.stdout.write(measure(given.checkpoint, settings, changes) + "\n")


if __name__ == "__main__":
    main()
