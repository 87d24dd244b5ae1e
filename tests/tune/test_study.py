"""The contract between Tune and the study: it is told what really happened, in the order in which it happened."""

import math
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import ConcurrencyLimiter

from tune.config import SamplerConfig, SearchConfig, load_config
from tune.options import DEFAULT_CONFIG
from tune.parameters import Real
from tune.space import SearchSpace
from tune.study import STEP, StudySearcher, create_study

METRIC = "eval_pq"


@pytest.fixture(scope="module")
def tiny() -> SearchConfig:
    return load_config(DEFAULT_CONFIG)


def searcher_of(config: SearchConfig, full_length: int = 90) -> StudySearcher:
    return StudySearcher(create_study(config), config.space, METRIC, config.mode, full_length)


@pytest.fixture
def searcher(tiny: SearchConfig) -> StudySearcher:
    return searcher_of(tiny)


def result(step: int, value: float) -> dict[str, Any]:
    return {STEP: step, METRIC: value}


def last_trial(searcher: StudySearcher) -> optuna.trial.FrozenTrial:
    return searcher.study.trials[-1]


def test_baselines_come_first_and_numbers_are_ours(tiny: SearchConfig) -> None:
    searcher = StudySearcher(create_study(tiny), tiny.space, METRIC, "max", 90, first_number=5)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert first == {"number": 5, "params": tiny.baselines[0]}
    assert second["number"] == 6
    assert second["params"] != first["params"]


def test_a_trial_of_full_length_is_complete_with_its_last_value(searcher: StudySearcher) -> None:
    searcher.suggest("a")
    for step, value in ((30, 10.0), (60, 30.0), (90, 20.0)):
        searcher.on_trial_result("a", result(step, value))
    searcher.on_trial_complete("a", result(90, 20.0))
    trial = last_trial(searcher)
    assert trial.state == TrialState.COMPLETE
    assert trial.value == 20.0
    assert trial.intermediate_values == {30: 10.0, 60: 30.0, 90: 20.0}


def test_a_stopped_trial_is_pruned_with_its_last_value(searcher: StudySearcher) -> None:
    searcher.suggest("a")
    searcher.on_trial_result("a", result(30, 10.0))
    searcher.on_trial_complete("a", result(60, 5.0))  # Tune keeps the stopping result from on_trial_result
    trial = last_trial(searcher)
    assert trial.state == TrialState.PRUNED
    assert trial.value == 5.0
    assert trial.intermediate_values == {30: 10.0, 60: 5.0}


def test_a_result_that_tune_repeats_is_told_once(searcher: StudySearcher, recwarn: pytest.WarningsRecorder) -> None:
    searcher.suggest("a")
    searcher.on_trial_result("a", result(90, 10.0))
    searcher.on_trial_result("a", result(90, 10.0))
    searcher.on_trial_complete("a", result(90, 10.0))
    assert last_trial(searcher).state == TrialState.COMPLETE
    assert not [w for w in recwarn if "already reported" in str(w.message)]


@pytest.mark.parametrize(
    ("results", "error"),
    [
        ([], True),
        ([result(30, 10.0)], True),
        ([], False),
        ([result(90, math.nan)], False),
        ([result(30, 10.0), result(90, math.nan)], False),
        ([{STEP: 90}], False),
    ],
)
def test_no_finite_last_value_is_a_failure(searcher: StudySearcher, results: list[dict[str, Any]], error: bool) -> None:
    searcher.suggest("a")
    for each in results:
        searcher.on_trial_result("a", each)
    searcher.on_trial_complete("a", None if error else (results[-1] if results else None), error=error)
    trial = last_trial(searcher)
    assert trial.state == TrialState.FAIL
    assert trial.value is None


def simulate(searcher: StudySearcher, samples: int, concurrent: int, fail: int | None = None) -> list[dict[str, Any]]:
    """Tune's calls for trials that take turns; every third one is stopped early, the score is a smooth function."""
    limiter = ConcurrencyLimiter(searcher, concurrent)
    running: deque[str] = deque()
    proposed: list[dict[str, Any]] = []
    while len(proposed) < samples or running:
        while len(proposed) < samples and (suggestion := limiter.suggest(str(len(proposed)))) is not None:
            running.append(str(len(proposed)))
            proposed.append(suggestion["params"])
        name = running.popleft()
        params = proposed[int(name)]
        score = 50 - 10 * abs(math.log10(params["learning_rate"]) + 3) + params["mm_n_points"]
        limiter.on_trial_result(name, result(30, score / 2))
        if int(name) == fail:
            limiter.on_trial_complete(name, error=True)
        else:
            limiter.on_trial_complete(name, result(60, score) if int(name) % 3 == 2 else result(90, score))
    return proposed


def test_tpe_itself_proposes_at_least_three_of_the_default_eight(
    tiny: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = searcher_of(tiny)
    modelled = []
    sampler = searcher.study.sampler
    original = sampler.sample_relative

    def spy(study: Any, trial: Any, space: Any) -> dict[str, Any]:
        values = original(study, trial, space)
        if values:
            modelled.append(set(values))
        return values

    monkeypatch.setattr(sampler, "sample_relative", spy)
    assert isinstance(sampler, optuna.samplers.TPESampler)
    simulate(searcher, tiny.num_samples, tiny.max_concurrent)
    assert (tiny.num_samples, tiny.max_concurrent) == (8, 2)
    assert len(modelled) >= 3
    assert all(names == set(tiny.space.names) for names in modelled)  # jointly: multivariate


def test_tpe_moves_towards_what_scored_well(tiny: SearchConfig) -> None:
    space = SearchSpace(
        {"learning_rate": Real(1e-4, 1e-2, log=True), "mm_n_points": tiny.space.free["mm_n_points"]}, ()
    )
    config = replace(tiny, space=space, baselines=(), sampler=SamplerConfig("tpe", 8))
    proposed = simulate(searcher_of(config), 40, 2)
    distance = [abs(math.log10(p["learning_rate"]) + 3) for p in proposed]
    assert sum(distance[-15:]) / 15 < sum(distance[:8]) / 8


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_the_same_seed_proposes_the_same_settings(tiny: SearchConfig, name: str) -> None:
    config = replace(tiny, sampler=SamplerConfig(name, 4))
    first, second = (simulate(searcher_of(config), 12, 2, fail=3) for _ in range(2))
    other = simulate(searcher_of(replace(config, seed=1)), 12, 2, fail=3)
    assert first == second
    assert first[1:] != other[1:]


def test_linked_parameters_are_modelled_and_always_valid(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "{name: s, metric: eval_pq, num_samples: 1, arguments: {max_steps: 9}, sampler: {n_startup_trials: 4}, space: "
        "{mm_hidden_dim: {choice: [30, 32, 36]}, mm_n_heads: {choice: [2, 3, 4, 5, 8]}, mm_n_points: {choice: [2, 4]}, "
        "learning_rate: {loguniform: [1.0e-4, 1.0e-2]}}}"
    )
    searcher = searcher_of(load_config(file))
    proposed = simulate(searcher, 100, 2)
    assert all(p["mm_hidden_dim"] % p["mm_n_heads"] == 0 for p in proposed)
    assert {t.state for t in searcher.study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
