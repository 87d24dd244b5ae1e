"""A search's state is a function of settings and recorded events: cut them anywhere, and it decides the same."""

import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from psalm.train.records import FILE_NAME, RunRecords, read_records
from tune.config import SAMPLERS, SamplerConfig, SchedulerConfig, SearchConfig, load_config
from tune.errors import SearchError
from tune.options import DEFAULT_CONFIG
from tune.space.parameters import Real
from tune.space.space import SearchSpace
from tune.study.board import Outcome, Status, trial_folder
from tune.study.objectives import Objective
from tune.study.schedulers import create_stopping_rule
from tune.study.state import Job, SearchState
from tune.study.study import propose

FULL = 150
EVALUATIONS = tuple(range(15, FULL + 1, 15))
SAMPLES = 25
CONDITIONAL = """
{name: s, metric: eval_pq, num_samples: 1, arguments: {max_steps: 150}, sampler: {n_startup_trials: 4},
 scheduler: {grace_period: 15}, space: {
  mm_hidden_dim: {choice: [30, 32, 36]}, mm_n_heads: {choice: [2, 3, 4, 5, 8]}, mm_n_points: {int: [1, 9]},
  learning_rate: {loguniform: [1.0e-4, 1.0e-2]}}}
"""
DISCRETE = """
{name: s, metric: eval_pq, num_samples: 1, arguments: {max_steps: 150}, scheduler: {name: none}, space: {
  mm_hidden_dim: {choice: [32, 64]}, mm_n_points: {int: [1, 5, 2]}, learning_rate: {choice: [1.0e-3, 1.0e-2]}}}
"""
FORKING = """
{name: s, metric: eval_pq, num_samples: 25, arguments: {max_steps: 150, eval_steps: 15, warmup_ratio: 0.2}, space: {
  mm_hidden_dim: {choice: [32, 64]}, mm_n_points: {choice: [2, 4]}, learning_rate: {loguniform: [1.0e-4, 1.0e-2]}},
 scheduler: {name: pbt, population: 6}}
"""
FINAL = ("completed", "pruned", "failed")


@pytest.fixture(scope="module")
def tiny() -> SearchConfig:
    config = load_config(DEFAULT_CONFIG, ["eval_steps=15"])
    assert config.max_steps == FULL
    return replace(config, scheduler=SchedulerConfig("asha", 15, 2.0))


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> SearchConfig:
    """A space whose parameters differ between trials."""
    file = tmp_path_factory.mktemp("searches") / "s.yaml"
    file.write_text(CONDITIONAL)
    return load_config(file)


@pytest.fixture(scope="module")
def objectives(tiny: SearchConfig) -> SearchConfig:
    """A search for several objectives, of which some trials are stopped early by the first."""
    names = {"eval_pq": "max", "step_ms": "min", "eval_sq": "max"}
    several = tuple(Objective(*each) for each in names.items())
    median = SchedulerConfig("median", 15)  # with ASHA, hardly any trial completes
    return replace(tiny, objectives=several, sampler=SamplerConfig("tpe", 2), scheduler=median)


def score(params: Mapping[str, Any], step: int) -> float:
    """What a trial reaches: some settings are better, and every evaluation is a little off."""
    good = 40 - 15 * abs(math.log10(params["learning_rate"]) + 3) + params["mm_n_points"]
    return good * (1 - math.exp(-step / 60)) + random.Random(repr((sorted(params.items()), step))).uniform(-2, 2)


def fits(job: Job) -> bool:
    """Whether the machine has the memory; larger settings need more, each rung needs less."""
    need = job.params["mm_hidden_dim"] // 32 + job.params["mm_n_points"] // 3 - 2
    return need <= job.rung


