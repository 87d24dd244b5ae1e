"""Learning curves of known shape over the default search's space."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tune.config import SearchConfig
from tune.simulation.curve_file import Curve, Curves
from tune.study.board import Board
from tune.study.study import propose

STEPS = range(10, 151, 10)


def settings_of(config: SearchConfig, count: int) -> list[Mapping[str, Any]]:
    """The baselines, then random settings of the search's space."""
    config = replace(config, sampler=replace(config.sampler, name="random"))
    board = Board(config.name, config.metric, config.mode, config.max_steps, count)
    for number in range(count):
        board.add(number, propose(config, board.trials.values()))
    return [row.params for row in board.trials.values()]


def asymptote(params: Mapping[str, Any]) -> float:
    """What a setting comes to."""
    return float(78 - 12 * abs(math.log10(params["learning_rate"]) + 3) + math.log2(params["mm_n_points"]))


def power_law(params: Mapping[str, Any], seed: int, step: int) -> float:
    """Its value at a step; settings never cross, and a seed moves a curve as a whole."""
    return asymptote(params) + seed / 4 - 300 / step


def curves_of(
    settings: list[Mapping[str, Any]],
    value: Callable[[Mapping[str, Any], int, int], float] = power_law,
    seeds: tuple[int, ...] = (0, 1),
) -> Curves:
    """Runs of every setting with every seed; no two settings take the same time."""
    runs = [
        Curve(
            params=params,
            seed=seed,
            values={step: value(params, seed, step) for step in STEPS},
            step_seconds=0.25 + params["mm_hidden_dim"] / 1000 + params["learning_rate"],
            evaluation_seconds=1.5,
            overhead_seconds=4.0,
        )
        for params in settings
        for seed in seeds
    ]
    return Curves("eval_pq", "max", STEPS[-1], 20.0, 2, tuple(runs))
