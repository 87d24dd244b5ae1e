"""When a trial is evaluated and how long it warms up, against what transformers does with the same settings."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import DefaultFlowCallback

from psalm.train.argument_groups import TrainingArguments
from psalm.train.arguments import with_defaults
from tune.config import load_config
from tune.options import DEFAULT_CONFIG
from tune.study.steps import evaluation_steps, warmup_steps

GIVEN = [
    {"max_steps": 150, "eval_steps": 50, "warmup_ratio": 0.1},
    {"max_steps": 150, "eval_steps": 40, "warmup_steps": 20},
    {"max_steps": 101, "eval_steps": 0.3, "warmup_ratio": 0.07},
    {"max_steps": 10, "eval_steps": 4, "eval_delay": 5, "warmup_ratio": 1.0},
    {"max_steps": 10, "eval_steps": 20, "warmup_steps": 0.25},
    {"max_steps": 30, "eval_steps": None, "logging_steps": 7},
]


@pytest.mark.parametrize("given", GIVEN)
def test_evaluations_and_warmup_are_those_of_the_trainer(given: dict[str, Any], tmp_path: Path) -> None:
    settings = with_defaults(given)
    arguments = TrainingArguments(output_dir=str(tmp_path), eval_strategy="steps", save_strategy="no", **given)
    state = TrainerState(max_steps=given["max_steps"])
    state.compute_steps(arguments, given["max_steps"])
    evaluated = []
    for state.global_step in range(1, given["max_steps"] + 1):
        if DefaultFlowCallback().on_step_end(arguments, state, TrainerControl()).should_evaluate:
            evaluated.append(state.global_step)
    assert evaluation_steps(settings) == evaluated
    assert warmup_steps(settings) == arguments.get_warmup_steps(given["max_steps"])


@pytest.mark.parametrize(
    ("arguments", "grace"),
    [
        ({"eval_steps": 10, "warmup_ratio": 0.1}, 20),
        ({"eval_steps": 10, "warmup_ratio": 0.2}, 40),
        ({"eval_steps": 50, "warmup_ratio": 0.0}, 50),
        ({"eval_steps": 50, "warmup_ratio": 0.0, "eval_delay": 60}, 100),
        ({"eval_steps": 50, "warmup_steps": 140}, 150),
    ],
)
def test_nobody_is_stopped_before_the_first_evaluation_after_the_warmup(
    arguments: dict[str, Any], grace: int, tmp_path: Path
) -> None:
    content = yaml.safe_load(DEFAULT_CONFIG.read_text())
    content |= {"scheduler": {"name": "asha"}, "arguments": content["arguments"] | arguments}
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(content))
    assert load_config(file).scheduler.grace_period == grace
