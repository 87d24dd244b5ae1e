"""What a model says is heard whole, and compared in standard deviations."""

from collections.abc import Callable

import pytest
import torch

from psalm.data.collator import Collator
from psalm.data.prompts import PromptBuilder
from psalm.data.questions import Evaluation
from psalm.data.samples import Example
from psalm.model.checkpoints import build_model
from psalm.tools.measure_deformable_start import QUANTITIES, Said, distances, listen
from psalm.train.arguments import check_settings, with_defaults
from psalm.train.task_data import load_validation
from psalm.train.train import task_examples

QUESTIONS = 2


@pytest.mark.parametrize(
    ("task", "asked"),
    [
        ("panoptic", lambda example: len(example.prompt_ids)),
        ("referring", lambda _: 1),
        ("region", lambda example: len(example.region_masks)),
    ],
)
def test_all_that_is_said_is_heard(task: str, asked: Callable[[Example], int]) -> None:
    model, tokenizer = build_model("builtin", "builtin", "base", mm_projector_type="swin_conv")
    model.eval()
    settings = with_defaults(check_settings({"seg_task": task, "image_size": 64}))
    evaluation = Evaluation(task_examples(settings, load_validation(settings, task), PromptBuilder(tokenizer)))
    evaluation.items = evaluation.items[:QUESTIONS]
    examples = [evaluation[item].example for item in range(QUESTIONS)]
    said = listen(model, evaluation, Collator(tokenizer.pad_token_id), batch_size=1)
    queries = model.config.num_queries
    assert said.quantities["states"].numel() == QUESTIONS * queries * model.config.text_config.hidden_size
    assert said.quantities["masks"].numel() == QUESTIONS * queries * (64 // 4) ** 2
    assert said.quantities["scores"].numel() == queries * sum(map(asked, examples))
    again = listen(model, evaluation, Collator(tokenizer.pad_token_id), batch_size=1)
    assert distances(again, said) == dict.fromkeys(QUANTITIES, 0)


def test_a_distance_is_in_standard_deviations_of_the_baseline() -> None:
    before = torch.tensor([0.0, 2.0, 4.0])  # standard deviation 2
    moved = before + torch.tensor([1.0, -1.0, 4.0])
    said, baseline = (Said(dict.fromkeys(QUANTITIES, values), 0.0) for values in (moved, before))
    assert distances(said, baseline) == pytest.approx(dict.fromkeys(QUANTITIES, 1.0))
