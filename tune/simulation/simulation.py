"""A search in simulated time: its own proposals and its own decisions, answered from recorded learning curves.

Nothing is trained and nothing is invented: a proposal is answered by the nearest recorded setting that the search has
not had yet, and the sampler is told that setting, not the one that it proposed. Time is that of the records. A lane
starts once; each of its trials costs an overhead, its training steps, and its evaluations. Seconds do not depend on
how many lanes there are: they were taken with as many at once as the records say.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psalm.train.arguments import with_defaults
from tune.config import SearchConfig
from tune.simulation.curve_file import Curve, Curves
from tune.space.parameters import Value
from tune.study.board import Board, Status
from tune.study.schedulers import create_stopping_rule
from tune.study.steps import evaluation_steps
from tune.study.study import propose
from tune.study.warm_start import Earlier

NextRun = Callable[[Board], Curve | None]
"""What the next trial of a search will turn out to be; None if there is none."""


@dataclass(frozen=True)
class Costs:
    """Seconds that are not a run's own."""

    startup: float
    """Until the first trials of all lanes can begin."""
    overhead: float
    """Of every trial, before its first step."""


@dataclass(frozen=True)
class Completion:
    """A trial that ran to its full length, and when."""

    number: int
    seconds: float
    """Since the search's start."""
    spent: float
    """Seconds of all lanes so far."""


@dataclass(frozen=True)
class Simulated:
    """A search that has been simulated to its end, or to that of its budget."""

    board: Board
    """Its trials; times on it are seconds since the search's start."""
    runs: dict[int, Curve]
    """What each trial turned out to be, by number."""
    completions: list[Completion]
    """In order."""
    cut_short: list[int]
    """Trials that would have gone on, but whose records end: they count as stopped."""
    seconds: float
    """From the search's start to its end."""
    spent: float
    """Of all lanes, from the search's start until there was no trial for them."""

    @property
    def stopped(self) -> list[int]:
        """The trials that were stopped early, by number."""
        return [row.number for row in self.board.of(Status.PRUNED)]


def simulate(config: SearchConfig, lanes: int, costs: Costs, next_run: NextRun, budget: float = math.inf) -> Simulated:
    """Run a search through.

    Args:
        config: the search; its evaluations must be among those of the runs.
        lanes: trials at a time.
        costs: of lanes and trials.
        next_run: what the next trial will turn out to be.
        budget: seconds of all lanes after which the search ends, whatever runs then.
    """
    return _Simulation(config, lanes, costs, next_run).to_end(budget)


@dataclass(order=True, frozen=True)
class _Evaluation:
    """A trial will have been evaluated; of two at one time, the one that was known first happens first."""

    at: float
    order: int
    lane: int
    number: int
    step: int


class _Simulation:
    def __init__(self, config: SearchConfig, lanes: int, costs: Costs, next_run: NextRun) -> None:
        self.overhead, self.next_run = costs.overhead, next_run
        self.steps = evaluation_steps(with_defaults(config.arguments))
        self.board = Board(config.name, config.metric, config.mode, config.max_steps, config.num_samples, started=0.0)
        self.rule = create_stopping_rule(config.scheduler, config.mode, config.max_steps)
        self.runs: dict[int, Curve] = {}
        self.completions: list[Completion] = []
        self.cut_short: list[int] = []
        self.coming: list[_Evaluation] = []
        self.known = 0
        self.ends = [math.inf] * lanes
        self.now = costs.startup
        for lane in range(lanes):
            self._begin(lane)

    def to_end(self, budget: float) -> Simulated:
        while self.coming:
            evaluation = heapq.heappop(self.coming)
            if self._spent(evaluation.at) > budget:
                break
            self.now = evaluation.at
            self._evaluated(evaluation)
        return Simulated(self.board, self.runs, self.completions, self.cut_short, self.now, self._spent(self.now))

    def _evaluated(self, evaluation: _Evaluation) -> None:
        """A trial's value is known: the trial goes on, or its lane is free."""
        number, step, run = evaluation.number, evaluation.step, self.runs[evaluation.number]
        self.board.report(number, step, run.values[step])
        goes_on = self.rule.goes_on(number, step, run.values[step])
        if goes_on and step < max(run.values):
            self._train(evaluation.lane, number, step)
            return
        if step == self.board.full_length:
            self.board.finish(number, Status.COMPLETED, self.now)
            self.completions.append(Completion(number, self.now, self._spent(self.now)))
        else:
            self.board.finish(number, Status.PRUNED, self.now)
            if goes_on:
                self.cut_short.append(number)
        self._begin(evaluation.lane)

    def _begin(self, lane: int) -> None:
        """The next trial, on a lane that is free."""
        number = len(self.board.trials)
        run = self.next_run(self.board) if number < self.board.num_samples else None
        if run is None:
            self.ends[lane] = self.now
            return
        self.runs[number] = run
        self.board.add(number, run.params)
        self.board.start(number, self.now)
        self._train(lane, number, 0)

    def _train(self, lane: int, number: int, step: int) -> None:
        """A trial goes on after a step, to its next evaluation."""
        run = self.runs[number]
        until = next(later for later in self.steps if later > step)
        seconds = run.step_seconds * (until - step) + run.evaluation_seconds + (self.overhead if step == 0 else 0.0)
        heapq.heappush(self.coming, _Evaluation(self.now + seconds, self.known, lane, number, until))
        self.known += 1

    def _spent(self, at: float) -> float:
        return sum(min(at, end) for end in self.ends)


