"""Several objectives of one search: what they are, and which trials nothing beats."""

from collections.abc import Sequence
from dataclasses import dataclass

COSTS = ("step_ms", "parameters", "peak_memory")
"""Objectives that are no metrics of the evaluation, the less the better; ``tune.costs.cost_objectives`` reads them."""


@dataclass(frozen=True)
class Objective:
    """A metric of the evaluation or one of ``COSTS``, and which way it is better: ``max`` or ``min``."""

    name: str
    mode: str

    def __str__(self) -> str:
        return f"{self.name} ({self.mode})"


def pareto_front(points: Sequence[Sequence[float]], modes: Sequence[str]) -> list[int]:
    """Indices of the points than which none is better in one measure and at least as good in all others.

    Args:
        points: each of as many measures.
        modes: ``max`` or ``min``, of each measure.

    Returns:
        Best first in the first measure; of equal points the first.
    """
    signs = [-1 if mode == "max" else 1 for mode in modes]
    costs = [tuple(sign * value for sign, value in zip(signs, point, strict=True)) for point in points]
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda index: costs[index]):  # nothing is beaten by what comes later
        if not any(_no_worse(costs[other], costs[index]) for other in front):
            front.append(index)
    return front


def _no_worse(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))
