"""At which global steps a trial is evaluated, and how long it warms up: what follows from its settings."""

import math
from collections.abc import Mapping
from typing import Any


def evaluation_steps(settings: Mapping[str, Any]) -> list[int]:
    """The steps at which a run of ``max_steps`` is evaluated, in order; the last one always is.

    Args:
        settings: every training argument of the run, with ``eval_strategy`` steps.
    """
    length = int(settings["max_steps"])
    every = settings["eval_steps"] or settings["logging_steps"]
    every = math.ceil(every * length) if every < 1 else int(every)
    return [step for step in (*range(every, length, every), length) if step >= settings["eval_delay"]]


def warmup_steps(settings: Mapping[str, Any]) -> int:
    """The steps over which a run's learning rate rises.

    Args:
        settings: every training argument of the run.
    """
    steps = settings["warmup_steps"]
    return int(steps) if steps >= 1 else math.ceil((steps or settings["warmup_ratio"]) * settings["max_steps"])


def first_evaluation_after_warmup(settings: Mapping[str, Any]) -> int:
    """The step of the first value that says something about a run; its last step if there is none before.

    Args:
        settings: as of ``evaluation_steps``.
    """
    warmup = warmup_steps(settings)
    return next((step for step in evaluation_steps(settings) if step > warmup), int(settings["max_steps"]))
