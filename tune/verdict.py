"""Are two runs the same run? Every logged value, step by step, bit for bit; and what they were made with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

Points = Sequence[tuple[int, float]]
"""A metric's (step, value), in order of steps."""

MACHINE = "system/"
"""Metrics below this name describe the machine, not the run: they are never the same twice."""

_NAMED_FILES = 5
_COMPARED_TAGS = ("data_fingerprint", "weights_fingerprint", "version.", "device", "omp_num_threads")


@dataclass(frozen=True)
class Comparison:
    """One metric of two runs; ``difference`` says where they first differ, None if nowhere."""

    name: str
    points: int
    difference: str | None


def compare(
    recorded: Mapping[str, Points], repeated: Mapping[str, Points], stopped_at: int | None = None
) -> list[Comparison]:
    """Every metric of either run outside ``system/``: equal only if steps and all bits of all values are.

    Args:
        recorded: the first run's metrics by name.
        repeated: the second run's.
        stopped_at: where the first run was cut off from outside: of that step it may lack what was to come.
    """
    names = sorted(name for name in {*recorded, *repeated} if not name.startswith(MACHINE))
    return [_compare(name, recorded.get(name, ()), repeated.get(name, ()), stopped_at) for name in names]


def _compare(name: str, recorded: Points, repeated: Points, stopped_at: int | None) -> Comparison:
    if stopped_at is not None:
        known = {step for step, _ in recorded}
        repeated = [(step, value) for step, value in repeated if step < stopped_at or step in known]
    for step in sorted({step for step, _ in (*recorded, *repeated)}):
        first = [value for at, value in recorded if at == step]
        second = [value for at, value in repeated if at == step]
        if [value.hex() for value in first] != [value.hex() for value in second]:
            return Comparison(name, len(recorded), f"step {step}: recorded {_shown(first)}, now {_shown(second)}")
    return Comparison(name, len(recorded), None)


def _shown(values: Sequence[float]) -> str:
    return " and ".join(map(repr, values)) or "nothing"


def inconsistencies(shown: Mapping[str, float], history: Mapping[str, Points]) -> list[str]:
    """Where a store's overview of a run (its last values) contradicts the history that it is made of."""
    wrong = []
    for name, value in sorted(shown.items()):
        last = max((step for step, _ in history[name]), default=None)
        if value.hex() not in [point.hex() for step, point in history[name] if step == last]:
            wrong.append(f"{name}: the record shows {value!r} as its last value, but its history does not end with it")
    return wrong


def differences(
    recorded: Mapping[str, str], present: Mapping[str, str], sources: Mapping[str, str], files: Mapping[str, str]
) -> list[str]:
    """What a run was made with and what is here, where that is not the same; one line each.

    Args:
        recorded: the run's tags.
        present: the same tags, as a run would have them now.
        sources: the hash of every source file then.
        files: the same now.
    """
    lines = []
    if recorded.get("source_fingerprint") != present["source_fingerprint"]:
        changed = sorted(path for path in {*sources, *files} if sources.get(path) != files.get(path))
        more = f" and {len(changed) - _NAMED_FILES} more" if len(changed) > _NAMED_FILES else ""
        lines.append(f"sources differ: {', '.join(changed[:_NAMED_FILES])}{more}")
    for name in sorted({*recorded, *present}):
        then, now = recorded.get(name), present.get(name)
        if name.startswith(_COMPARED_TAGS) and then != now:
            lines.append(f"{name.replace('_', ' ')} differs: recorded {then or 'none'}, here {now or 'none'}")
    return lines


def as_table(comparisons: Sequence[Comparison]) -> Table:
    """One line per metric."""
    table = Table("metric", "points", "verdict", box=None, pad_edge=False)
    for row in comparisons:
        verdict = "[green]equal[/]" if row.difference is None else f"[red]differs[/] at {row.difference}"
        table.add_row(row.name, str(row.points), verdict)
    return table


def as_json(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """``{metric: "equal" | where it differs}``."""
    return {row.name: row.difference or "equal" for row in comparisons}
