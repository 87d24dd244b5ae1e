"""How many trials will be stopped, and what a search will take: run through in simulated time, with its own rule.

Nothing is known of the values yet, so trials are ranked at random, the same at every step. That is between two ends:
each trial is worse than all before it, so that every one but the first is stopped as early as can be; and none is
stopped. Of population based training all three are the last one: how many are stopped and forked is not modelled.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from psalm.train.arguments import with_defaults
from tune.config import SearchConfig
from tune.simulation.curve_file import Curve
from tune.simulation.simulation import Costs, simulate
from tune.study.board import Board
from tune.study.steps import evaluation_steps

LOW, LIKELY, HIGH = "low", "likely", "high"
FEWEST_DRAWS, MOST_DRAWS = 20, 200
EVALUATIONS = 50_000
"""About as many are simulated, as long as the numbers of draws allow it."""


@dataclass(frozen=True)
class TrialTime:
    """Seconds of a trial of one setting.

    Args:
        step: of a training step.
        evaluation: of an evaluation, with what is done beside it.
    """

    step: float
    evaluation: float


@dataclass(frozen=True)
class Expectation:
    """What a search comes to; means, where trials are ranked at random.

    Args:
        completed: trials of full length.
        stopped: trials that are stopped early.
        confirmations: runs of full length with new seeds, after the trials.
        lane_seconds: of all lanes, from the search's start until there is no trial for them.
        wall_seconds: from its start to its end.
    """

    completed: float
    stopped: float
    confirmations: float
    lane_seconds: float
    wall_seconds: float


def expect(config: SearchConfig, at_once: int, times: Sequence[TrialTime], costs: Costs) -> dict[str, Expectation]:
    """The low, likely and high expectation of a search.

    Args:
        config: the search.
        at_once: trials at a time.
        times: of probed settings; a trial is taken to be like one of them, drawn at random, or like their mean at the
            ends.
        costs: seconds of starting, and of every trial besides its steps and evaluations.
    """
    never = dataclasses.replace(config, scheduler=dataclasses.replace(config.scheduler, name="none"))
    if config.scheduler.name == "pbt":
        config = never
    steps = evaluation_steps(with_defaults(config.arguments))
    mean = TrialTime(statistics.fmean(t.step for t in times), statistics.fmean(t.evaluation for t in times))
    better = 1 if config.mode == "max" else -1

    full = mean.step * config.max_steps + mean.evaluation * len(steps) + costs.overhead

    def through(config: SearchConfig, time: Callable[[int], TrialTime], rank: Callable[[int], float]) -> Expectation:
        def next_run(board: Board) -> Curve:
            number = len(board.trials)
            values = dict.fromkeys(steps, better * rank(number))
            return Curve({}, 0, values, time(number).step, time(number).evaluation, None)

        search = simulate(config, at_once, costs, next_run)
        completed = len(search.completions)
        confirmations = _confirmations(config, completed)
        return Expectation(
            completed=completed,
            stopped=len(search.stopped),
            confirmations=confirmations,
            lane_seconds=search.spent + confirmations * full,
            wall_seconds=search.seconds + -(-confirmations // at_once) * full,
        )

    def drawn(number: int) -> Expectation:
        draws = np.random.default_rng((config.seed, number))
        ranks = draws.permutation(config.num_samples)
        which = draws.integers(len(times), size=config.num_samples)
        return through(config, lambda trial: times[which[trial]], lambda trial: float(ranks[trial]))

    count = EVALUATIONS // (config.num_samples * len(steps))
    return {
        LOW: through(config, lambda _: mean, lambda trial: -float(trial)),
        LIKELY: _mean([drawn(number) for number in range(min(max(count, FEWEST_DRAWS), MOST_DRAWS))]),
        HIGH: through(never, lambda _: mean, lambda _: 0.0),
    }


def _confirmations(config: SearchConfig, completed: int) -> int:
    """Runs that confirm the best settings, and the baseline where it is none of them."""
    if config.confirm is None:
        return 0
    return min(config.confirm.best + bool(config.baselines), completed) * config.confirm.seeds


def _mean(searches: Sequence[Expectation]) -> Expectation:
    each = [dataclasses.asdict(search) for search in searches]
    return Expectation(**{name: statistics.fmean(search[name] for search in each) for name in each[0]})
