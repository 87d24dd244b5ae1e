"""The board's arithmetic, and what a person sees of it."""

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tune.config import load_config
from tune.options import DEFAULT_CONFIG
from tune.progress import Progress, announce, clock, trial_table
from tune.study.board import Board, Fork, Status, TrialRow

PARAMS = {"mm_hidden_dim": 64, "mm_n_heads": 8, "mm_n_points": 4, "learning_rate": 0.00123456, "swin_type": "large"}


def test_a_search_is_announced_with_its_space_and_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "MASK2FORMER_SWIN_BASE", "/a/folder/with/a/rather/long/name/for/all/weights/of/mask2former/b.pkl"
    )
    monkeypatch.setenv("MASK2FORMER_SWIN_LARGE", "/l.pkl")
    file = io.StringIO()
    announce(load_config(DEFAULT_CONFIG.with_name("phi15_swin.yaml")), Path("/runs/s"), Console(file=file, width=120))
    lines = file.getvalue().splitlines()
    assert "  swin_type: one of base, large" in lines
    assert (
        "  vision_tower: /a/folder/with/a/rather/long/name/for/all/weights/of/mask2former/b.pkl for swin_type = base; "
        "/l.pkl for swin_type = large"
    ) in lines


CONDITIONAL = """
name: s
num_samples: 4
space:
  mm_projector_type: {choice: [deformable, swin_conv]}
  mm_n_points: {int: [2, 8, 2], when: mm_projector_type == 'deformable'}
  per_device_train_batch_size: {choice: [2, 4]}
  learning_rate: {loguniform: [1e-4, 1e-2]}
require: [per_device_train_batch_size + mm_n_points <= 10]
baselines:
  - {mm_projector_type: swin_conv, per_device_train_batch_size: 4, learning_rate: 0.001}
  - {mm_projector_type: deformable, mm_n_points: 2, per_device_train_batch_size: 4, learning_rate: 0.001}
arguments: {max_steps: 30, eval_steps: 10, mm_n_points: 6, mm_hidden_dim: 128}
"""


def announced(tmp_path: Path, *assignments: str, text: str = CONDITIONAL) -> list[str]:
    (tmp_path / "s.yaml").write_text(text)
    file = io.StringIO()
    announce(load_config(tmp_path / "s.yaml", assignments), Path("/runs/s"), Console(file=file, width=100))
    return file.getvalue().splitlines()


def test_a_space_is_announced_with_conditions_rules_size_fixed_values_and_baselines(tmp_path: Path) -> None:
    assert announced(tmp_path) == [
        "Search s: 4 trials of 30 steps",
        "  per_device_train_batch_size: one of 2, 4",
        "  mm_projector_type: one of deformable, swin_conv",
        "  mm_n_points: whole numbers from 2 to 8 by 2 when mm_projector_type == 'deformable', else 6",
        "  learning_rate: 0.0001 to 0.01 on a log scale",
        "  required: per_device_train_batch_size + mm_n_points <= 10",
        "  size: 9 combinations x learning_rate (continuous)",
        "  fixed, unlike its default: disable_tqdm=True max_steps=30 eval_steps=10 mm_hidden_dim=128",
        "    save_steps=10 seed=0",
        "  trial 0, a baseline: per_device_train_batch_size=4 mm_projector_type=swin_conv learning_rate=0.001",
        "  trial 1, a baseline: per_device_train_batch_size=4 mm_projector_type=deformable mm_n_points=2",
        "    learning_rate=0.001",
        "  in /runs/s",
        "",
    ]


def test_what_is_not_searched_with_what_is_fixed_is_announced(tmp_path: Path) -> None:
    lines = announced(tmp_path, "mm_projector_type=swin_conv", "per_device_train_batch_size=2")
    assert "  not searched, as their conditions do not hold: mm_n_points=6" in lines
    assert "  size: learning_rate (continuous)" in lines
    assert not any("else 6" in line for line in lines)


