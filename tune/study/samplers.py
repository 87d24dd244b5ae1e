"""What each sampler proposes for a trial, best first: the later ones are for when a setting was had before.

``tune.config.SamplerConfig`` says when to choose which. All are functions of the search's settings, its trials and the
new trial's number: random numbers come from the search's seed and that number, and nothing is kept in between.
"""

import math
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import optuna
from cmaes import CMA, get_warm_start_mgd
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState
from scipy.stats.qmc import Sobol

from tune.config import SearchConfig
from tune.space.linked import Setting

TRIES = 4
"""How often a model is asked before settings are drawn at random."""
DRAWS = 100
"""How many settings are drawn before the combinations are gone through, if there is an end to them."""
SPREAD = 0.3
"""Of the first settings of ``cmaes``: a standard deviation, of each argument's whole range."""
ENOUGH_TO_START_FROM = 10
"""Trials of earlier searches from which ``cmaes`` estimates where to begin: the best tenth of them tells."""


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
        case "cmaes":
            own = islice(_evolved(config, number, study.get_trials(deepcopy=False)), DRAWS)
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


def _evolved(config: SearchConfig, number: int, trials: Sequence[FrozenTrial]) -> Iterator[Setting]:
    """Settings drawn from the distribution to which the trials lead.

    The optimizer is made anew and told the finished trials in the order of their numbers, a generation at a time; the
    last ones wait for their generation to be full. A trial that was stopped early ranks below all that ran further.
    It begins at the first baseline, else in the middle; or, with enough earlier trials, where the best of those are.

    Args:
        config: the search.
        number: of the new trial; so many of the trials are this search's, and others are earlier ones.
        trials: their settings and values.
    """
    names = config.space.names
    bounds = np.array([[0.0, 1.0]] * len(names))
    seed = _seed(config, number, 0)
    earlier = [(_Place(config, trial).coordinates, _loss(config, trial)[-1]) for trial in trials[number:]]
    if len(earlier) >= ENOUGH_TO_START_FROM:
        mean, sigma, covariance = get_warm_start_mgd(earlier)
        optimizer = CMA(mean=np.clip(mean, 0, 1), sigma=sigma, cov=covariance, bounds=bounds, seed=seed)
    else:
        middle = np.full(len(names), 0.5)
        mean = _Place(config, trials[0]).coordinates if config.baselines and number else middle
        optimizer = CMA(mean=mean, sigma=SPREAD, bounds=bounds, seed=seed)
    finished = [trial for trial in trials[:number] if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    size = optimizer.population_size
    for start in range(0, len(finished) - size + 1, size):
        generation = sorted(finished[start : start + size], key=partial(_loss, config))
        optimizer.tell([(_Place(config, trial).coordinates, float(rank)) for rank, trial in enumerate(generation)])
    while True:
        yield config.space.suggest(_Point(optimizer.ask()))


def _loss(config: SearchConfig, trial: FrozenTrial) -> tuple[int, float]:
    """What is smaller of the better trial: the steps that it is short of, then its value with the sign of a loss."""
    short = config.max_steps - trial.last_step if trial.state == TrialState.PRUNED and trial.last_step else 0
    assert trial.value is not None
    return short, -trial.value if config.mode == "max" else trial.value


class _Place:
    """Where a setting lies in the unit cube: what ``_Point`` suggests there is the setting.

    Args:
        config: the search.
        trial: of its study.
    """

    def __init__(self, config: SearchConfig, trial: FrozenTrial) -> None:
        self._params = trial.params
        self._found: list[float] = []
        config.space.suggest(self)

    @property
    def coordinates(self) -> np.ndarray:
        """In the order in which the space draws the arguments; of listed and whole ones, the middle of their share."""
        return np.array(self._found)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        value = self._params[name]
        self._found.append((list(choices).index(value) + 0.5) / len(choices))
        return value

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        value = int(self._params[name])
        self._found.append(((value - low) // step + 0.5) / len(range(low, high + 1, step)))
        return value

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        value = float(self._params[name])
        self._found.append(math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low))
        return value


class _Point:
    """Suggests what is at a point of the unit cube, one coordinate after another."""

    def __init__(self, coordinates: Iterable[float]) -> None:
        self._coordinates = iter(coordinates)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[min(int(next(self._coordinates) * len(choices)), len(choices) - 1)]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        values = range(low, high + 1, step)
        return values[min(int(next(self._coordinates) * len(values)), len(values) - 1)]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        at = float(next(self._coordinates))
        value = math.exp((1 - at) * math.log(low) + at * math.log(high)) if log else (1 - at) * low + at * high
        return min(max(value, low), high)
