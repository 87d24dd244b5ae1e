"""The comparison with the baseline, worked out independently: formulas by hand, and what chance does."""

import math
import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import integrate

from psalm.train.records import RunRecords
from tune.config import Confirm, SearchConfig, load_config
from tune.errors import SearchError
from tune.options import DEFAULT_CONFIG
from tune.study.board import Board, Outcome, Status
from tune.study.confirmation import LEVEL, Sample, compare_to, holm, samples_of
from tune.study.ranks import early_to_final
from tune.study.state import Job, SearchState


def welch(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """The two-sided p value by Welch's formulas, Student's density integrated numerically."""
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    t = (statistics.fmean(first) - statistics.fmean(second)) / math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (first, second), strict=True))
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    tail, _ = integrate.quad(lambda x: scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2), abs(t), math.inf)
    return 2 * float(tail)


def test_a_difference_is_tested_by_welch() -> None:
    baseline, other = (77.1, 76.5, 77.9), (79.1, 79.5, 78.4)
    found = compare_to(Sample(baseline), {3: Sample(other)})[3]
    assert found.value == pytest.approx(sum(other) / 3 - sum(baseline) / 3)
    assert found.p == pytest.approx(welch(other, baseline), rel=1e-6)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found.certain == (welch(other, baseline) < LEVEL)


def test_p_values_are_corrected_by_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    baseline = Sample((1.0, 2.0, 3.0, 4.0))
    others = {1: Sample((5.0, 6.0, 7.0, 8.5)), 2: Sample((1.0, 2.0, 4.0, 4.5))}
    alone = [compare_to(baseline, {number: sample})[number].p for number, sample in others.items()]
    both = [each.p for each in compare_to(baseline, others).values()]
    assert None not in alone
    assert both == pytest.approx(holm([p for p in alone if p is not None]))


def test_too_few_values_are_not_tested() -> None:
    one = compare_to(Sample((1.0,)), {1: Sample((2.0,))})[1]
    assert (one.value, one.p, one.certain) == (1.0, None, False)
    same = compare_to(Sample((1.0, 1.0)), {1: Sample((2.0, 2.0))})[1]
    assert (same.value, same.p, same.certain) == (1.0, None, False)


def test_noise_is_seldom_called_a_difference() -> None:
    """Three settings that are the baseline: one is called different in at most the promised share of searches."""
    draw = random.Random(0)

    def values() -> Sample:
        return Sample(tuple(draw.gauss(0, 1) for _ in range(3)))

    wrong = sum(
        any(each.certain for each in compare_to(values(), {n: values() for n in range(3)}).values()) for _ in range(400)
    )
    assert wrong / 400 < LEVEL + 0.02


FULL = 150


def value_of(job: Job, step: int) -> float:
    """Smaller learning rates are better here; a seed changes a little."""
    good = -10 * math.log10(float(job.params["learning_rate"])) + 0.1 * float(job.params.get("seed", 0))
    return good * step / FULL


def run_job(state: SearchState, job: Job) -> None:
    for step in (50, 100, FULL):
        if not state.result(job.number, step, value_of(job, step)):
            break
    state.end(job.number, Outcome.COMPLETED)


def run_search(config: SearchConfig, folder: Path, jobs: int = 1000) -> list[Job]:
    """So many jobs of a search, one after another, and then it is killed."""
    done = []
    with RunRecords(folder) as records:
        state = SearchState(config, records, num_samples=5)
        state.begin()
        while len(done) < jobs and (job := state.next_job()) is not None:
            done.append(job)
            run_job(state, job)
        assert state.finished == (len(done) < jobs)
    return done


@pytest.fixture(scope="module")
def config() -> SearchConfig:
    return load_config(DEFAULT_CONFIG, confirm="2x3")


def test_the_best_and_the_baseline_run_again_with_new_seeds(config: SearchConfig, tmp_path: Path) -> None:
    jobs = run_search(config, tmp_path)
    proposed, again = jobs[:5], jobs[5:]
    with RunRecords(tmp_path) as records:
        board = SearchState(config, records, num_samples=5).board
    best = [row.number for row in board.ranking() if row.status == Status.COMPLETED][:2]
    expected = [number for number in dict.fromkeys([0, *best]) for _ in range(3)]
    assert sorted(row.confirms or 0 for row in board.confirmations) == sorted(expected)
    for job, row in zip(again, board.confirmations, strict=True):
        assert row.confirms is not None
        of = proposed[row.confirms]
        assert job.params == {**of.params, "seed": row.seed}
        assert row.seed in (1, 2, 3)
        assert row.status == Status.COMPLETED, "nobody stops it"
    assert len({(row.confirms, row.seed) for row in board.confirmations}) == len(board.confirmations)
    samples = samples_of(board)
    assert sorted(samples[0].values) == sorted(
        value_of(job, FULL) for job, row in zip(again, board.confirmations, strict=True) if row.confirms == 0
    )
    assert [row.number for row in board.ranking()] == [row.number for row in board.ranking() if row.number < 5]


@pytest.mark.parametrize("cut", [3, 5, 6, 9])
def test_a_search_that_is_killed_confirms_the_rest(config: SearchConfig, tmp_path: Path, cut: int) -> None:
    whole = run_search(config, tmp_path / "whole")
    first = run_search(config, tmp_path / "cut", cut)
    rest = run_search(config, tmp_path / "cut")
    assert [job.params for job in first + rest] == [job.params for job in whole]


def test_more_may_be_confirmed_later(config: SearchConfig, tmp_path: Path) -> None:
    at_once = run_search(config, tmp_path / "at once")
    asked = (None, Confirm(1, 1), config.confirm)
    jobs = [job for confirm in asked for job in run_search(replace(config, confirm=confirm), tmp_path / "bit by bit")]
    assert sorted(repr(job.params) for job in jobs) == sorted(repr(job.params) for job in at_once)


def test_confirmations_are_not_learnt_from(config: SearchConfig, tmp_path: Path) -> None:
    """The proposal after them is that of a search without them."""
    run_search(config, tmp_path / "with")
    run_search(replace(config, confirm=None), tmp_path / "without")
    found = []
    for name in ("with", "without"):
        with RunRecords(tmp_path / name) as records:
            state = SearchState(config, records, num_samples=6)
            state.begin()
            job = state.next_job()
            assert job is not None
            found.append(job.params)
    assert found[0] == found[1]


@pytest.mark.parametrize("given", ["3", "0x3", "3x0", "axb"])
def test_what_is_confirmed_is_settings_times_seeds(given: str) -> None:
    with pytest.raises(SearchError, match=r"confirm = .* must be settings x seeds, both at least 1, e\.g\. 3x3"):
        load_config(DEFAULT_CONFIG, confirm=given)


def test_early_values_that_tell_the_final_order_correlate() -> None:
    board = Board("s", "eval_pq", "max", 100, 6)
    finals = [10.0, 20.0, 30.0, 40.0, 50.0]
    for number, final in enumerate(finals):
        board.add(number, {"learning_rate": 1e-3})
        board.start(number, 0.0)
        board.report(number, 25, -final)
        board.report(number, 50, final / 2)
        board.report(number, 100, final)
        board.finish(number, Status.COMPLETED, 1.0)
    board.add(5, {"learning_rate": 1e-3})
    board.report(5, 25, 1000.0)  # it was stopped
    board.finish(5, Status.PRUNED, 1.0)
    assert early_to_final(board) == {25: (pytest.approx(-1.0), 5), 50: (pytest.approx(1.0), 5)}