def test_the_values_outside_a_condition_are_announced_with_it(tmp_path: Path) -> None:
    """Of an argument and of what follows it; neither is fixed, and nothing is left where the condition always holds."""
    followed = CONDITIONAL + "dependent: {swin_type: {weight_decay: {base: 0.1, large: 0.2}}}\n"
    when = "mm_projector_type: {choice: [deformable, swin_conv]}"
    swin = "swin_type: {choice: [base, large], when: mm_projector_type == 'deformable'}"
    followed = followed.replace(when, f"{when}\n  {swin}").replace("{max_steps", "{weight_decay: 0.3, max_steps")
    lines = announced(tmp_path, text=followed)
    assert "  weight_decay: 0.1 for swin_type = base; 0.2 for swin_type = large, else 0.3" in lines
    assert not any("weight_decay=" in line for line in lines)
    lines = announced(tmp_path, "mm_projector_type=deformable", text=followed)
    assert "  weight_decay: 0.1 for swin_type = base; 0.2 for swin_type = large" in lines
    assert not any("weight_decay=" in line or ("fixed" in line and "mm_n_points" in line) for line in lines)


AT = time.time()
"""When attempts end; they begin a minute before."""


@pytest.fixture
def board() -> Board:
    return Board("tiny", "eval_pq", "max", full_length=100, num_samples=4)


def start(board: Board, number: int, changes: dict[str, Any] | None = None) -> TrialRow:
    if number not in board.trials:
        board.add(number, PARAMS)
    return board.start(number, AT - 60, changes)


def test_fraction_counts_steps_of_running_and_all_of_ended_trials(board: Board) -> None:
    assert board.fraction == 0
    start(board, 0)
    board.advance(0, 50)
    assert board.fraction == 0.5 / 4
    start(board, 1)
    board.report(1, 20, 3.0)
    board.finish(1, Status.PRUNED, AT, "stopped early at step 20")
    assert board.fraction == 1.5 / 4
    for number in (2, 3):
        start(board, number)
        board.finish(number, Status.FAILED, AT, "no")
    board.report(0, 100, 1.0)
    board.finish(0, Status.COMPLETED, AT)
    assert board.fraction == 1


def test_steps_never_go_back(board: Board) -> None:
    start(board, 0)
    board.report(0, 60, 1.0)
    board.advance(0, 50)
    assert board.trials[0].step == 60


@pytest.mark.parametrize(("mode", "best", "order"), [("max", 9.0, [2, 0, 3, 1, 4]), ("min", 2.0, [0, 2, 1, 3, 4])])
def test_ranking_puts_full_length_first_then_by_last_value(mode: str, best: float, order: list[int]) -> None:
    board = Board("s", "m", mode, 100, 5)
    for number, values in enumerate([(2.0, 4.0), (7.0, 1.0), (9.0, 8.0), (50.0,), ()]):
        start(board, number)
        for step, value in enumerate(values, start=1):
            board.report(number, step, value)
    for number, status in enumerate((Status.COMPLETED, Status.PRUNED, Status.COMPLETED, Status.PRUNED, Status.FAILED)):
        board.finish(number, status, AT)
    assert [row.number for row in board.ranking()] == order
    assert board.best is not None
    assert board.best.number == order[0]
    assert board.trials[order[0]].best == best


def test_without_a_completed_trial_there_is_no_best(board: Board) -> None:
    assert board.best is None
    start(board, 0)
    board.report(0, 10, 99.0)
    board.finish(0, Status.PRUNED, AT)
    assert board.best is None


def test_a_trial_that_waits_to_go_on_is_unfinished(board: Board) -> None:
    for number in (0, 1):
        start(board, number)
        board.report(number, 50, 9.0)
    board.finish(0, Status.WAITING, AT, "its processes died: killed")
    board.finish(1, Status.FAILED, AT, "broken")
    assert board.fraction == 1.5 / 4
    assert [row.number for row in board.ranking()] == [0, 1]
    assert board.occupied == []


def test_the_time_of_all_attempts_counts_and_none_between_them(board: Board) -> None:
    start(board, 0)
    row = board.finish(0, Status.WAITING, AT)
    assert row.seconds == row.seconds_at(AT + 999) == 60
    board.start(0, AT + 1000)
    assert row.seconds_at(AT + 1007) == 67
    board.finish(0, Status.COMPLETED, AT + 1010)
    assert (row.seconds, row.attempts) == (70, 2)


def test_the_time_of_all_runs_counts_and_none_between_them() -> None:
    board = Board("tiny", "eval_pq", "max", 100, 4)
    board.begin(1000.0)
    board.conclude(1010.0)
    assert board.elapsed == 10
    board.begin_again(5000.0, until=1010.0)
    board.begin_again(6000.0, until=5020.0)  # it was killed after 20 seconds
    board.conclude(6003.0)
    assert board.elapsed == 33


