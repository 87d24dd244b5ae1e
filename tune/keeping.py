"""What stays on disk of a search's trials: checkpoints that a trial can still need, and the best trials' models."""

import shutil
from pathlib import Path

from psalm.train.checkpoint_files import FINAL_MODEL, drop_checkpoints
from tune.board import Board, Status
from tune.trial import TrialPlan


def tidy(board: Board, plan: TrialPlan, keep_best: int) -> None:
    """Removes the checkpoints of trials that have ended, and the final models of all but the best."""
    best = [row.number for row in board.ranking() if row.status == Status.COMPLETED][:keep_best]
    for row in board.trials.values():
        if row.status in (Status.COMPLETED, Status.PRUNED, Status.FAILED):
            folder = plan.trial_folder(row.number)
            drop_checkpoints(folder)
            if row.number not in best:
                _remove(folder / FINAL_MODEL)


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
