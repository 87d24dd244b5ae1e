"""Recorded learning curves: written and read, and gathered from searches of known seconds."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from psalm.train.records import RunRecords
from tests.tune.known_curves import STEPS, curves_of, settings_of
from tune.config import SearchConfig, load_config
from tune.costs import costs
from tune.errors import SearchError
from tune.options import DEFAULT_CONFIG
from tune.results import summary, write_summary
from tune.simulate import main as simulate_main
from tune.simulation.check import check
from tune.simulation.curve_file import read_curves, write_curves
from tune.simulation.curves import curves_of_folder, load_curves, main
from tune.study.board import Board, Status, trial_folder
from tune.tracking.tracker import Tracker

LENGTH = 100
LANES = 2
STARTUP, OVERHEAD, STEP, EVALUATION, PICTURES = 30.0, 4.0, 0.25, 2.0, 1.0
"""Seconds."""
CONFIG = {
    "name": "s",
    "metric": "eval_pq",
    "num_samples": 6,
    "max_concurrent": LANES,
    "sampler": {"name": "random"},
    "scheduler": {"name": "asha", "grace_period": 50, "reduction_factor": 3},
    "space": {"learning_rate": {"loguniform": [1e-4, 1e-2]}, "swin_type": {"choice": ["base", "large"]}},
    "arguments": {"max_steps": LENGTH, "eval_steps": 50, "logging_steps": 10},
}
VALUES = (50.0, 40.0, 60.0, 10.0, 70.0, 20.0)
"""Of trials, at their first evaluation."""
STOPPED = (1, 3, 5)


@pytest.fixture
def config(tmp_path: Path) -> SearchConfig:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(CONFIG))
    return load_config(tmp_path / "s.yaml")


def work(evaluations: int) -> float:
    """Seconds of a trial with so many evaluations, 50 steps apart."""
    return OVERHEAD + evaluations * (50 * STEP + EVALUATION + PICTURES)


def run_trial(folder: Path, seed: int, value: float, until: int) -> None:
    """Writes a trial's records."""
    with RunRecords(folder) as records:
        records.event("started")
        for step in range(10, until + 1, 10):
            records.metrics(step, {"loss": 1.0, "system/step_seconds": STEP})
            if step % 50 == 0:
                found = value + seed + step / 50
                records.metrics(step, {"eval_pq": found, "eval_sq": 1.0, "system/eval_seconds": EVALUATION})
                records.metrics(step, {"system/pictures_seconds": PICTURES})
        records.event("completed", step=until)


def run_search(
    config: SearchConfig,
    folder: Path,
    stopped: tuple[int, ...] = (),
    tracker: Tracker | None = None,
    seed: int = 0,
    trials: int = len(VALUES),
) -> None:
    """A search of two lanes that begins at second 1000: its trials' records, search.json and runs in MLflow.

    Trial 4 was interrupted once, and lost a minute.
    """
    board = Board(config.name, config.metric, config.mode, LENGTH, trials, started=1000.0)
    free = [1000.0, 1000.0]
    if tracker is not None:
        tracker.start_search(config.as_record())
    for number, value in enumerate(VALUES[:trials]):
        params = {"learning_rate": 1e-3 / (number + 1), "swin_type": "base" if number % 2 else "large"}
        evaluations = 1 if number in stopped else 2
        lane = free.index(min(free))
        start = free[lane]
        seconds = work(evaluations) + (STARTUP if number < LANES else 0) + (60 if number == 4 else 0)
        free[lane] += seconds
        board.add(number, params)
        board.start(number, start)
        if number == 4:
            board.start(number, start)
        if tracker is not None:
            tracker.start_trial(number, trial_folder(folder, number), params)
        run_trial(trial_folder(folder, number), seed, value, 50 * evaluations)
        for index in range(evaluations):
            board.report(number, 50 * (index + 1), value + seed + index + 1)
        board.finish(number, Status.PRUNED if number in stopped else Status.COMPLETED, free[lane])
        if tracker is not None:
            tracker.finish_trial(number, "FINISHED", early_stopped=number in stopped)
    board.conclude(max(free))
    run_id = (lambda number: None) if tracker is None else tracker.run_id
    content = summary(board, None, run_id, costs(board, folder, LANES))
    write_summary(folder, content)
    if tracker is not None:
        tracker.finish_search("FINISHED", content)


def test_a_file_gives_back_what_was_written_and_is_small(tmp_path: Path) -> None:
    settings = settings_of(load_config(DEFAULT_CONFIG), 60)
    curves = curves_of(settings)
    write_curves(curves, tmp_path / "c.jsonl")
    read = read_curves(tmp_path / "c.jsonl")
    assert [(run.params, run.seed) for run in read.runs] == [(run.params, run.seed) for run in curves.runs]
    for run, expected in zip(read.runs, curves.runs, strict=True):
        assert dict(run.values) == pytest.approx(dict(expected.values), abs=1e-4)
        assert run.step_seconds == pytest.approx(expected.step_seconds, abs=1e-4)
    assert replace(read, runs=()) == replace(curves, runs=())
    assert len(read.settings) == 60
    assert read.steps == list(STEPS)
    assert (tmp_path / "c.jsonl").stat().st_size < 100_000


