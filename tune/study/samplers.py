"""What each sampler proposes for a trial, best first: the later ones are for when a setting was had before.

``tune.config.SamplerConfig`` says when to choose which. All are functions of the search's settings, its trials and the
new trial's number: random numbers come from the search's seed and that number, and nothing is kept in between.
"""

import math
import random
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from scipy.stats.qmc import Sobol

from tune.config import SearchConfig
from tune.space.linked import Setting

TRIES = 4
"""How often a model is asked before settings are drawn at random."""
DRAWS = 100
"""How many settings are drawn before the combinations are gone through, if there is an end to them."""


def suggestions(config: SearchConfig, number: int, study: optuna.Study) -> Iterator[Setting]:
    """Settings for a trial: the sampler's own, then random ones, then all; without end where some are continuous.

    Args:
        config: the search.
        number: of the trial.
        study: of the trials before; it is asked, and so has more trials afterwards.
    """
    own: Iterable[Setting]
    match config.sampler.name:
        case "grid":
            own = _shuffled(config)
        case "qmc":
            own = islice(_low_discrepancy(config, number - len(config.baselines)), DRAWS)
        case _:
            own = _asked(config, number, study)
    yield from own
    seed = _seed(config, number, TRIES)
    others = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn = (config.space.suggest(others.ask()) for _ in iter(int, 1))
    yield from drawn if config.space.continuous else chain(islice(drawn, DRAWS), config.space.combinations())


def create_sampler(config: SearchConfig, seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler of a name; TPE models all parameters jointly, in groups where their set differs."""
    startup = config.sampler.n_startup_trials
    match config.sampler.name:
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "gp":
            return optuna.samplers.GPSampler(n_startup_trials=startup, seed=seed)
        case "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return optuna.samplers.TPESampler(
                    n_startup_trials=startup,
                    multivariate=True,
                    group=config.space.conditional,
                    constant_liar=True,
                    seed=seed,
                )
        case unknown:
            raise ValueError(f"Optuna's samplers here are tpe, gp and random, not {unknown}")


def _seed(config: SearchConfig, number: int, attempt: int) -> int:
    return int(np.random.SeedSequence((config.seed, number, attempt)).generate_state(1)[0])


def _asked(config: SearchConfig, number: int, study: optuna.Study) -> Iterator[Setting]:
    """What Optuna's sampler proposes. It knows what it has proposed for this trial before, as trials that run."""
    for attempt in range(TRIES):
        study.sampler = create_sampler(config, _seed(config, number, attempt))
        yield config.space.suggest(study.ask())


def _shuffled(config: SearchConfig) -> list[Setting]:
    """Every setting once, in an order that is the same for all trials."""
    settings = list(config.space.combinations())
    random.Random(config.seed).shuffle(settings)
    return settings


def _low_discrepancy(config: SearchConfig, place: int) -> Iterator[Setting]:
    """The settings at the points of a scrambled Sobol sequence, from some place of it on.

    Each argument in a setting takes one coordinate, in the order in which the space draws them.
    """
    sequence = Sobol(len(config.space.names), rng=config.seed)
    if place > 0:
        sequence.fast_forward(place)
    while True:
        yield config.space.suggest(_Point(sequence.random()[0]))


class _Point:
    """Suggests what is at a point of the unit cube, one coordinate after another."""

    def __init__(self, coordinates: Iterable[float]) -> None:
        self._coordinates = iter(coordinates)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[int(next(self._coordinates) * len(choices))]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return low + step * int(next(self._coordinates) * len(range(low, high + 1, step)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        at = float(next(self._coordinates))
        value = math.exp((1 - at) * math.log(low) + at * math.log(high)) if log else (1 - at) * low + at * high
        return min(max(value, low), high)
