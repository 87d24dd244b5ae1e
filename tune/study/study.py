"""An Optuna study of a search's trials proposes the next settings, and is told what really happened.

A proposal is a function of the search's settings, its trials and the new trial's number. The study is made anew from
the trials for each, and so is the sampler (``tune.study.samplers``), whose random numbers come from the search's seed
and the trial's number: a search that is resumed proposes what it would have proposed.
"""

from collections.abc import Iterable, Mapping

import optuna
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from tune.config import SearchConfig
from tune.space.parameters import Value
from tune.space.space import SearchSpace
from tune.study.board import Status, TrialRow
from tune.study.samplers import suggestions
from tune.study.warm_start import Earlier, aligned

_STATES = {
    Status.WAITING: TrialState.RUNNING,  # has its settings, and will have its values
    Status.RUNNING: TrialState.RUNNING,
    Status.COMPLETED: TrialState.COMPLETE,
    Status.PRUNED: TrialState.PRUNED,
    Status.FAILED: TrialState.FAIL,
}


def propose(config: SearchConfig, rows: Iterable[TrialRow], earlier: Iterable[Earlier] = ()) -> dict[str, Value] | None:
    """The setting of the trial after those in ``rows``: a baseline, then the first of the sampler's that is new.

    No setting is proposed twice, however its trial ended; only a file may list one several times, as baselines.

    Args:
        config: the search.
        rows: its trials, numbered from 0 without gaps.
        earlier: what the sampler knows besides.

    Returns:
        The setting; None if every setting of the space was had.
    """
    rows = list(rows)
    number = len(rows)
    if number < len(config.baselines):
        return config.space.suggest(FixedTrial(config.space.study_params(config.baselines[number])))
    study = create_study(config, rows)
    study.add_trials(_known(params, value, config.space) for params, value in aligned(earlier, rows))
    had = {frozenset(row.params.items()) for row in rows}
    return next((new for new in suggestions(config, number, study) if frozenset(new.items()) not in had), None)


def create_study(config: SearchConfig, rows: Iterable[TrialRow]) -> optuna.Study:
    """The study of a search with these trials.

    A trial is COMPLETE with its last value only if it ran to its full length; one that was stopped before is PRUNED
    (its last value counts, as Optuna's own pruning does it), and one that failed is FAIL. Forks are left out: their
    learning rate is not that of their setting.

    Of several objectives, a trial is COMPLETE with the values of all. Optuna knows no pruned trials then: its TPE takes
    one without intermediate values for bad in every objective, and breaks on one with them; its GP leaves them out. A
    trial that was stopped is known to be bad in the first objective only, and may well be on the front, as the cheapest
    one. So it is FAIL: nothing is learnt from it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    modes = [each.mode for each in config.objectives] or [config.mode]
    directions = [StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE for mode in modes]
    study = optuna.create_study(directions=directions)
    study.add_trials(trial_of(row, config) for row in rows if row.fork is None)
    return study


def trial_of(row: TrialRow, config: SearchConfig) -> FrozenTrial:
    """A trial as the study knows it, see ``create_study``."""
    params, distributions = _in_study(row.params, config.space)
    state, values = _STATES[row.status], None
    if config.objectives and state == TrialState.PRUNED:
        state = TrialState.FAIL
    if state in (TrialState.COMPLETE, TrialState.PRUNED) and row.last is not None:
        values = list(row.objectives.values()) if config.objectives else [row.last]
    return optuna.create_trial(
        state=state,
        values=values,
        params=params,
        distributions=distributions,
        intermediate_values=row.values,
    )


def _known(setting: Mapping[str, Value], value: float, space: SearchSpace) -> FrozenTrial:
    """A trial of an earlier search."""
    params, distributions = _in_study(setting, space)
    return optuna.create_trial(state=TrialState.COMPLETE, value=value, params=params, distributions=distributions)


def _in_study(
    setting: Mapping[str, Value], space: SearchSpace
) -> tuple[dict[str, Value], dict[str, optuna.distributions.BaseDistribution]]:
    """A setting as the study knows it: parameters and what they were drawn from."""
    trial = FixedTrial(space.study_params(setting))
    space.suggest(trial)
    return trial.params, trial.distributions
