"""Searches in simulated time, against closed forms and naive simulations; what is said of them; the command line."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tune.known_curves import STEPS, asymptote, curves_of, power_law, settings_of
from tune.config import SchedulerConfig, SearchConfig, load_config
from tune.options import DEFAULT_CONFIG
from tune.simulate import main
from tune.simulation.answers import Answer, Ratio, answer_at, answers, correlations, scores_over_time, time_ratio
from tune.simulation.curve_file import Curve, Curves, write_curves
from tune.simulation.simulation import Costs, Recorded, Settings, simulate
from tune.study.board import Status
from tune.study.study import propose
from tune.study.warm_start import Earlier

COSTS = Costs(startup=20.0, overhead=4.0)
COUNT = 30


@pytest.fixture(scope="module")
def tiny() -> SearchConfig:
    return replace(load_config(DEFAULT_CONFIG, ["eval_steps=10"]), num_samples=COUNT)


@pytest.fixture(scope="module")
def curves(tiny: SearchConfig) -> Curves:
    return curves_of(settings_of(tiny, COUNT))


def one_by_one(curves: Curves) -> Any:
    """Every run of the first seed, in the order of the records."""
    runs = iter([run for run in curves.runs if run.seed == 0])
    return lambda board: next(runs, None)


def seconds_until(run: Curve, step: int) -> float:
    """From a trial's start to the end of an evaluation."""
    return COSTS.overhead + step * run.step_seconds + run.evaluation_seconds * sum(each <= step for each in run.values)


def test_several_objectives_cannot_be_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = DEFAULT_CONFIG.read_text().replace("metric: eval_pq", "objectives: [{eval_pq: max}, {step_ms: min}]")
    file = tmp_path / "s.yaml"
    file.write_text("\n".join(line for line in text.splitlines() if not line.startswith("mode:")))
    assert main(["--config", str(file)]) == 2
    message = "the search has objectives (eval_pq, step_ms), but curves have one metric; simulate one with a metric"
    assert capsys.readouterr().err == f"tune.simulate: {message}\n"


def without_stops(config: SearchConfig) -> SearchConfig:
    return replace(config, scheduler=SchedulerConfig("none"))


def test_one_lane_spends_the_sum_of_all_trials(tiny: SearchConfig, curves: Curves) -> None:
    simulated = simulate(without_stops(tiny), 1, COSTS, one_by_one(curves))
    ends = COSTS.startup + np.cumsum([seconds_until(run, STEPS[-1]) for run in curves.runs if run.seed == 0])
    assert [each.seconds for each in simulated.completions] == pytest.approx(ends)
    assert [each.spent for each in simulated.completions] == pytest.approx(ends)
    assert (simulated.seconds, simulated.spent) == pytest.approx((ends[-1], ends[-1]))
    assert simulated.stopped == []


@pytest.mark.parametrize("lanes", [2, 3, 7])
def test_several_lanes_take_the_next_trial_as_they_become_free(tiny: SearchConfig, curves: Curves, lanes: int) -> None:
    simulated = simulate(without_stops(tiny), lanes, COSTS, one_by_one(curves))
    free = [COSTS.startup] * lanes
    ends = {}
    for number, run in enumerate(run for run in curves.runs if run.seed == 0):
        lane = free.index(min(free))
        free[lane] = ends[number] = free[lane] + seconds_until(run, STEPS[-1])
    completed = {each.number: each.seconds for each in simulated.completions}
    assert completed == pytest.approx(ends)
    assert list(completed) == sorted(ends, key=lambda number: ends[number])
    assert simulated.seconds == pytest.approx(max(free))
    assert simulated.spent == pytest.approx(sum(free)), "a lane without a trial spends nothing"
    for each in simulated.completions:
        assert each.spent == pytest.approx(sum(min(each.seconds, end) for end in free))


def naive_asha(curves: Curves, lanes: int, grace: int, factor: float) -> tuple[dict[int, int], float]:
    """Where trials are stopped and when all have ended: every lane's next result, and the earliest one happens."""
    runs = [run for run in curves.runs if run.seed == 0]
    rungs: dict[float, list[float]] = {
        grace * factor**power: [] for power in range(9) if grace * factor**power < STEPS[-1]
    }
    waiting = list(range(len(runs)))
    lane_of = [(waiting.pop(0), 0, COSTS.startup) for _ in range(lanes)]  # trial, last step, since when
    stopped, end = {}, 0.0
    while any(lane is not None for lane in lane_of):
        times = []
        for lane in lane_of:
            if lane is None:
                times.append(math.inf)
                continue
            number, step, since = lane
            run = runs[number]
            overhead = COSTS.overhead if step == 0 else 0.0
            times.append(since + overhead + 10 * run.step_seconds + run.evaluation_seconds)
        index = times.index(min(times))
        number, step, _ = lane_of[index] or (0, 0, 0.0)
        step += 10
        end = times[index]
        value = runs[number].values[step]
        ends = step == STEPS[-1]
        passed = [rung for rung in rungs if step - 10 < rung <= step]
        if passed and not ends:
            before = rungs[passed[-1]]
            if before and value < np.percentile(before, (1 - 1 / factor) * 100):
                stopped[number] = step
                ends = True
            before.append(value)
        if not ends:
            lane_of[index] = (number, step, end)
        else:
            lane_of[index] = (waiting.pop(0), 0, end) if waiting else None
    return stopped, end


