"""The contract with the study: it is told what really happened, and proposes what follows from that alone."""

import math
import statistics
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.stats.qmc import Sobol

from tune.config import SAMPLERS, SamplerConfig, SearchConfig, load_config
from tune.errors import SearchError
from tune.options import DEFAULT_CONFIG
from tune.space.parameters import Real
from tune.space.space import SearchSpace
from tune.study.board import Board, Status
from tune.study.objectives import Objective
from tune.study.samplers import _loss, _Place, _Point
from tune.study.study import create_study, propose
from tune.study.warm_start import Earlier

FULL = 90


@pytest.fixture(scope="module")
def tiny() -> SearchConfig:
    return load_config(DEFAULT_CONFIG)


def board_of(config: SearchConfig) -> Board:
    return Board(config.name, config.metric, config.mode, FULL, config.num_samples)


def add(config: SearchConfig, board: Board) -> int:
    """One more trial, as the study proposes it; its number."""
    number = len(board.trials)
    setting = propose(config, board.trials.values())
    assert setting is not None
    board.add(number, setting)
    board.start(number, 0.0)
    return number


def told(config: SearchConfig, status: Status, values: dict[int, float]) -> FrozenTrial:
    """What the study knows of a trial that stands like this."""
    board = board_of(config)
    number = add(config, board)
    for step, value in values.items():
        board.report(number, step, value)
    board.trials[number].status = status
    (trial,) = create_study(config, board.trials.values()).trials
    assert trial.intermediate_values == values
    return trial


def test_baselines_come_first(tiny: SearchConfig) -> None:
    second = tiny.baselines[0] | {"mm_n_points": 8}
    config = replace(tiny, baselines=(tiny.baselines[0], second))
    board = board_of(config)
    for _ in range(3):
        add(config, board)
    params = [row.params for row in board.trials.values()]
    assert params[:2] == [tiny.baselines[0], second]
    assert params[2] not in params[:2]


def test_a_trial_of_full_length_is_complete_with_its_last_value(tiny: SearchConfig) -> None:
    trial = told(tiny, Status.COMPLETED, {30: 10.0, 60: 30.0, 90: 20.0})
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 20.0)


def test_a_stopped_trial_is_pruned_with_its_last_value(tiny: SearchConfig) -> None:
    trial = told(tiny, Status.PRUNED, {30: 10.0, 60: 5.0})
    assert (trial.state, trial.value) == (TrialState.PRUNED, 5.0)


@pytest.mark.parametrize("values", [{}, {30: 10.0}])
def test_a_failed_trial_has_no_value(tiny: SearchConfig, values: dict[int, float]) -> None:
    trial = told(tiny, Status.FAILED, values)
    assert (trial.state, trial.value) == (TrialState.FAIL, None)


@pytest.mark.parametrize("status", [Status.WAITING, Status.RUNNING])
def test_a_trial_that_will_go_on_is_running(tiny: SearchConfig, status: Status) -> None:
    trial = told(tiny, status, {30: 10.0})
    assert (trial.state, trial.value) == (TrialState.RUNNING, None)


def test_the_study_knows_what_a_setting_was_drawn_from(tiny: SearchConfig) -> None:
    trial = told(tiny, Status.COMPLETED, {90: 1.0})
    assert trial.params == tiny.baselines[0]
    asked = optuna.create_study().ask()
    tiny.space.suggest(asked)
    expected: dict[str, BaseDistribution] = asked.distributions
    assert trial.distributions == expected


def score(params: dict[str, Any]) -> float:
    return 50 - 10 * abs(math.log10(params["learning_rate"]) + 3) + params["mm_n_points"]