def shown(board: Board, width: int, terminal: bool = False) -> tuple[io.StringIO, Console]:
    file = io.StringIO()
    return file, Console(file=file, width=width, force_terminal=terminal, color_system=None)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_nothing_is_cut_off(board: Board, width: int) -> None:
    start(board, 0)
    board.report(0, 60, 48.123)
    start(board, 1)
    board.finish(1, Status.COMPLETED, AT)
    file, console = shown(board, width)
    console.print(trial_table(board, board.trials.values(), width))
    text = file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for cell in ("running", "completed", "60/100", "48.12", "0.001235", "large"):
        assert cell in text


def test_a_trial_without_an_argument_has_an_empty_cell(board: Board) -> None:
    few = {"learning_rate": 0.5}
    board.add(0, few)
    board.add(1, few | {"mm_n_points": 4})
    file, console = shown(board, 120)
    console.print(trial_table(board, board.trials.values(), 120))
    heading, _, first, second = file.getvalue().splitlines()
    assert heading.split() == ["trial", "status", "learning_rate", "mm_n_points", "step", "eval_pq", "best", "time"]
    assert (first.split(), second.split()) == (
        ["0", "waiting", "0.5", "0/100", "-", "-", "0:00"],
        ["1", "waiting", "0.5", "4", "0/100", "-", "-", "0:00"],
    )


def test_away_from_a_terminal_every_event_is_one_plain_line(board: Board) -> None:
    file, console = shown(board, 80)
    with Progress(board, console) as progress:
        progress.started(start(board, 0))
        progress.evaluated(board.report(0, 60, 48.123))
        progress.ended(board.finish(0, Status.FAILED, AT, "eval_pq is nan at step 90 [see error.txt]"))
    lines = file.getvalue().splitlines()
    assert len(lines) == 3
    assert "trial 0 starts: mm_hidden_dim=64 mm_n_heads=8" in lines[0]
    assert "trial 0 step 60/100, eval_pq 48.12" in lines[1]
    assert "15%" in lines[1]
    assert "trial 0 failed: eval_pq is nan at step 90 [see error.txt]" in lines[2]
    assert "\x1b" not in file.getvalue()


def test_a_trial_that_goes_on_is_told_with_what_the_ladder_changed(board: Board) -> None:
    file, console = shown(board, 200)
    with Progress(board, console) as progress:
        start(board, 0)
        board.report(0, 50, 12.5)
        progress.ended(board.finish(0, Status.WAITING, AT, "out of memory: CUDA"))
        progress.started(start(board, 0, {"gradient_checkpointing": True, "per_device_train_batch_size": 2}))
    waits, goes_on = file.getvalue().splitlines()
    assert "trial 0 waits to go on from step 50: out of memory: CUDA (1:00)" in waits
    assert "trial 0 goes on (it was at step 50), attempt 2: mm_hidden_dim=64" in goes_on
    assert goes_on.endswith("with gradient_checkpointing=True, per_device_train_batch_size=2 to save memory")


def test_on_a_terminal_the_table_is_alive(board: Board) -> None:
    file, console = shown(board, 100, terminal=True)
    with Progress(board, console) as progress:
        progress.started(start(board, 0))
        board.report(0, 50, 12.5)
        progress._live.refresh()
    assert "50/100" in file.getvalue()
    assert "12% of 4 trials" in file.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (67.9, "1:07"), (3599, "59:59"), (3787, "1:03:07")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_fork_is_shown_with_its_parent_and_its_last_rate(board: Board) -> None:
    number = len(board.trials)
    changes = {"10": 1e-3, "20": 8e-4}
    row = board.add(number, PARAMS, fork=Fork(0, 20), learning_rate_changes=changes)
    board.start(number, 0.0)
    file = io.StringIO()
    console = Console(file=file, width=200)
    Progress(board, console).started(row)
    console.print(trial_table(board, [row], 200))
    said, table = file.getvalue().split("\n", 1)
    assert f"trial {number} forks trial 0 at step 20: mm_hidden_dim=64" in said
    assert said.endswith("learning_rate_changes={10: 0.001, 20: 0.0008}")
    assert "0.001235, ..., 0.0008 from 20" in table
