"""A search's answer: the ranking, the best setting, ``search.json``, and what to do next."""

import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from psalm.train.learning_rates import LEARNING_RATE_CHANGES
from tune.progress import clock, number, trial_table
from tune.study.board import UNFINISHED, Board, Status, TrialRow
from tune.study.confirmation import LEVEL, TEST, differences_of, samples_of
from tune.study.ranks import early_to_final

SUMMARY_FILE = "search.json"
TIMES = ("training", "evaluation", "checkpointing", "startup", "waiting")
"""What the time of a search went into."""


def summary(
    board: Board, search_run_id: str | None, run_id: Callable[[int], str | None], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """The content of ``search.json``; ``best`` is None if no trial completed. ``seconds``: see ``tune.costs``."""
    best = board.best
    return {
        "search_run_id": search_run_id,
        "trials": [_trial(board, row, run_id(row.number)) for row in board.proposed],
        "confirmations": [
            {"confirms": row.confirms, "seed": row.seed, **_trial(board, row, run_id(row.number))}
            for row in board.confirmations
        ],
        "confirmation": _confirmation(board),
        "rank_correlation": {str(step): value for step, (value, _) in early_to_final(board).items()},
        "best": best
        and {"run_id": best.answered_by or run_id(best.number), **_settings(board, best), "value": best.last},
        "seconds": dict(seconds),
        **_front(board),
    }


def _front(board: Board) -> dict[str, Any]:
    """The several objectives of a search that has them, and the numbers of the trials on their front."""
    if not board.objectives:
        return {}
    return {
        "objectives": [{each.name: each.mode} for each in board.objectives],
        "pareto_front": [row.number for row in board.front],
    }


def _settings(board: Board, row: TrialRow) -> dict[str, Any]:
    settings: dict[str, Any] = {"params": dict(row.params), "dependent": board.dependents.of(row.params)}
    return settings | ({LEARNING_RATE_CHANGES: dict(row.learning_rate_changes)} if row.learning_rate_changes else {})


def _trial(board: Board, row: TrialRow, run_id: str | None) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "number": row.number,
        "status": str(row.status),
        **_settings(board, row),
        **({} if row.fork is None else {"forks": dataclasses.asdict(row.fork)}),
        "last": row.last,
        "best": row.best,
        "steps": row.step,
        "seconds": round(row.seconds, 2),
        "reason": row.reason,
        "attempts": row.attempts,
        "changes": dict(row.changes),
        **({"objectives": dict(row.objectives)} if board.objectives else {}),
    }


def _confirmation(board: Board) -> list[dict[str, Any]]:
    """Every setting that was run again, best first: its values, and how it differs from the baseline."""
    samples, differences = samples_of(board), differences_of(board)
    return [
        {
            "number": number,
            "values": list(sample.values),
            "mean": sample.mean,
            "deviation": sample.deviation,
            "difference": None if number not in differences else dataclasses.asdict(differences[number]),
        }
        for number, sample in samples.items()
    ]