@dataclass
class World:
    """Runs a search on a machine that does its worst, and keeps what the state was asked before each event."""

    config: SearchConfig
    folder: Path
    rng: random.Random
    samples: int = SAMPLES
    running: dict[int, Job] = field(default_factory=dict)
    position: dict[int, int] = field(default_factory=dict)
    ends: dict[int, tuple[Outcome, str | None]] = field(default_factory=dict)
    proposals: dict[int, dict[str, Any] | None] = field(default_factory=dict)
    kills: int = 0

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        self.records = RunRecords(self.folder)
        self.state = SearchState(self.config, self.records, num_samples=self.samples)
        self.state.begin()

    @property
    def written(self) -> int:
        """How many events."""
        return (self.folder / FILE_NAME).read_bytes().count(b"\n")

    def run(self, at_once: int) -> None:
        while not self.state.finished:
            if self.written not in self.proposals:
                self.proposals[self.written] = propose(self.config, self.state.board.trials.values())
            if len(self.running) < at_once and (not self.running or self.rng.random() < 0.5):
                self.begin_one()
            elif self.rng.random() < 0.03:
                self.kill()
            else:
                self.go_on(self.rng.choice(list(self.running)))
        self.state.conclude("FINISHED")
        self.records.close()

    def begin_one(self) -> None:
        job = self.state.next_job()
        if job is not None:
            assert job.number not in self.running
            self.running[job.number] = job
            checkpoints = range(0, self.position.get(job.number, 0) + 1, 15)
            self.position[job.number] = self.rng.choice(checkpoints)

    def go_on(self, number: int) -> None:
        job, luck = self.running[number], self.rng.random()
        if luck < 0.06:
            self.end(number, Outcome.CRASHED, f"killed by {luck}")
        elif luck < 0.07:
            self.end(number, Outcome.FAILED, f"loss is nan, {luck}")
        elif not fits(job):
            self.end(number, Outcome.OUT_OF_MEMORY, f"tried to allocate {luck} GiB")
        else:
            step = self.position[number] = self.position[number] + 15
            if self.config.objectives:
                with RunRecords(trial_folder(self.folder, number)) as records:
                    records.metrics(step, {"system/step_seconds": luck * job.params["mm_n_points"], "eval_sq": luck})
            if not self.state.result(number, step, score(job.params, step)):
                self.end(number, self.rng.choice([Outcome.COMPLETED, Outcome.CRASHED]))
            elif step >= FULL:
                self.end(number, Outcome.COMPLETED)

    def end(self, number: int, outcome: Outcome, reason: str | None = None) -> None:
        self.ends[self.written] = (outcome, reason)
        self.state.end(number, outcome, reason)
        del self.running[number]

    def kill(self) -> None:
        """The search ends, in order or not, and goes on in another process."""
        self.kills += 1
        if self.rng.random() < 0.5:
            self.state.close("--time-budget 1h is used up")
            for number in list(self.running):
                self.end(number, Outcome.INTERRUPTED, "SIGTERM")
            self.state.conclude("KILLED")
        self.running.clear()
        self.records.close()
        self.open()