def simulate(config: SearchConfig, samples: int, concurrent: int, fail: int | None = None) -> list[dict[str, Any]]:
    """Trials that take turns; every third one is stopped early, the score is a smooth function."""
    board = board_of(config)
    running: deque[int] = deque()
    while len(board.trials) < samples or running:
        while len(board.trials) < samples and len(running) < concurrent:
            running.append(add(config, board))
        number = running.popleft()
        value = score(dict(board.trials[number].params))
        board.report(number, 30, value / 2)
        if number == fail:
            board.finish(number, Status.FAILED, 0.0, "no")
        elif number % 3 == 2:
            board.report(number, 60, value)
            board.finish(number, Status.PRUNED, 0.0)
        else:
            board.report(number, FULL, value)
            board.finish(number, Status.COMPLETED, 0.0)
    return [dict(row.params) for row in board.trials.values()]


def test_tpe_itself_proposes_at_least_three_of_the_default_eight(
    tiny: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    modelled = []
    original = optuna.samplers.TPESampler.sample_relative

    def spy(self: Any, study: Any, trial: Any, space: Any) -> dict[str, Any]:
        values = original(self, study, trial, space)
        if values:
            modelled.append(set(values))
        return values

    monkeypatch.setattr(optuna.samplers.TPESampler, "sample_relative", spy)
    simulate(tiny, tiny.num_samples, tiny.max_concurrent)
    assert (tiny.num_samples, tiny.max_concurrent) == (8, 2)
    assert len(modelled) >= 3
    assert all(names == set(tiny.space.names) for names in modelled)  # jointly: multivariate


def test_tpe_moves_towards_what_scored_well(tiny: SearchConfig) -> None:
    space = SearchSpace(
        {"learning_rate": Real(1e-4, 1e-2, log=True), "mm_n_points": tiny.space.free["mm_n_points"]}, ()
    )
    config = replace(tiny, space=space, baselines=(), sampler=SamplerConfig("tpe", 8))
    proposed = simulate(config, 40, 2)
    distance = [abs(math.log10(p["learning_rate"]) + 3) for p in proposed]
    assert sum(distance[-15:]) / 15 < sum(distance[:8]) / 8


@pytest.mark.parametrize("name", ["tpe", pytest.param("gp", marks=pytest.mark.full), "cmaes", "random", "qmc"])
def test_the_same_seed_proposes_the_same_settings(tiny: SearchConfig, name: str) -> None:
    config = replace(tiny, sampler=SamplerConfig(name, 4))
    first, second = (simulate(config, 12, 2, fail=3) for _ in range(2))
    other = simulate(replace(config, seed=1), 12, 2, fail=3)
    assert first == second
    assert first[1:] != other[1:]


TWO = (Objective("eval_pq", "max"), Objective("step_ms", "min"))


def two_objectives(config: SearchConfig, cost: int, samples: int) -> Board:
    """Two trials at a time of a search in which each point scores 1 and costs ``cost``; some are stopped."""
    board = board_of(config)
    board.objectives = config.objectives
    running: deque[int] = deque()
    while len(board.trials) < samples or running:
        while len(board.trials) < samples and len(running) < 2:
            running.append(add(config, board))
        row = board.trials[running.popleft()]
        if row.number % 5 == 4:
            board.report(row.number, 30, 1.0)
            board.finish(row.number, Status.PRUNED, 0.0)
            continue
        value = score(dict(row.params))
        board.report(row.number, FULL, value)
        board.finish(row.number, Status.COMPLETED, 0.0)
        row.objectives = {"eval_pq": value, "step_ms": float(cost * row.params["mm_n_points"])}
    return board


@pytest.mark.parametrize("name", sorted({*SAMPLERS} - {"cmaes"}))
def test_of_several_objectives_all_values_of_whole_trials_are_told_and_nothing_of_others(load: Any, name: str) -> None:
    """Whoever learns from values learns from those of the second objective, too; all propose the same every time."""
    config = load("mm_n_points: {int: [1, 40]}, learning_rate: {choice: [1.0e-3, 1.0e-2]}", name)
    config = replace(config, objectives=TWO)
    samples = 7 if name == "gp" else 14  # it takes its time
    board, again, dear = (two_objectives(config, cost, samples) for cost in (1, 1, -1))
    settings = [[row.params for row in each.trials.values()] for each in (board, again, dear)]
    assert settings[0] == settings[1]
    assert (settings[0] != settings[2]) == (name in ("tpe", "gp"))

    study = create_study(config, board.trials.values())
    for row, trial in zip(board.trials.values(), study.trials, strict=True):
        if row.status == Status.PRUNED:
            assert (trial.state, trial.values) == (TrialState.FAIL, None)
        else:
            assert (trial.state, trial.values) == (TrialState.COMPLETE, list(row.objectives.values()))
    assert {row.number for row in board.front} == {trial.number for trial in study.best_trials}


@pytest.mark.parametrize("name", ["tpe", pytest.param("gp", marks=pytest.mark.full)])
def test_of_several_objectives_the_front_is_sought(load: Any, name: str) -> None:
    """What is best in both is far from what is best in the first alone, and is found."""
    config = load("mm_n_points: {int: [1, 200]}, learning_rate: {loguniform: [1.0e-6, 1.0]}", name)
    board = two_objectives(replace(config, objectives=TWO), cost=10, samples=24)
    rates = [abs(math.log10(row.params["learning_rate"]) + 3) for row in board.trials.values()]
    assert statistics.mean(rates[-10:]) < statistics.mean(rates[:8])


@pytest.mark.parametrize("name", ["tpe", "cmaes", "random", "qmc"])
def test_no_two_trials_get_the_same_random_numbers(tiny: SearchConfig, name: str) -> None:
    """Each trial has a sampler of its own; all of one seed would propose one setting for ever."""
    proposed = simulate(replace(tiny, sampler=SamplerConfig(name, 100), baselines=()), 30, 2)
    assert len({params["learning_rate"] for params in proposed}) == 30


@pytest.mark.parametrize(("name", "seeds"), [("tpe", 6), pytest.param("gp", 1, marks=pytest.mark.full)])
def test_who_runs_already_is_taken_into_account(tiny: SearchConfig, name: str, seeds: int) -> None:
    """Proposals beside running trials are not always those without them (constant liar; joint improvement)."""
    differ = []
    for seed in range(seeds):
        config = replace(tiny, sampler=SamplerConfig(name, 4), baselines=(), seed=seed)
        board = board_of(config)
        for number in range(12):
            add(config, board)
            if number < 8:
                board.report(number, FULL, score(dict(board.trials[number].params)))
                board.finish(number, Status.COMPLETED, 0.0)
        beside_running = propose(config, board.trials.values())
        for row in board.of(Status.RUNNING):
            board.finish(row.number, Status.FAILED, 0.0, "no")
        differ.append(propose(config, board.trials.values()) != beside_running)
    assert any(differ)


def test_linked_parameters_are_modelled_and_always_valid(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "{name: s, metric: eval_pq, num_samples: 1, arguments: {max_steps: 9}, sampler: {n_startup_trials: 4}, space: "
        "{mm_hidden_dim: {choice: [30, 32, 36]}, mm_n_heads: {choice: [2, 3, 4, 5, 8]}, mm_n_points: {choice: [2, 4]}, "
        "learning_rate: {loguniform: [1.0e-4, 1.0e-2]}}}"
    )
    proposed = simulate(load_config(file), 60, 2)
    assert all(p["mm_hidden_dim"] % p["mm_n_heads"] == 0 for p in proposed)
    assert sum(map(score, proposed[-15:])) / 15 > sum(map(score, proposed[:8])) / 8


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """A search of a space, as YAML says it."""

    def load_space(space: str, sampler: str, samples: int = 1) -> SearchConfig:
        file = tmp_path / "s.yaml"
        file.write_text(
            f"{{name: s, metric: eval_pq, num_samples: {samples}, arguments: {{max_steps: 9}}, "
            f"sampler: {{name: {sampler}, n_startup_trials: 4}}, space: {{{space}}}}}"
        )
        return load_config(file)

    return load_space


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_setting_is_proposed_twice_and_none_is_left_out(load: Any, name: str) -> None:
    """TPE and GP would rather propose the best again and again; who failed is not tried again either."""
    config = load("mm_n_points: {int: [1, 8]}, learning_rate: {choice: [1.0e-3, 1.0e-2]}", name)
    proposed = simulate(config, 16, 2, fail=5)
    assert len({tuple(setting.items()) for setting in proposed}) == 16
    board = board_of(config)
    for number, setting in enumerate(proposed):
        board.add(number, setting)
    assert propose(config, board.trials.values()) is None


@pytest.mark.parametrize("name", ["tpe", "random", "qmc"])
def test_where_some_trials_have_a_continuous_argument_there_is_always_a_new_setting(load: Any, name: str) -> None:
    config = load(
        "mm_n_points: {choice: [2, 4, 8]}, offset_lr_multiplier: {uniform: [0.1, 1], when: mm_n_points == 8}", name
    )
    board = board_of(config)
    for _ in range(20):
        add(config, board)
    settings = [tuple(row.params.items()) for row in board.trials.values()]
    assert len(set(settings)) == 20
    assert sum(len(setting) == 1 for setting in settings) == 2


def test_a_grid_is_in_another_order_with_another_seed(load: Any) -> None:
    config = load("mm_n_points: {int: [1, 20]}, learning_rate: {choice: [1.0e-3]}", "grid")
    orders = [[setting["mm_n_points"] for setting in simulate(replace(config, seed=s), 20, 2)] for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(1, 21)) != orders[0]


def test_qmc_has_every_part_of_the_space_equally_often(load: Any) -> None:
    """Of 64 Sobol points, each of 8 x 8 equal boxes has one, on the scales of the arguments; random ones leave gaps."""
    config = load("learning_rate: {loguniform: [1.0e-4, 1.0e-2]}, mm_n_points: {int: [1, 8]}", "qmc")
    boxes = [(int(4 * (math.log10(s["learning_rate"]) + 4)), s["mm_n_points"]) for s in simulate(config, 64, 3)]
    assert len(set(boxes)) == 64


def test_gp_moves_towards_what_scored_well(load: Any) -> None:
    config = load("learning_rate: {loguniform: [1.0e-4, 1.0e-2]}, mm_n_points: {int: [1, 8]}", "gp")
    board = board_of(config)
    for _ in range(14):
        number = add(config, board)
        board.report(number, FULL, score(dict(board.trials[number].params)))
        board.finish(number, Status.COMPLETED, 0.0)
    scores = [row.last for row in board.trials.values() if row.last is not None]
    assert statistics.median(scores[4:]) > statistics.median(scores[:4]) + 3
    assert max(scores[4:]) > max(scores[:4])


NUMBERS = (
    "learning_rate: {loguniform: [1.0e-4, 1.0e-2]}, mm_n_points: {int: [2, 9, 3]}, weight_decay: {uniform: [0, 1]}, "
    "swin_type: {choice: [base, large]}"
)


def test_cmaes_generations_close_in_on_what_scored_well(load: Any) -> None:
    """And much closer than as many random settings come."""
    sampled = {}
    for name in ("cmaes", "random"):
        config = load("learning_rate: {loguniform: [1.0e-4, 1.0e-2]}, mm_n_points: {int: [1, 8]}", name)
        scores = [score(setting) for setting in simulate(config, 60, 3)]
        sampled[name] = statistics.median(scores[-20:])
    assert sampled["cmaes"] > sampled["random"] + 3


def test_cmaes_ranks_who_was_stopped_below_who_ran_on(load: Any) -> None:
    config = load("learning_rate: {loguniform: [1.0e-4, 1.0e-2]}", "cmaes")
    ended = [(Status.PRUNED, 3, 9.0), (Status.COMPLETED, 9, 1.0), (Status.PRUNED, 6, 5.0), (Status.COMPLETED, 9, 2.0)]
    board = board_of(config)
    for number, (status, step, value) in enumerate(ended):
        board.add(number, {"learning_rate": 10 ** (-4 + number / 2)})
        board.start(number, 0.0)
        board.report(number, step, value)
        board.finish(number, status, 1.0)
    trials = create_study(config, board.trials.values()).trials
    assert sorted(range(4), key=lambda number: _loss(config, trials[number])) == [3, 1, 2, 0]


def test_the_place_of_a_setting_is_where_it_is_suggested(load: Any) -> None:
    config = load(NUMBERS, "cmaes")
    board = board_of(config)
    points = Sobol(4, rng=0).random(64)
    for number, point in enumerate(points):
        board.add(number, config.space.suggest(_Point(point)))
    continuous = [config.space.names.index(name) for name in ("learning_rate", "weight_decay")]
    trials = create_study(config, board.trials.values()).trials
    for row, point, trial in zip(board.trials.values(), points, trials, strict=True):
        place = _Place(config, trial).coordinates
        assert config.space.suggest(_Point(place)) == pytest.approx(dict(row.params))
        assert place[continuous] == pytest.approx(point[continuous])


def test_cmaes_begins_where_earlier_trials_were_best(load: Any) -> None:
    config = load("learning_rate: {loguniform: [1.0e-4, 1.0e-2]}, mm_n_points: {int: [1, 8]}", "cmaes")
    rates = [10 ** (-4 + 2 * place / 39) for place in range(40)]
    earlier = [
        Earlier(str(index), "e", {"learning_rate": rate, "mm_n_points": 1 + index % 8}, -abs(math.log10(rate / 3e-3)))
        for index, rate in enumerate(rates)
    ]

    def first(seed: int, known: list[Earlier]) -> float:
        setting = propose(replace(config, seed=seed), [], known)
        assert setting is not None
        return abs(math.log10(float(setting["learning_rate"]) / 3e-3))

    told, untold = ([first(seed, known) for seed in range(20)] for known in (earlier, []))
    assert statistics.median(told) < statistics.median(untold) / 2


@pytest.mark.parametrize(
    ("space", "name", "message"),
    [
        (
            "learning_rate: {loguniform: [1.0e-4, 1.0e-2]}",
            "grid",
            "sampler: name = grid tries every setting, but learning_rate cannot be tried value by value; use choice or "
            "int for that, or the sampler qmc",
        ),
        (
            "mm_n_points: {int: [1, 200]}, num_queries: {int: [1, 100]}",
            "grid",
            "sampler: name = grid tries every setting, but the space has 20,000, of at most 10,000; use the sampler "
            "qmc",
        ),
        *(
            (
                "mm_n_points: {int: [1, 8]}, mm_hidden_dim: {choice: [30, 32]}, mm_n_heads: {choice: [2, 5]}",
                name,
                f"sampler: name = {name} needs arguments that do not depend on each other, but mm_hidden_dim, "
                "mm_n_heads do; use the sampler tpe",
            )
            for name in ("gp", "cmaes")
        ),
    ],
)
def test_a_space_that_a_sampler_cannot_search_is_refused(load: Any, space: str, name: str, message: str) -> None:
    with pytest.raises(SearchError) as caught:
        load(space, name)
    assert str(caught.value) == message


def test_no_more_trials_are_planned_than_there_are_settings(load: Any) -> None:
    config = load("mm_n_points: {int: [1, 8]}", "tpe", samples=30)
    assert config.num_samples == 8
    assert config.notes == ("num_samples = 30, but there are settings for 8 only: the search ends after those",)
    assert load("mm_n_points: {int: [1, 8]}", "tpe", samples=8).notes == ()
