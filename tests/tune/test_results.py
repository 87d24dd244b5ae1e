"""What a search leaves: search.json, the ranking, the commands to go on with."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tune.results import next_commands, print_results, summary, write_summary
from tune.space.dependents import Dependents
from tune.study.board import Board, Status
from tune.study.objectives import Objective

URI = "sqlite:////x/mlflow.db"
AT = 1_000_060.0
SECONDS = {
    "wall": 300.0,
    "concurrency": 2,
    "trials": 560.0,
    "startup": 90.0,
    "training": 390.0,
    "evaluation": 60.0,
    "checkpointing": 20.0,
    "waiting": 40.0,
    "overhead_per_trial": 50.0,
}


def start(board: Board, number: int, params: dict[str, Any]) -> None:
    board.add(number, params)
    board.start(number, AT - 60)


@pytest.fixture
def board() -> Board:
    board = Board("tiny", "eval_pq", "max", full_length=100, num_samples=3)
    ends = [(40.0, Status.COMPLETED, None), (60.0, Status.COMPLETED, None)]
    ends += [(70.0, Status.PRUNED, "stopped early at step 30")]
    for number, (value, status, reason) in enumerate(ends):
        start(board, number, {"mm_n_points": number})
        board.report(number, 30, value + 5)
        if status == Status.COMPLETED:
            board.report(number, 100, value)
        board.finish(number, status, AT, reason)
    return board


def test_the_summary_has_every_trial_and_the_best_of_full_length(board: Board, tmp_path: Path) -> None:
    write_summary(tmp_path, summary(board, "parent", lambda number: f"run{number}", SECONDS))
    content = json.loads((tmp_path / "search.json").read_text())
    assert content["search_run_id"] == "parent"
    assert content["best"] == {"run_id": "run1", "params": {"mm_n_points": 1}, "dependent": {}, "value": 60.0}
    assert [t["number"] for t in content["trials"]] == [0, 1, 2]
    second = content["trials"][1]
    assert second == {
        "run_id": "run1",
        "number": 1,
        "status": "completed",
        "params": {"mm_n_points": 1},
        "dependent": {},
        "last": 60.0,
        "best": 65.0,
        "steps": 100,
        "seconds": 60.0,
        "reason": None,
        "attempts": 1,
        "changes": {},
    }
    assert content["seconds"] == SECONDS
    assert content["trials"][2]["reason"] == "stopped early at step 30"
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]


def test_what_follows_a_searched_argument_is_in_the_summary_and_in_the_answer(tmp_path: Path) -> None:
    dependents = Dependents({"swin_type": {"vision_tower": {"base": "/w/base.pkl", "large": "/w/large.pkl"}}})
    board = Board("s", "eval_pq", "max", 100, 1, dependents)
    start(board, 0, {"swin_type": "large"})
    board.report(0, 100, 5.0)
    board.finish(0, Status.COMPLETED, AT)
    assert summary(board, None, lambda number: None, SECONDS)["trials"][0]["dependent"] == {
        "vision_tower": "/w/large.pkl"
    }
    assert "Best eval_pq 5 with\n  swin_type: large\n  vision_tower: /w/large.pkl\n" in printed(board, tmp_path)


def test_without_a_completed_trial_best_is_null() -> None:
    board = Board("tiny", "eval_pq", "max", 100, 1)
    start(board, 0, {"mm_n_points": 2})
    board.finish(0, Status.FAILED, AT, "eval_pq is nan at step 30")
    assert summary(board, None, lambda number: None, SECONDS)["best"] is None


def printed(board: Board, folder: Path) -> str:
    write_summary(folder, summary(board, "parent", lambda number: f"run{number}", SECONDS))
    file = io.StringIO()
    print_results(board, folder, URI, Console(file=file, width=120))
    return file.getvalue()


def test_the_answer_names_the_best_setting_and_the_next_commands(board: Board, tmp_path: Path) -> None:
    text = printed(board, tmp_path)
    assert "Best eval_pq 60 with\n  mm_n_points: 1" in text
    assert f"mlflow ui --backend-store-uri {URI}" in text
    assert f"reproduce.py run1 --tracking-uri {URI}" in text


def test_failures_are_shown_with_their_reason(board: Board, tmp_path: Path) -> None:
    board.finish(0, Status.FAILED, AT, "eval_pq is [nan] at step 30")
    assert "trial 0 failed: eval_pq is [nan] at step 30" in printed(board, tmp_path)


def test_of_several_objectives_the_front_is_the_answer(board: Board, tmp_path: Path) -> None:
    """Best first in the first of them; the baseline is beside, and trials that were stopped have no values."""
    board.objectives, board.baseline = (Objective("eval_pq", "max"), Objective("parameters", "min")), 0
    board.trials[0].objectives = {"eval_pq": 40.0, "parameters": 2_500_000.0}
    board.trials[1].objectives = {"eval_pq": 60.0, "parameters": 2_400_000.0}
    start(board, 3, {"mm_n_points": 3})
    board.report(3, 100, 10.0)
    board.finish(3, Status.COMPLETED, AT)
    board.trials[3].objectives = {"eval_pq": 10.0, "parameters": 9000.0}
    lines = [line.split() for line in printed(board, tmp_path).splitlines()]
    table = lines.index(["Pareto", "front", "of", "eval_pq", "(max),", "parameters", "(min)"])
    assert lines[table + 1] == ["trial", "eval_pq", "parameters", "mm_n_points"]
    assert [line for line in lines[table + 2 : table + 8] if line and line[0].isdigit()] == [
        ["1", "60", "2,400,000", "1"],
        ["3", "10", "9000", "3"],
        ["0", "40", "2,500,000", "0", "the", "baseline,", "not", "on", "the", "front"],
    ]
    content = json.loads((tmp_path / "search.json").read_text())
    assert content["objectives"] == [{"eval_pq": "max"}, {"parameters": "min"}]
    assert content["pareto_front"] == [1, 3]
    assert [trial["objectives"] for trial in content["trials"]] == [
        {"eval_pq": 40.0, "parameters": 2_500_000.0},
        {"eval_pq": 60.0, "parameters": 2_400_000.0},
        {},
        {"eval_pq": 10.0, "parameters": 9000.0},
    ]


def test_where_mlflow_is_a_server_it_is_opened() -> None:
    assert next_commands("r", "http://h:5000", Path("/s"))[0] == "open http://h:5000"


def test_where_mlflow_was_away_the_records_are_brought_first() -> None:
    assert next_commands(None, URI, Path("/s/my runs"))[1] == "python -m tune.tracking sync '/s/my runs'"


def test_where_the_time_went_is_shown(board: Board, tmp_path: Path) -> None:
    lines = [line.split() for line in printed(board, tmp_path).splitlines()]
    assert ["Where", "the", "time", "went,", "of", "2", "trials", "at", "a", "time"] in lines
    assert ["training", "6:30", "65%"] in lines
    assert ["startup", "1:30", "15%"] in lines
    assert ["overhead", "per", "trial", "50.0", "s"] in lines


def test_a_trial_that_waits_is_shown_with_its_reason(board: Board, tmp_path: Path) -> None:
    board.finish(0, Status.WAITING, AT, "SIGTERM")
    assert "trial 0 waiting: SIGTERM" in printed(board, tmp_path)


def test_that_nothing_is_left_to_try_is_said_once_all_trials_have_ended(board: Board, tmp_path: Path) -> None:
    board.exhausts = True
    line = "Every setting of the space has been tried."
    assert line in printed(board, tmp_path)
    board.finish(2, Status.WAITING, AT, "SIGTERM")
    assert line not in printed(board, tmp_path)