@dataclass
class Recorded:
    """A finished search, and states built from its first events."""

    world: World
    events: list[dict[str, Any]]
    scratch: Path

    def cut(self, count: int, torn: bool = False) -> tuple[SearchState, RunRecords]:
        """What a new process makes of the first ``count`` events."""
        lines = (self.world.folder / FILE_NAME).read_bytes().splitlines(keepends=True)
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        rest = lines[count][: len(lines[count]) // 2] if torn and count < len(lines) else b""
        (folder / FILE_NAME).write_bytes(b"".join(lines[:count]) + rest)
        (folder / "trials").symlink_to(self.world.folder / "trials")
        records = RunRecords(folder)
        state = SearchState(self.world.config, records, num_samples=self.world.samples)
        state.begin()
        return state, records

    def unfinished(self, count: int) -> list[int]:
        """The trials that the first events leave without an end, read without any of the state's code."""
        numbers: dict[int, bool] = {}
        for event in self.events[:count]:
            if event["event"] == "proposed":
                numbers[event["number"]] = True
            elif event["event"] == "result" and not event["goes_on"]:
                numbers[event["number"]] = False
            elif event["event"] == "ended":
                numbers[event["number"]] = event["status"] not in FINAL
        return [number for number, is_left in numbers.items() if is_left]


def record(config: SearchConfig, folder: Path, seed: int, samples: int = SAMPLES) -> Recorded:
    world = World(config, folder / "search", random.Random(seed), samples)
    world.run(at_once=2 + seed % 2)
    (folder / "cuts").mkdir()
    return Recorded(world, list(read_records(world.folder)), folder / "cuts")


KINDS = ("tiny", "conditional", "objectives")
MORE = [pytest.param((name, seed), marks=pytest.mark.full) for name in KINDS for seed in range(3, 8)]


@pytest.fixture(
    scope="module",
    params=[("tiny", 0), ("conditional", 2), ("objectives", 1), *MORE],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    name, seed = request.param
    return record(request.getfixturevalue(name), tmp_path_factory.mktemp("search"), seed)


def events_of(recorded: Recorded, kind: str) -> list[dict[str, Any]]:
    return [event for event in recorded.events if event["event"] == kind]


def test_the_recorded_searches_have_everything_in_them(recorded: Recorded) -> None:
    outcomes = {event["outcome"] for event in events_of(recorded, "ended")}
    assert outcomes >= {"completed", "crashed", "out_of_memory"}
    assert {event["goes_on"] for event in events_of(recorded, "result")} == {True, False}
    assert recorded.world.kills >= 1
    assert len(events_of(recorded, "resumed")) == recorded.world.kills
    statuses = [row.status for row in recorded.world.state.board.trials.values()]
    assert statuses.count(Status.PRUNED) >= 5
    assert statuses.count(Status.COMPLETED) >= 1


def test_no_trial_is_lost_or_counted_twice(recorded: Recorded) -> None:
    assert [event["number"] for event in events_of(recorded, "proposed")] == list(range(SAMPLES))
    board = recorded.world.state.board
    assert {row.status for row in board.trials.values()} <= {Status.COMPLETED, Status.PRUNED, Status.FAILED}
    for number, row in board.trials.items():
        attempts = [event["attempt"] for event in events_of(recorded, "attempt") if event["number"] == number]
        assert attempts == list(range(1, row.attempts + 1))
        steps = [event["step"] for event in events_of(recorded, "result") if event["number"] == number]
        assert steps == sorted(set(steps)) == list(EVALUATIONS[: len(steps)])


def check_next(recorded: Recorded, count: int, state: SearchState) -> None:
    """A state built from the first events goes on as the uncut search did."""
    to_run = recorded.unfinished(count)
    jobs = {}
    for number in to_run:
        job = state.next_job()
        assert job is not None
        assert job.number == number
        jobs[number] = job
    if count in recorded.world.proposals:
        assert propose(state.config, state.board.trials.values()) == recorded.world.proposals[count]
    if count == len(recorded.events):
        assert state.finished
        assert state.next_job() is None
        return
    event = recorded.events[count]
    match event["event"]:
        case "proposed":
            new = state.next_job()
            assert new is not None
            row = state.board.trials[new.number]
            assert (row.number, row.params, new.rung) == (event["number"], event["params"], event["rung"])
            assert row.learning_rate_changes == event.get("learning_rate_changes", {})
            assert (None if row.fork is None else asdict(row.fork)) == event.get("forks")
        case "attempt":
            job = jobs[event["number"]]
            assert (job.attempt, job.rung, job.changes) == (event["attempt"], event["rung"], event["changes"])
        case "result":
            assert state.result(event["number"], event["step"], event["value"]) == event["goes_on"]
        case "ended" if event["number"] in jobs:
            row = state.end(event["number"], *recorded.world.ends[count])
            assert (row.status, row.rung, row.reason) == (event["status"], event["rung"], event["reason"])
            assert row.objectives == event.get("objectives", {})
        case "ended":
            row = state.board.trials[event["number"]]
            assert (row.status, row.reason) == ("pruned", event["reason"])


def test_cut_at_every_event_the_next_decision_is_the_same(recorded: Recorded) -> None:
    for count in range(len(recorded.events) + 1):
        state, records = recorded.cut(count)
        with records:
            check_next(recorded, count, state)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_discrete_space_is_searched_to_its_end_and_goes_on_from_any_event(sampler: str, tmp_path: Path) -> None:
    """More trials than there are settings are asked for: each setting is had once, then the search is finished."""
    file = tmp_path / "s.yaml"
    file.write_text(DISCRETE)
    config = replace(load_config(file), sampler=SamplerConfig(sampler, 10 if sampler == "gp" else 6))
    recorded = record(config, tmp_path, 1, samples=99)
    board = recorded.world.state.board
    settings = [tuple(row.params.values()) for row in board.trials.values()]
    assert sorted(settings) == sorted((d, p, lr) for d in (32, 64) for p in (1, 3, 5) for lr in (1e-3, 1e-2))
    assert (board.num_samples, board.exhausts, board.fraction) == (12, True, 1)
    assert recorded.world.kills >= 1
    for count in range(len(recorded.events) + 1):
        state, records = recorded.cut(count)
        with records:
            check_next(recorded, count, state)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(2, 6))])
