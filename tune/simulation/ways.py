"""Ways to search, and searches done in them in simulated time."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console
from rich.progress import track

from tune.config import SearchConfig
from tune.simulation.answers import Answer, answers
from tune.simulation.curve_file import Curves
from tune.simulation.simulation import Costs, Recorded, simulate

WITHOUT_STARTUP_TRIALS = ("random", "grid", "qmc")


@dataclass(frozen=True)
class Way:
    """A way to search; ``lanes`` are trials at a time, ``earlier`` those of other searches that are known before."""

    sampler: str
    startup_trials: int
    scheduler: str
    grace_period: int
    reduction_factor: float
    lanes: int
    earlier: int = 0

    def search(self, config: SearchConfig, seed: int) -> SearchConfig:
        """A search done in this way."""
        sampler = replace(config.sampler, name=self.sampler, n_startup_trials=self.startup_trials)
        scheduler = replace(
            config.scheduler,
            name=self.scheduler,
            grace_period=self.grace_period,
            reduction_factor=self.reduction_factor,
        )
        return replace(config, seed=seed, sampler=sampler, scheduler=scheduler)

    @property
    def words(self) -> tuple[str, str, str]:
        """Sampler, scheduler and lanes, with those of their settings that count."""
        sampler = self.sampler if self.sampler in WITHOUT_STARTUP_TRIALS else f"{self.sampler} {self.startup_trials}"
        settings = {"none": "", "median": f" {self.grace_period}"}
        rungs = settings.get(self.scheduler, f" {self.grace_period} x{self.reduction_factor:g}")
        return sampler + (f" +{self.earlier}" if self.earlier else ""), self.scheduler + rungs, str(self.lanes)


@dataclass(frozen=True)
class Found:
    """What one search came to."""

    answers: list[Answer]
    trials: int
    stopped: int
    seconds: float
    """From its start to its end."""


@dataclass(frozen=True)
class Comparison:
    """Searches in several ways with the same seeds; of each way one per seed, in order."""

    curves: Curves
    searches: dict[Way, list[Found]]
    reference: dict[int, Way]
    """What the ways with so many lanes are compared to."""
    budgets: list[float]
    """Seconds of all lanes, ascending."""

    @property
    def of_lanes(self) -> dict[int, list[Way]]:
        """The ways by their lanes."""
        lanes = dict.fromkeys(way.lanes for way in self.searches)
        return {each: [way for way in self.searches if way.lanes == each] for each in lanes}


def run_all(
    ways: Sequence[Way],
    seeds: int,
    config: SearchConfig,
    curves: Curves,
    costs: Costs,
    budget: float,
    console: Console,
) -> dict[Way, list[Found]]:
    """A search in every way with every seed, on all processors."""
    each = [(way, seed) for way in ways for seed in range(seeds)]
    one = partial(run_one, config, curves, costs, budget)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = list(track(pool.map(one, *zip(*each, strict=True)), "Searching", len(each), console=console))
    return {way: found[index * seeds : (index + 1) * seeds] for index, way in enumerate(ways)}


def run_one(config: SearchConfig, curves: Curves, costs: Costs, budget: float, way: Way, seed: int) -> Found:
    """One search."""
    search = way.search(config, seed)
    simulated = simulate(search, way.lanes, costs, Recorded(curves, search, way.earlier).next_run, budget)
    return Found(answers(simulated, curves), len(simulated.board.trials), len(simulated.stopped), simulated.seconds)