@pytest.mark.parametrize(("lanes", "grace", "factor"), [(1, 20, 3), (2, 20, 3), (4, 25, 2), (3, 50, 3)])
def test_asha_stops_whom_a_naive_simulation_stops(
    tiny: SearchConfig, curves: Curves, lanes: int, grace: int, factor: float
) -> None:
    config = replace(tiny, scheduler=SchedulerConfig("asha", grace, factor))
    simulated = simulate(config, lanes, COSTS, one_by_one(curves))
    stopped, end = naive_asha(curves, lanes, grace, factor)
    assert {number: simulated.board.trials[number].evaluated for number in simulated.stopped} == stopped
    assert simulated.seconds == pytest.approx(end)
    assert 0 < len(stopped) < COUNT


def test_a_search_ends_with_its_budget(tiny: SearchConfig, curves: Curves) -> None:
    budget = 1000.0
    unlimited = simulate(without_stops(tiny), 3, COSTS, one_by_one(curves))
    limited = simulate(without_stops(tiny), 3, COSTS, one_by_one(curves), budget)
    assert limited.completions == [each for each in unlimited.completions if each.spent <= budget]
    assert limited.spent <= budget
    assert len(limited.board.of(Status.RUNNING)) == 3


def test_fewer_evaluations_are_fewer_seconds(tiny: SearchConfig, curves: Curves) -> None:
    config = without_stops(replace(tiny, arguments={**tiny.arguments, "eval_steps": 50}, num_samples=1))
    simulated = simulate(config, 1, COSTS, one_by_one(curves))
    assert list(simulated.board.trials[0].values) == [50, 100, 150]
    assert simulated.seconds == pytest.approx(20 + 4 + 150 * curves.runs[0].step_seconds + 3 * 1.5)


def test_a_trial_whose_records_end_is_cut_short(tiny: SearchConfig, curves: Curves) -> None:
    first = replace(curves.runs[0], values={10: 1.0, 20: 2.0})
    runs = iter([first, curves.runs[1]])
    simulated = simulate(without_stops(tiny), 1, COSTS, lambda board: next(runs, None))
    assert (simulated.cut_short, simulated.stopped) == ([0], [0])
    assert [each.number for each in simulated.completions] == [1]


def test_the_nearest_setting_answers() -> None:
    rates = [1e-4, 1e-3, 1e-2]
    settings = Settings([{"rate": rate, "tower": tower} for rate in rates for tower in ("base", "large")])
    everything = set(range(6))
    assert settings.nearest({"rate": 1e-3, "tower": "large"}, everything) == 3
    assert settings.nearest({"rate": 4e-3, "tower": "base"}, everything) == 2
    assert settings.nearest({"rate": 7e-3, "tower": "base"}, everything) == 4
    assert settings.nearest({"rate": 1e-3, "tower": "large"}, everything - {3}) == 1, "0.5 away, as is 5; a word is 1"
    assert settings.nearest({"rate": 5e-2, "tower": "base"}, everything) == 4, "beyond the end is the end"
    optional = Settings([{"rate": 1e-3}, {"rate": 1e-3, "points": 2}, {"rate": 1e-3, "points": 4}])
    assert optional.nearest({"rate": 1e-3}, {1, 0, 2}) == 0
    assert optional.nearest({"rate": 1e-3, "points": 3.9}, {0, 1, 2}) == 2


def test_a_search_is_told_the_recorded_settings_each_once(tiny: SearchConfig, curves: Curves) -> None:
    def numbers(seed: int) -> list[tuple[dict[str, Any], int]]:
        config = without_stops(replace(tiny, seed=seed, num_samples=2 * COUNT))
        simulated = simulate(config, 2, COSTS, Recorded(curves, config).next_run)
        return [(dict(row.params), simulated.runs[row.number].seed) for row in simulated.board.trials.values()]

    first, again, other = numbers(1), numbers(1), numbers(2)
    assert first == again
    assert first != other
    assert first[0][0] == other[0][0] == tiny.baselines[0], "the baseline is recorded, and comes first"
    recorded = [dict(runs[0].params) for runs in curves.settings]
    assert sorted(map(repr, (params for params, _ in first))) == sorted(map(repr, recorded))
    assert {seed for _, seed in first} == {0, 1}