def test_a_population_goes_on_from_any_event(seed: int, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(FORKING)
    config = load_config(file)
    assert config.scheduler.grace_period == 45, "the first evaluation after 30 steps of warm-up"
    recorded = record(config, tmp_path, seed, samples=config.num_samples)
    for count in range(len(recorded.events) + 1):
        state, records = recorded.cut(count)
        with records:
            check_next(recorded, count, state)

    board = recorded.world.state.board
    proposed = events_of(recorded, "proposed")
    assert [event["number"] for event in proposed if "forks" not in event] == list(range(6))
    assert len(board.sampled) == 6
    assert len(proposed) > 6
    values: dict[int, dict[int, float]] = {}
    settings = []
    for event in recorded.events:
        if event["event"] == "result":
            values.setdefault(event["number"], {})[event["step"]] = event["value"]
        if event["event"] == "proposed" and "forks" in event:
            parent, step = event["forks"]["trial"], event["forks"]["step"]
            given = next(each for each in proposed if each["number"] == parent)
            assert step == max(values[parent]) >= 45, "forked at the last evaluation of its parent"
            assert event["params"] == given["params"]
            assert event["rung"] == board.trials[parent].rung
            changes = dict(event["learning_rate_changes"])
            last = changes.pop(str(step))
            inherited = given.get("learning_rate_changes", {})
            assert changes == inherited, "up to there it has its parent's rates"
            before = [*inherited.values()][-1] if inherited else given["params"]["learning_rate"]
            assert last / before == pytest.approx(0.8) or last / before == pytest.approx(1.25)
            values[event["number"]] = {at: value for at, value in values[parent].items() if at <= step}
            assert board.trials[event["number"]].values.items() >= values[event["number"]].items()
        if event["event"] == "proposed":
            settings.append((event["params"], event.get("learning_rate_changes")))
    assert all(settings.count(each) == 1 for each in settings), "none is had twice"
    pruned = board.of(Status.PRUNED)
    assert pruned
    for row in pruned:
        assert row.reason == f"stopped early at step {row.evaluated}, among the worst 25% there"


def test_a_torn_last_line_is_as_if_it_had_not_been_begun(recorded: Recorded) -> None:
    for count in range(0, len(recorded.events), 10):
        state, records = recorded.cut(count, torn=True)
        with records:
            check_next(recorded, count, state)


def differs(check: Callable[[], None]) -> bool:
    try:
        check()
    except AssertionError:
        return True
    return False


def test_a_search_that_forgot_the_rungs_or_the_results_would_be_noticed(recorded: Recorded) -> None:
    rungs, results = [], []
    for count, event in enumerate(recorded.events):
        if event["event"] == "result":
            state, records = recorded.cut(count)
            with records:
                state._rule = create_stopping_rule(state.config.scheduler, state.config.mode, FULL)
                rungs.append(differs(lambda count=count, state=state: check_next(recorded, count, state)))
        if event["event"] == "proposed":
            state, records = recorded.cut(count)
            with records:
                for row in state.board.of(Status.COMPLETED, Status.PRUNED):
                    row.status = Status.FAILED
                results.append(differs(lambda count=count, state=state: check_next(recorded, count, state)))
    assert any(rungs)
    assert any(results)


@pytest.fixture
def opened(tiny: SearchConfig, tmp_path: Path) -> Iterator[Callable[..., SearchState]]:
    """Opens a search's folder, each time as a new process would."""
    held: list[RunRecords] = []

    def open_search(config: SearchConfig = tiny, samples: int = 4, **options: Any) -> SearchState:
        for records in held:
            records.close()
        held.append(RunRecords(tmp_path))
        state = SearchState(config, held[-1], num_samples=samples, **options)
        state.begin()
        return state

    yield open_search
    for records in held:
        records.close()


def job_of(state: SearchState) -> Job:
    job = state.next_job()
    assert job is not None
    return job


def test_a_trial_whose_processes_died_goes_on_until_it_was_too_often(opened: Any) -> None:
    state = opened(max_failures=2)
    for attempt in (1, 2):
        assert job_of(state).attempt == attempt
        row = state.end(0, Outcome.CRASHED, "worker killed")
        assert (row.status, row.reason) == (Status.WAITING, "its processes died: worker killed")
        state = opened(max_failures=2)
    job_of(state)
    row = state.end(0, Outcome.CRASHED, "worker killed")
    assert (row.status, row.reason) == (Status.FAILED, "its processes died 3 times, the last time: worker killed")
    assert job_of(state).number == 1


def test_without_failures_allowed_the_first_is_the_last(opened: Any) -> None:
    state = opened(max_failures=0)
    job_of(state)
    assert state.end(0, Outcome.CRASHED, "killed").reason == "its processes died once: killed"


def test_an_interruption_is_no_failure(opened: Any) -> None:
    state = opened(max_failures=0)
    for attempt in range(1, 6):
        assert (job_of(state).number, attempt) == (0, state.board.trials[0].attempts)
        assert state.end(0, Outcome.INTERRUPTED, "SIGTERM").status == Status.WAITING
        state = opened(max_failures=0)


def test_out_of_memory_climbs_the_ladder_and_then_does_not_fit(opened: Any) -> None:
    state = opened()
    seen = []
    for _ in range(4):
        job = job_of(state)
        seen.append((job.number, job.rung, job.changes))
        row = state.end(0, Outcome.OUT_OF_MEMORY, "CUDA out of memory")
    checkpointing = {"gradient_checkpointing": True}
    half = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 2}
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "per_device_eval_batch_size": 1}
    assert seen == [(0, 0, {}), (0, 1, checkpointing), (0, 2, checkpointing | half), (0, 3, checkpointing | one)]
    assert row.status == Status.FAILED
    assert row.reason == "does not fit: out of memory with gradient checkpointing, micro-batch 1: CUDA out of memory"


