"""Is what a run was made with still here, and does its record agree with itself?"""

from collections.abc import Mapping

from psalm.train.comparison import INPUTS, Points

_NAMED_FILES = 5
_COMPARED_TAGS = (*INPUTS, "version.", "omp_num_threads")


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

    The machine is not looked at: see ``psalm.train.comparison.other_arithmetic``.

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
