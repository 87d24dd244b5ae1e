"""Ray Tune asks, an Optuna study answers, and the study is told what really happened."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune.search import Searcher

from tune.config import SearchConfig
from tune.space import SearchSpace

STEP = "global_step"
"""The time axis of a search: the name under which every result carries its global training step."""


def create_study(config: SearchConfig) -> optuna.Study:
    """An empty study with the search's sampler; its first trials will be the baselines."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = StudyDirection.MAXIMIZE if config.mode == "max" else StudyDirection.MINIMIZE
    study = optuna.create_study(sampler=create_sampler(config), direction=direction)
    for baseline in config.baselines:
        study.enqueue_trial(config.space.study_params(baseline))
    return study


def create_sampler(config: SearchConfig) -> optuna.samplers.BaseSampler:
    """The sampler of a name; TPE models all parameters jointly, in groups where their set differs between trials."""
    if config.sampler.name == "random":
        return optuna.samplers.RandomSampler(seed=config.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=config.sampler.n_startup_trials,
            multivariate=True,
            group=config.space.conditional,
            constant_liar=True,
            seed=config.seed,
        )


class StudySearcher(Searcher):
    """Hands the study's proposals to Tune as ``{"number": int, "params": {...}}``, numbered from ``first_number``.

    The study learns every value at its global step. A trial is COMPLETE with its last value only if it ran to
    ``full_length``; one that was stopped before is PRUNED (its last intermediate value counts, as Optuna's own
    pruning does it), and one that failed or has no finite value is FAIL.
    """

    def __init__(
        self, study: optuna.Study, space: SearchSpace, metric: str, mode: str, full_length: int, first_number: int = 0
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self.study = study
        self.space = space
        self.full_length = full_length
        self._next_number = first_number
        self._running: dict[str, optuna.Trial] = {}
        self._last: dict[str, tuple[int, float]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The next trial's number and its values of the searched arguments."""
        trial = self.study.ask()
        self._running[trial_id] = trial
        suggestion = {"number": self._next_number, "params": self.space.suggest(trial)}
        self._next_number += 1
        return suggestion

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Tell the study an intermediate value (once: Tune repeats the last result when a trial has ended)."""
        step, value = result.get(STEP), result.get(self.metric)
        if step is None or value is None or step == self._last.get(trial_id, (None, None))[0]:
            return
        self._last[trial_id] = (step, value)
        if math.isfinite(value):
            self._running[trial_id].report(value, step=step)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended. ``result`` is its last one, which the scheduler may have kept from us."""
        if result:
            self.on_trial_result(trial_id, result)
        trial = self._running.pop(trial_id)
        step, value = self._last.pop(trial_id, (0, math.nan))
        if error or not math.isfinite(value):
            self.study.tell(trial, state=TrialState.FAIL)
        elif step < self.full_length:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, value)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing to save: a search is rebuilt from the records of its runs, not from Ray's snapshot."""