def test_later_trials_that_are_as_large_start_at_the_rung_that_worked(tiny: SearchConfig, opened: Any) -> None:
    small, large = ({**tiny.baselines[0], "mm_n_points": points} for points in (2, 8))
    state = opened(replace(tiny, baselines=(tiny.baselines[0], large, small, large)))
    job_of(state)
    state.end(0, Outcome.OUT_OF_MEMORY, "no")
    assert [job_of(state).rung, job_of(state).rung] == [1, 0]  # trial 0 again; a larger one: not known to work yet
    state.result(0, 15, 1.0)
    assert (job_of(state).rung, job_of(state).rung) == (0, 1)  # a smaller one; a larger one


def test_a_trial_that_fits_nowhere_spares_larger_ones_the_way(tiny: SearchConfig, opened: Any) -> None:
    state = opened(replace(tiny, baselines=(tiny.baselines[0], {**tiny.baselines[0], "swin_type": "large"})))
    for _ in range(4):
        job_of(state)
        state.end(0, Outcome.OUT_OF_MEMORY, "no")
    assert (job_of(state).number, state.board.trials[1].rung) == (1, 3)


def test_a_trial_ends_only_where_it_was_evaluated_at_its_full_length(opened: Any) -> None:
    state = opened()
    job_of(state), job_of(state)
    assert state.result(0, FULL, 1.0)
    assert state.end(0, Outcome.COMPLETED).status == Status.COMPLETED
    assert state.result(1, 75, 9.0)
    row = state.end(1, Outcome.COMPLETED)
    assert row.status == Status.FAILED
    assert row.reason == "eval_pq is missing at the end: it was last evaluated at step 75 of 150"