def write_summary(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``search.json``, whole or not at all."""
    draft = folder / f".{SUMMARY_FILE}"
    draft.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(draft, folder / SUMMARY_FILE)


def print_results(board: Board, folder: Path, tracking_uri: str, console: Console) -> None:
    """The ranking, the best setting and the next commands; or why there is none."""
    content = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    if board.trials:
        console.print(f"\nTrials of {board.name}, best first", style="bold", markup=False)
        console.print(trial_table(board, board.ranking(), console.width))
    for row in board.of(Status.FAILED, Status.WAITING):
        console.print(f"trial {row.number} {row.status}: {row.reason}", style="red", markup=False, soft_wrap=True)
    if board.front:
        console.print(f"\nPareto front of {', '.join(map(str, board.objectives))}", style="bold", markup=False)
        console.print(front_table(board))
    if content["seconds"]["trials"]:
        console.print(f"\nWhere the time went, of {content['seconds']['concurrency']} trials at a time", style="bold")
        console.print(time_table(content["seconds"]))
    if board.confirmations:
        print_confirmation(board, console)
    if correlations := early_to_final(board):
        listed = ", ".join(f"{value:.2f} at step {step} ({runs} runs)" for step, (value, runs) in correlations.items())
        console.print(f"Rank correlation of early values with final ones: {listed}", markup=False, soft_wrap=True)
    unfinished = len(board.of(*UNFINISHED)) + board.to_propose
    if unfinished:
        console.print(f"{unfinished} of {board.num_samples} trials are not finished; to go on:", markup=False)
        console.print(f"  {resume_command(folder)}", markup=False, soft_wrap=True, highlight=False)
    elif len(board.proposed) < board.num_samples:
        console.print(f"After {len(board.proposed)} of {board.num_samples} trials none ran that could be forked.")
    elif board.exhausts:
        console.print("Every setting of the space has been tried.")
    best = content["best"]
    if best is None:
        console.print(f"No trial completed; results are in {folder}", style="red", markup=False, soft_wrap=True)
        return
    console.print(
        f"Best {board.metric} {number(best['value'])}{_against_baseline(board)} with", style="bold", markup=False
    )
    changes = {LEARNING_RATE_CHANGES: best[LEARNING_RATE_CHANGES]} if LEARNING_RATE_CHANGES in best else {}
    for name, value in (best["params"] | changes | best["dependent"]).items():
        console.print(f"  {name}: {number(value)}", markup=False)
    console.print(f"Results are in {folder}\nNext:", markup=False, soft_wrap=True)
    for command in next_commands(best["run_id"], tracking_uri, folder):
        console.print(f"  {command}", markup=False, soft_wrap=True, highlight=False)


def front_table(board: Board) -> Table:
    """The trials on the front of several objectives, best first in the first of them; then the baseline, if it is not.

    Only completed trials have the values of all objectives.
    """
    front = board.front
    baseline = None if board.baseline is None else board.trials.get(board.baseline)
    rows = front if baseline is None or baseline in front or not baseline.objectives else [*front, baseline]
    names = dict.fromkeys(name for row in rows for name in row.params)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("trial", *(each.name for each in board.objectives), *names, ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in rows:
        if row not in front:
            table.add_section()
        words = "" if row is not baseline else "the baseline" if row in front else "the baseline, not on the front"
        values = (f"{value:,.0f}" if value >= 1e4 else number(value) for value in row.objectives.values())
        settings = (number(row.params[name]) if name in row.params else "" for name in names)
        table.add_row(str(row.number), *values, *settings, words)
    return table


def _against_baseline(board: Board) -> str:
    """By how much the best trial is better than the baseline, in words; empty where they are one or there is none."""
    best, baseline = board.best, None if board.baseline is None else board.trials.get(board.baseline)
    if best is None or baseline is None or best.number == baseline.number:
        return ""
    if best.last is None or baseline.last is None or baseline.status != Status.COMPLETED:
        return ""
    return f" (baseline {number(baseline.last)}, {best.last - baseline.last:+.4g})"


def print_confirmation(board: Board, console: Console) -> None:
    """The settings that were run again, best first, and whether they differ from the baseline by more than chance."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("trial", "seeds", "mean", "deviation", "less baseline", "95 %", "p", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    differences = differences_of(board)
    for trial, sample in samples_of(board).items():
        row = [str(trial), str(len(sample.values)), number(sample.mean), number(sample.deviation)]
        if trial == board.baseline:
            table.add_row(*row, "", "", "", "the baseline")
        elif trial in differences:
            found = differences[trial]
            ends = "-" if found.low is None or found.high is None else f"{found.low:+.3g} to {found.high:+.3g}"
            p = "-" if found.p is None else f"{found.p:.2g}"
            table.add_row(*row, f"{found.value:+.4g}", ends, p, found.words)
        else:
            table.add_row(*row)
    console.print("\nRun again with new seeds, best first", style="bold")
    console.print(table)
    if differences:
        console.print(f"{TEST}; different: p < {LEVEL:g}", markup=False, highlight=False)


def time_table(seconds: Mapping[str, float]) -> Table:
    """What the time of a search went into, as its share of all that its trials could have used."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("", "time", "share"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    usable = seconds["wall"] * seconds["concurrency"]
    for kind in TIMES:
        table.add_row(kind, clock(seconds[kind]), f"{seconds[kind] / usable:.0%}")
    table.add_section()
    table.add_row("overhead per trial", f"{seconds['overhead_per_trial']:.1f} s", "")
    return table


def next_commands(run_id: str | None, tracking_uri: str, folder: Path) -> list[str]:
    """How to compare the trials in MLflow, and how to reproduce the best run."""
    if tracking_uri.startswith(("http://", "https://")):
        look = f"open {tracking_uri}"
    else:
        look = f"mlflow ui --backend-store-uri {shlex.quote(tracking_uri)}"
    if run_id is None:
        return [look, f"python -m tune.tracking sync {shlex.quote(str(folder))}"]
    return [look, f"python {_script('reproduce.py')} {run_id} --tracking-uri {shlex.quote(tracking_uri)}"]


def resume_command(folder: Path) -> str:
    """How to go on with a search."""
    return f"python {_script('search.py')} --resume {shlex.quote(str(folder))}"


def _script(name: str) -> str:
    script = str(Path(__file__).with_name(name))
    if Path(script).is_relative_to(Path.cwd()):
        script = os.path.relpath(script)
    return shlex.quote(script)