def test_a_sampler_is_told_of_earlier_trials_what_other_seeds_came_to(
    tiny: SearchConfig, curves: Curves, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[Earlier]] = []

    def spy(config: SearchConfig, rows: Any, earlier: Any) -> Any:
        told.append(list(earlier))
        return propose(config, rows, earlier)

    monkeypatch.setattr("tune.simulation.simulation.propose", spy)
    recorded = Recorded(curves, tiny, earlier=5)
    simulate(replace(tiny, num_samples=3), 2, COSTS, recorded.next_run)
    assert len(told) == 3
    assert told[0] == told[1] == told[2]
    assert len({repr(each.params) for each in told[0]}) == 5
    answers = {repr(run.params): run for run in recorded.runs}
    for each in told[0]:
        runs = next(runs for runs in curves.settings if runs[0].params == each.params)
        (other,) = (run for run in runs if run.seed != answers[repr(each.params)].seed)
        assert each.value == other.values[max(other.values)]


def test_searches_of_one_seed_find_the_same_runs(tiny: SearchConfig, curves: Curves) -> None:
    random = replace(tiny, sampler=replace(tiny.sampler, name="random"))
    assert Recorded(curves, tiny).runs == Recorded(curves, random).runs


def test_tpe_with_asha_finds_the_best_setting_for_less(tiny: SearchConfig, curves: Curves) -> None:
    best = max(curves.settings, key=lambda runs: asymptote(runs[0].params))[0].params

    def spent_until_best(config: SearchConfig) -> float:
        simulated = simulate(config, 2, COSTS, Recorded(curves, config).next_run)
        return next(each.spent for each in simulated.completions if simulated.runs[each.number].params == best)

    asha = SchedulerConfig("asha", 20, 3)
    ratios = []
    for seed in range(4):
        tpe = replace(tiny, seed=seed, baselines=())
        random = replace(tpe, sampler=replace(tpe.sampler, name="random"))
        ratios.append(spent_until_best(replace(tpe, scheduler=asha)) / spent_until_best(without_stops(random)))
    assert np.mean(ratios) < 0.7


def test_an_answer_is_scored_by_the_seeds_that_did_not_pick_it(tiny: SearchConfig) -> None:
    finals = {"base": (70.0, 64.0), "large": (69.0, 69.5)}
    settings = [{**tiny.baselines[0], "swin_type": tower} for tower in finals]
    curves = curves_of(settings, lambda params, seed, step: finals[params["swin_type"]][seed] - 150 / step)
    large, base = curves.runs[2], curves.runs[0]
    runs = iter([large, base])
    simulated = simulate(without_stops(tiny), 1, COSTS, lambda board: next(runs, None))
    first, second = answers(simulated, curves)
    assert (first.picked, first.score, first.regret) == (68.0, 68.5, 0.0)
    assert (second.picked, second.score) == (69.0, 63.0), "by luck, and that it costs is seen"
    assert second.regret == pytest.approx(69.25 - 67)
    assert answer_at([first, second], first.spent - 1) is None
    assert answer_at([first, second], second.spent - 1) == first
    assert answer_at([first, second], second.spent) == second
    alone = replace(curves, runs=(large,))
    assert [each.score for each in answers(replace(simulated, runs={0: large, 1: large}), alone)] == [68.0]


def test_smaller_is_better_where_the_mode_says_so(tiny: SearchConfig) -> None:
    curves = curves_of(settings_of(tiny, 4), lambda params, seed, step: 300 / step - asymptote(params))
    curves = replace(curves, mode="min")
    config = replace(without_stops(tiny), mode="min", num_samples=4)
    found = answers(simulate(config, 1, COSTS, Recorded(curves, config).next_run), curves)
    assert found[-1].picked == min(run.final for run in curves.runs)
    assert found[-1].regret == pytest.approx(0)
    assert [each.picked for each in found] == sorted((each.picked for each in found), reverse=True)


def steps(*answers: tuple[float, float]) -> list[Answer]:
    return [Answer(spent, score, score, 0.0) for spent, score in answers]