@pytest.mark.parametrize("has_killed_search", [False, True])
def test_a_trial_ends_with_the_values_of_all_objectives(
    opened: Any, objectives: SearchConfig, tmp_path: Path, has_killed_search: bool
) -> None:
    """Also where the search heard of its end only when it was resumed; without one of them the trial has failed."""
    state = opened(objectives)
    for number, seconds in enumerate(({"system/step_seconds": 0.25}, {})):
        job_of(state)
        with RunRecords(trial_folder(tmp_path, number)) as records:
            records.metrics(FULL - 15, {"eval_sq": 1.0, **seconds})
            records.metrics(FULL, {"eval_pq": 5.0, "eval_sq": 7.0})
            records.event("completed", step=FULL)
        state.result(number, FULL, 5.0)
        if not has_killed_search:
            state.end(number, Outcome.COMPLETED)
    board = opened(objectives).board
    assert board.trials[0].objectives == {"eval_pq": 5.0, "step_ms": 250.0, "eval_sq": 7.0}
    assert board.front == [board.trials[0]]
    assert (board.trials[1].status, board.trials[1].objectives) == (Status.FAILED, {})
    assert board.trials[1].reason == "step_ms is missing in its records"


def test_a_stopped_trial_is_pruned_even_if_the_search_dies_before_it_has_ended(opened: Any) -> None:
    state = opened()
    job_of(state), job_of(state)
    state.result(0, 15, 9.0)
    assert not state.result(1, 15, 1.0)
    state = opened()
    row = state.board.trials[1]
    assert (row.status, row.reason, row.since) == (Status.PRUNED, "stopped early at step 15", None)
    assert [job_of(state).number, job_of(state).number] == [0, 2]
    assert not state.result(1, 30, 99.0)  # from a process that is still there


@pytest.mark.parametrize("told", [True, False])
def test_a_trial_that_completed_unheard_is_not_run_again(opened: Any, tmp_path: Path, told: bool) -> None:
    """The search died between a trial's end and its own record of it; a trial that had not ended yet goes on."""
    state = opened()
    job_of(state)
    state.result(0, state.board.full_length, 5.0)
    with RunRecords(trial_folder(tmp_path, 0)) as records:
        records.event("completed" if told else "started", step=state.board.full_length)
    state = opened()
    assert state.board.trials[0].status == (Status.COMPLETED if told else Status.WAITING)
    assert job_of(state).number == (1 if told else 0)


