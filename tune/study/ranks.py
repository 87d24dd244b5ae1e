"""Do early values tell the final order? If they do not, stopping early is guessing."""

import math
from collections.abc import Sequence

from scipy import stats

from tune.study.board import Board, Status

FEWEST = 4
"""Runs of full length below which a correlation says nothing."""


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation, from -1 to 1; NaN where all values of a side are the same."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return math.nan
    return float(stats.spearmanr(one, other).statistic)


def early_to_final(board: Board) -> dict[int, tuple[float, int]]:
    """Step -> the rank correlation of the values there with the final ones, and of how many runs.

    Only runs of full length have both, so it is that of trials that looked good enough not to be stopped: among all of
    them it is rather higher. Forks, whose early values are another trial's, are left out. Steps at which fewer than
    ``FEWEST`` have values are left out.
    """
    whole = [row for row in board.trials.values() if row.status == Status.COMPLETED and row.fork is None]
    found = {}
    for step in sorted({step for row in whole for step in row.values if step < board.full_length}):
        pairs = [(row.values[step], row.values[row.evaluated]) for row in whole if step in row.values]
        if len(pairs) >= FEWEST:
            correlation = spearman(*zip(*pairs, strict=True))
            if not math.isnan(correlation):
                found[step] = (correlation, len(pairs))
    return found