@pytest.mark.parametrize(
    "content", ["", "no JSON\n", "[]\n", '{"metric": "eval_pq"}\n', '{"metric": "m", "run": 1}\n{"params": {}}\n']
)
def test_what_is_no_file_of_curves_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(content)
    with pytest.raises(SearchError, match="is no file of recorded curves"):
        load_curves(str(tmp_path / "c.jsonl"), "sqlite:///nowhere.db")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An experiment of two searches that differ in the training seed, another with a third, of another length."""
    home = tmp_path_factory.mktemp("store")
    (home / "s.yaml").write_text(yaml.safe_dump(CONFIG))
    uri = f"sqlite:///{home / 'mlflow.db'}"
    config = load_config(home / "s.yaml")
    for seed in (0, 1):
        tracker = Tracker(uri, home / f"s-{seed}", "s")
        of_seed = replace(config, arguments=config.arguments | {"seed": seed, "save_steps": 50 + seed})
        run_search(of_seed, home / f"s-{seed}", STOPPED if seed else (), tracker, seed)
    for length in (LENGTH, 200):
        folder = home / f"other-{length}"
        longer = replace(config, arguments=config.arguments | {"max_steps": length})
        run_search(longer, folder, tracker=Tracker(uri, folder, "other"), trials=1)
    return uri, home


def test_an_experiment_gives_all_runs_of_full_length(store: tuple[str, Path]) -> None:
    curves = load_curves("s", store[0])
    assert (curves.metric, curves.mode, curves.max_steps, curves.at_once) == ("eval_pq", "max", LENGTH, LANES)
    assert [run.seed for run in curves.runs] == [0] * 6 + [1] * 3
    assert [len(runs) for runs in curves.settings] == [2, 1, 2, 1, 2, 1], "stopped runs are no answer"
    for run, value in zip(curves.runs, (*VALUES, 50.0, 60.0, 70.0), strict=True):
        assert run.values == {50: value + run.seed + 1, 100: value + run.seed + 2}
        assert (run.step_seconds, run.evaluation_seconds) == pytest.approx((STEP, EVALUATION + PICTURES))
        assert run.params.keys() == {"learning_rate", "swin_type"}
    first = curves.runs[:6]
    overheads = [run.overhead_seconds for run in first]
    assert overheads == [None, None, OVERHEAD, OVERHEAD, None, OVERHEAD], "not where processes started, or it waited"
    assert curves.overhead_seconds == pytest.approx(OVERHEAD)
    assert curves.startup_seconds == pytest.approx(STARTUP, abs=5)


def test_searches_that_differ_in_more_than_seeds_are_no_set_of_curves(store: tuple[str, Path]) -> None:
    with pytest.raises(SearchError, match="'other': its searches differ in max_steps"):
        load_curves("other", store[0])


def test_the_command_writes_the_file_of_an_experiment(
    store: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "c.jsonl")
    assert main(["s", file, "--tracking-uri", store[0]]) == 0
    assert "6 settings, 9 runs" in capsys.readouterr().out
    assert read_curves(Path(file)).settings == load_curves(file, "").settings
    assert main(["t", file, "--tracking-uri", store[0]]) == 2
    assert (
        "--curves 't' is no file, and no experiment: there is no experiment 't'; there are" in capsys.readouterr().err
    )
    assert main(["s", file, "--tracking-uri", "sqlite:////nowhere/mlflow.db"]) == 2
    assert "there is no such file" in capsys.readouterr().err


def ended_search(folder: Path) -> SearchConfig:
    """A search's folder, with what a real one has in it."""
    folder.mkdir()
    (folder / "search.yaml").write_text(yaml.safe_dump(CONFIG))
    config = load_config(folder / "search.yaml")
    run_search(config, folder, STOPPED)
    asked: dict[str, Any] = dict.fromkeys(("num_samples", "max_concurrent", "seed", "metric", "storage_path"))
    with RunRecords(folder) as records:
        records.settings(asked | {"assignments": [], "resources": [], "config_folder": str(folder)})
        records.event("started", pid=1)
        records.event("attempt", number=0)
    return config


def test_a_folder_gives_all_trials_as_far_as_they_ran(tmp_path: Path) -> None:
    config = ended_search(tmp_path / "s")
    curves = curves_of_folder(tmp_path / "s", config)
    assert [max(run.values) for run in curves.runs] == [50 if number in STOPPED else 100 for number in range(6)]
    assert [run.step_seconds for run in curves.runs] == pytest.approx([STEP] * 6)
    assert curves.startup_seconds == pytest.approx(STARTUP, abs=1)


def test_a_real_search_is_checked_against_the_simulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its times were made by hand; only the minute that trial 4 lost is not in a simulated search."""
    folder = tmp_path / "s"
    ended_search(folder)
    wall = json.loads((folder / "search.json").read_text())["seconds"]["wall"]
    real, simulated = check(folder)
    assert (real.trials, real.seconds) == (6, wall)
    assert real.stopped == simulated.stopped == dict.fromkeys(STOPPED, 50)
    assert simulated.trials == 6
    assert simulated.seconds == pytest.approx(wall - 60, abs=1)
    assert simulate_main(["--check", str(folder)]) == 0
    assert f"{simulated.seconds / wall - 1:+.1%} off" in capsys.readouterr().out


def test_what_confirms_a_search_is_not_in_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "s"
    ended_search(folder)
    before, _ = check(folder)
    now = time.time() + 1000
    with RunRecords(folder) as records:
        for seconds, event in ((0, "proposed"), (40, "ended"), (70, "concluded")):
            monkeypatch.setattr(time, "time", lambda seconds=seconds: now + seconds)
            records.event(event, number=6, **({"confirms": 1} if event == "proposed" else {}))
    after, _ = check(folder)
    assert before.seconds - after.seconds == pytest.approx(70)