class Recorded:
    """Answers one search's proposals from recorded curves.

    Of the runs of a setting one is drawn, by the search's seed: searches with the same seed find the same.

    Args:
        curves: of the search's space.
        config: the search.
        earlier: settings, drawn at random, of which the sampler knows the final value of another run beforehand.
    """

    def __init__(self, curves: Curves, config: SearchConfig, earlier: int = 0) -> None:
        self.config = config
        self.settings = Settings([runs[0].params for runs in curves.settings])
        draws = np.random.default_rng(config.seed)
        self.runs = [runs[draws.integers(len(runs))] for runs in curves.settings]
        self._left = set(range(len(self.runs)))
        known = draws.permutation(len(self.runs))[:earlier]
        self._earlier = [self._known(curves.settings[index], self.runs[index]) for index in known]

    def _known(self, runs: Sequence[Curve], answer: Curve) -> Earlier:
        """An earlier trial of a setting: the first of its runs that is not the answer, if there is another."""
        other = next((run for run in runs if run.seed != answer.seed), answer)
        return Earlier(f"seed {other.seed}", "earlier", other.params, other.values[max(other.values)])

    def next_run(self, board: Board) -> Curve | None:
        """What the next trial of a search will turn out to be; None if all settings have been had."""
        if not self._left:
            return None
        proposed = propose(self.config, board.trials.values(), self._earlier)
        if proposed is None:
            return None
        nearest = self.settings.nearest(proposed, self._left)
        self._left.remove(nearest)
        return self.runs[nearest]


class Settings:
    """Recorded settings as points, each argument on a scale from 0 to 1.

    A number's place is its rank among those recorded, and between two of them in proportion: what was sampled on a log
    scale has its distances on one. Two different words are 1 apart, and so is an argument from none.
    """

    def __init__(self, settings: Sequence[Mapping[str, Value]]) -> None:
        names = dict.fromkeys(name for setting in settings for name in setting)
        self._scales = {name: _scale(setting[name] for setting in settings if name in setting) for name in names}
        self._points = [self._point(setting) for setting in settings]

    def nearest(self, setting: Mapping[str, Value], among: Iterable[int]) -> int:
        """The index of the nearest of some settings, by Euclidean distance; of several, the one recorded first."""
        point = self._point(setting)
        return min(sorted(among), key=lambda index: math.hypot(*map(_apart, point, self._points[index])))

    def _point(self, setting: Mapping[str, Value]) -> list[Value | None]:
        return [_on(scale, setting.get(name)) for name, scale in self._scales.items()]


def _scale(values: Iterable[Value]) -> list[float]:
    """The recorded numbers of an argument, ascending; none if it has words."""
    known = set(values)
    return [] if any(isinstance(value, (str, bool)) for value in known) else sorted(map(float, known))


def _on(scale: Sequence[float], value: Value | None) -> Value | None:
    """A number's place on its scale; another value is its own."""
    if not scale or value is None:
        return value
    return float(np.interp(float(value), scale, np.linspace(0, 1, len(scale))))


def _apart(one: Value | None, other: Value | None) -> float:
    """How far two places on the same scale are apart."""
    if isinstance(one, float) and isinstance(other, float):
        return one - other
    return float(one != other)