def test_who_has_the_same_scores_in_half_the_time_has_the_ratio_one_half() -> None:
    times = np.linspace(0, 100, 1001)
    slow = scores_over_time([steps((20.0, 1.0), (60.0, 2.0), (90.0, 3.0))] * 5, times, 1)
    fast = scores_over_time([steps((10.0, 1.0), (30.0, 2.0), (45.0, 2.5))] * 5, times, 1)
    assert time_ratio(fast, slow, times, 70.0) == Ratio(0.5, 0.5, 0.5)
    assert time_ratio(fast, slow, times, 100.0) == Ratio(math.inf, math.inf, math.inf)
    assert time_ratio(slow, slow, times, 100.0) == Ratio(1.0, 1.0, 1.0)
    falling = scores_over_time([steps((20.0, -1.0), (60.0, -2.0))] * 5, times, -1)
    assert time_ratio(falling, slow, times, 70.0).value == 1.0, "a metric that is better when smaller"


def test_the_interval_is_that_of_the_seeds() -> None:
    """Of ten searches one never gets there: the mean gets there later, if it is drawn at all."""
    times = np.linspace(0, 100, 1001)
    slow = scores_over_time([steps((50.0, 1.0))] * 10, times, 1)
    fast = scores_over_time([steps((10.0, 1.0))] * 9 + [steps((10.0, 0.0), (40.0, 1.0))], times, 1)
    ratio = time_ratio(fast, slow, times, 50.0)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.8, 0.2, 0.8))
    never = scores_over_time([steps((10.0, 1.0))] * 9 + [[]], times, 1)
    assert time_ratio(never, slow, times, 50.0).high == math.inf, "no mean without an answer of each"


def test_correlations_tell_curves_that_cross_from_those_that_do_not(tiny: SearchConfig) -> None:
    settings = settings_of(tiny, 12)
    crossing = curves_of(settings, lambda params, seed, step: power_law(params, seed, step) * (step - 75))
    found = {each.step: each for each in correlations(crossing)}
    assert found[10].same_run == pytest.approx(-1, abs=0.2)
    assert found[150].same_run == pytest.approx(1)
    parallel = correlations(curves_of(settings, seeds=(0,)))
    assert [each.same_run for each in parallel] == pytest.approx([1] * len(STEPS))
    assert all(math.isnan(each.other_seeds) for each in parallel)
    flat = correlations(curves_of(settings, lambda params, seed, step: 0.0 if step < 20 else asymptote(params)))
    assert math.isnan(flat[0].same_run), "what is the same everywhere has no ranks"


@pytest.fixture(scope="module")
def file(curves: Curves, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("curves") / "curves.jsonl"
    write_curves(curves, path)
    return path


def test_the_command_compares_ways_and_draws_them(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "pictures" / "s.png"
    options = ["--curves", str(file), "--seeds", "3", "--workers", "1,2", "--output", str(picture)]
    assert main([*options, "--grace", "50,100", "--budget", "0.05,0.1"]) == 0
    output = capsys.readouterr().out
    lines = [line.split() for line in output.splitlines()]
    reference = [line for line in lines if line[:3] == ["random", "none", "1"]]
    assert len(reference) == 2, "it is in both tables, and in each once"
    assert reference[1][3:] == ["1.00", "(1.00", "to", "1.00)"] * 2
    for way in ("tpe 4 asha 50 x3 2", "tpe 4 asha 100 x3 1", "tpe 4 none 2"):
        assert sum(line[: len(way.split())] == way.split() for line in lines) == 2, way
    assert any(line[:2] == ["150", "1.00"] for line in lines)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--curves", "nowhere.jsonl"], ["'nowhere.jsonl'", "no file", "--tracking-uri"]),
        (["--set", "eval_steps=25"], ["step 25", "10, 20, 30", "--set eval_steps=N"]),
        (["--set", "max_steps=90"], ["max_steps = 150", "90"]),
        (["--set", "mm_n_points=4"], ["a run with", "searched are mm_hidden_dim", "--config"]),
        (["--samplers", "tpe,grit"], ["'grit'", "one of tpe"]),
        (["--schedulers", "asha,pbt"], ["pbt", "no recorded curve can answer"]),
        (["--reference", "random/pbt"], ["pbt", "no recorded curve can answer"]),
        (["--workers", "0"], ["'0'", "at least 1"]),
        (["--budget", "1,x"], ["'x'", "a number above 0"]),
        (["--reference", "random"], ["--reference", "must be one of asha"]),
        (["--check", "nowhere"], ["nowhere", "not the folder of a search"]),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str], words: list[str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["--curves", str(file), *options])
    except SystemExit as exit_:
        code = exit_.code
    output = capsys.readouterr()
    assert (code, output.out) == (2, "")
    assert output.err.index("\n") == len(output.err) - 1
    assert all(word in output.err for word in words), output.err
