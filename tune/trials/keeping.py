"""What stays on disk of a search's trials: checkpoints that a trial can still need, and the best trials' models."""

from psalm.train.checkpoint_files import FINAL_MODEL, drop_checkpoint, drop_checkpoints
from tune.study.board import Board, Status
from tune.trials.trial import TrialPlan


class Keeper:
    """Removes what is not needed any more, as trials end.

    Args:
        plan: of the trials.
        keep_best: how many trials' final models are kept, best first; unless it is 0, also those on the front of
            several objectives.
    """

    def __init__(self, plan: TrialPlan, keep_best: int) -> None:
        self.plan = plan
        self.keep_best = keep_best
        self._kept: dict[int, bool] = {}  # of the trials that have been looked at: whether their models are kept

    def tidy(self, board: Board) -> None:
        """Removes the checkpoints of trials that have ended, and the final models that are not kept.

        Raises:
            OSError: the storage does not answer; it can be tried again.
        """
        best = [row.number for row in board.ranking() if row.status == Status.COMPLETED][: self.keep_best]
        if self.keep_best:
            best += [row.number for row in board.front]
        for row in board.of(Status.COMPLETED, Status.PRUNED, Status.FAILED):
            kept = row.number in best
            if self._kept.get(row.number) != kept:
                self._drop(row.number, kept)
                self._kept[row.number] = kept

    def _drop(self, number: int, kept: bool) -> None:
        folder = self.plan.trial_folder(number)
        if self.plan.storage is not None:
            self.plan.storage.drop(number, model=not kept)
        drop_checkpoints(folder)
        if not kept and (folder / FINAL_MODEL).is_dir():
            drop_checkpoint(folder / FINAL_MODEL)
