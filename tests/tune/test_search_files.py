"""The search files that are shipped: one for every task, judged by what its trials are judged by."""

from pathlib import Path

import pytest

from psalm.constants import TASKS
from psalm.train.arguments import argument_fields
from psalm.train.tasks import main_metric_names, tasks_of
from tune.config import SearchConfig, load_config

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "search"
FILES = sorted(FOLDER.glob("*.yaml"))


def tasks_of_search(config: SearchConfig) -> tuple[str, ...]:
    return tasks_of({name: field.default for name, field in argument_fields().items()} | config.arguments)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_search_is_judged_by_its_tasks_at_whole_rungs(file: Path) -> None:
    config = load_config(file)
    settings = {name: field.default for name, field in argument_fields().items()} | config.arguments
    assert (config.metric, config.mode) == (main_metric_names(settings)[0], "max")
    assert config.max_steps % config.arguments["eval_steps"] == 0, "the last step is evaluated"
    assert config.scheduler.grace_period % config.arguments["eval_steps"] == 0, "the first rung is evaluated"
    assert config.scheduler.grace_period < config.max_steps
    assert config.baselines, "the recommended setting is among the trials"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_search(task: str) -> None:
    assert tasks_of_search(load_config(FOLDER / f"{task}.yaml")) == (task,)


def test_the_published_weights_are_searched_with_the_recommended_setting_first() -> None:
    config = load_config(FOLDER / "phi15_swin.yaml")
    first, second = config.examples()[:2]
    recommended = {"mm_hidden_dim": 256, "mm_n_heads": 8, "mm_n_points": 4, "learning_rate": 6e-5, "swin_type": "base"}
    assert recommended.items() <= first.items()
    assert recommended.items() - second.items() == {("swin_type", "base")}, "both towers are tried for sure"
    assert {first["vision_tower"], second["vision_tower"]} == {"${MASK2FORMER_SWIN_BASE}", "${MASK2FORMER_SWIN_LARGE}"}
    assert len(list(config.space.examples())) == 1 + 3 + 2 + 1 + 2 + 1, "every combination of sizes is valid"


def test_the_mixture_is_searched_by_its_mean() -> None:
    config = load_config(FOLDER / "mixed.yaml")
    assert tasks_of_search(config) == TASKS
    assert config.metric == "eval_mean"
