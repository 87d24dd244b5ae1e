"""The comparison of a recorded search: its figures against naive ones, and its page in a real browser."""

import itertools
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from psalm.train.records import RunRecords
from tune.board import Status
from tune.compare import main
from tune.comparison import best_so_far, find_searches, pareto_front, read_search
from tune.config import load_config
from tune.options import DEFAULT_CONFIG
from tune.tracking import Tracker

BASELINE = {"mm_hidden_dim": 64, "mm_n_heads": 8, "mm_n_points": 4, "learning_rate": 1e-3, "swin_type": "base"}
TRIALS: list[tuple[dict[str, Any], str, list[float]]] = [
    (BASELINE, "completed", [50.0, 70.0, 75.0]),
    (BASELINE | {"learning_rate": 5e-3}, "pruned", [20.0]),
    (BASELINE | {"mm_n_heads": 4}, "completed", [55.0, 72.0, 78.0]),
    (BASELINE | {"mm_hidden_dim": 128}, "failed", []),
    (BASELINE | {"learning_rate": 2e-3}, "completed", [54.0, 70.0, 76.0]),
    (BASELINE | {"learning_rate": 3e-4, "swin_type": "large"}, "pruned", [30.0]),
    (BASELINE | {"mm_n_points": 2}, "completed", [56.0, 73.0, 79.0]),
]
SECONDS = {"completed": 300.0, "pruned": 100.0, "failed": 50.0}
REASON = "out of memory <b>on</b> rank 1"
TIMES = ("wall", "trials", "startup", "training", "evaluation", "checkpointing", "waiting", "overhead_per_trial")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a search of one worker and one CPU per trial, whose trials ran one after another."""
    root = tmp_path_factory.mktemp("compare")
    config = replace(load_config(DEFAULT_CONFIG), name="shapes")
    tracker = Tracker(f"sqlite:///{root / 'mlflow.db'}", root / "shapes", "shapes")
    tracker.start_search(config.as_record())
    told = []
    for number, (params, status, values) in enumerate(TRIALS):
        folder = root / "shapes" / "trials" / f"{number:04d}"
        run_id = tracker.start_trial(number, folder, params)
        with RunRecords(folder) as records:
            records.event("started")
            for index, value in enumerate(values):
                records.metrics(50 * (index + 1), {"eval_pq": value, "system/step_seconds": 0.1 + 0.01 * number})
        reason = REASON if status == "failed" else None
        tracker.finish_trial(
            number, "FAILED" if status == "failed" else "FINISHED", reason, early_stopped=status == "pruned"
        )
        told.append(
            {
                "run_id": run_id,
                "params": params,
                "steps": 50 * len(values),
                "seconds": SECONDS[status],
                "number": number,
            }
        )
    seconds = dict.fromkeys(TIMES, 100.0) | {"wall": 1000.0, "concurrency": 1}
    tracker.finish_search("FINISHED", {"trials": told, "seconds": seconds})
    return f"sqlite:///{root / 'mlflow.db'}"


def test_what_was_recorded_is_read_and_the_best_so_far_is_paid_for_by_all(uri: str) -> None:
    client = MlflowClient(uri)
    search = read_search(client, uri, find_searches(client, ["shapes"])[0])
    assert [(trial.row.params, str(trial.row.status)) for trial in search.proposed] == [each[:2] for each in TRIALS]
    assert [list(trial.row.values.values()) for trial in search.proposed] == [each[2] for each in TRIALS]
    assert [trial.number for trial in search.ranking] == [6, 2, 4, 0, 5, 1, 3]
    assert (search.best, search.baseline) == (search.trials[6], search.trials[0])
    assert search.trials[3].row.reason == REASON
    spent = list(itertools.accumulate(SECONDS[status] / 3600 for _, status, _ in TRIALS))
    expected = [(spent[0], 75.0, 0), (spent[2], 78.0, 2), (spent[4], 78.0, 4), (spent[6], 79.0, 6)]
    found = [(hours, best, trial.number) for hours, best, trial in best_so_far(search)]
    assert [each[1:] for each in found] == [each[1:] for each in expected]
    assert [each[0] for each in found] == pytest.approx([each[0] for each in expected])
    assert search.device_hours(search.proposed) == pytest.approx(spent[-1])
    assert Status.PRUNED in {trial.row.status for trial in search.proposed}


def test_a_front_is_what_nothing_beats() -> None:
    points = [(float(cost * 7 % 5), float(cost * 11 % 6)) for cost in range(20)]
    naive = {point for point in points if not any(o != point and o[0] <= point[0] and o[1] >= point[1] for o in points)}
    front = [points[index] for index in pareto_front(points, ("min", "max"))]
    assert front == sorted(naive)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_is_whole_in_a_browser_without_a_network(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert main(["shapes", "--tracking-uri", uri, "--output", str(page)]) == 0
    assert "79" in capsys.readouterr().out
    pictures = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert not re.search(r"""(src|href)=["']?https?:""", page.read_text(encoding="utf-8"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    browser = subprocess.run(
        ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in browser.stderr, browser.stderr
    assert browser.stdout.count("<svg") == len(pictures) >= 7, pictures
    assert "out of memory &lt;b&gt;on" in browser.stdout, "reasons are text"


def test_an_unknown_name_is_refused_with_what_there_is(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shape", "--tracking-uri", uri]) == 2
    assert capsys.readouterr().err.count("\n") == 1