def test_steps_that_are_repeated_are_not_counted_again(opened: Any) -> None:
    state = opened()
    job_of(state)
    for step in (15, 30):
        state.result(0, step, 5.0)
    state = opened()
    job_of(state)
    assert state.result(0, 15, 7.0)
    assert state.result(0, 30, 7.0)
    assert state.board.trials[0].values == {15: 5.0, 30: 5.0}
    assert state.result(0, 45, 8.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_no_result(opened: Any, value: float) -> None:
    state = opened()
    job_of(state)
    with pytest.raises(ValueError, match=f"trial 0: eval_pq is {value} at step 15"):
        state.result(0, 15, value)


def test_an_attempt_ends_once(opened: Any) -> None:
    state = opened()
    job_of(state)
    state.end(0, Outcome.FAILED, "no")
    with pytest.raises(ValueError, match="trial 0 is failed, so no attempt of it can end"):
        state.end(0, Outcome.FAILED, "no")


def test_a_closed_search_begins_nothing_until_it_is_resumed(opened: Any) -> None:
    state = opened()
    job_of(state)
    state.close("--time-budget 1h is used up")
    assert state.next_job() is None
    assert not state.finished  # trial 0 runs
    state.end(0, Outcome.INTERRUPTED, "--time-budget 1h is used up")
    assert state.finished
    assert state.closed == "--time-budget 1h is used up"
    state.conclude("FINISHED")
    state = opened()
    assert state.closed is None
    assert not state.finished
    assert job_of(state).attempt == 2


def test_a_finished_search_can_be_extended(opened: Any) -> None:
    for samples in (1, 2):
        state = opened(samples=samples)
        assert job_of(state).number == samples - 1
        state.result(samples - 1, FULL, 1.0)
        state.end(samples - 1, Outcome.COMPLETED)
        assert state.next_job() is None
        assert state.finished
        assert state.board.fraction == 1


def test_only_the_time_in_which_the_search_ran_counts(
    opened: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    state = opened()
    now = 1010.0
    job_of(state)
    now = 1030.0
    with RunRecords(trial_folder(tmp_path, 0)) as of_trial:
        of_trial.metrics(10, {"loss": 1.0})  # the last that is known of the killed process
    now = 5000.0
    state = opened()
    assert (state.board.elapsed, state.board.trials[0].seconds) == (30, 20)
    now = 5005.0
    job_of(state)
    now = 5010.0
    state.end(0, Outcome.INTERRUPTED)
    state.conclude("KILLED")
    now = 9000.0
    for board in (opened().board, opened().board):
        assert (board.elapsed, board.trials[0].seconds) == (40, 25)


def test_records_of_another_search_are_refused(tiny: SearchConfig, opened: Any) -> None:
    job_of(opened())
    smaller = load_config(DEFAULT_CONFIG, ["mm_n_points=4"])
    with pytest.raises(SearchError, match=r"trial 0 is not of this search: it has mm_hidden_dim, .*, but searched are"):
        opened(smaller)
    free = {name: parameter for name, parameter in tiny.space.free.items() if name != "learning_rate"}
    other = SearchSpace(free | {"learning_rate": Real(1e-6, 1e-5)}, tiny.space.linked)
    with pytest.raises(SearchError, match=r"learning_rate = 0\.001 is not in the space"):
        opened(replace(tiny, space=other))


def test_an_event_of_a_later_version_is_not_passed_over(opened: Any) -> None:
    state = opened()
    state._records.event("promoted", number=0)
    with pytest.raises(ValueError, match=r"records\.jsonl holds an event that this version does not know: promoted"):
        opened()


def test_another_process_proposes_the_same(conditional: SearchConfig, tmp_path: Path) -> None:
    """Nothing depends on the order of sets, which differs between processes."""
    file = tmp_path / "s.yaml"
    file.write_text(CONDITIONAL)
    with RunRecords(tmp_path) as records:
        state = SearchState(conditional, records, num_samples=12)
        for number in range(12):
            job = job_of(state)
            state.result(number, FULL, score(job.params, FULL))
            state.end(number, Outcome.COMPLETED)
        expected = propose(conditional, state.board.trials.values())
    program = (
        "import json, sys; from pathlib import Path; from psalm.train.records import RunRecords; "
        "from tune.config import load_config; from tune.study.state import SearchState; folder = Path(sys.argv[1]); "
        "state = SearchState(load_config(folder / 's.yaml'), RunRecords(folder), num_samples=13); "
        "print(json.dumps(state.next_job().params))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    output = subprocess.run(
        [sys.executable, "-c", program, tmp_path], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(output) == expected
