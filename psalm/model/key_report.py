"""What became of each name when weights were loaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KeyReport:
    """What became of each name when weights were loaded.

    Attributes:
        source: the file.
        loaded: the model's names that were filled from it.
        unused: the file's names that the model has no place for.
        initial: names of the parts it was loaded into that the file lacks; they keep their initial values.
        computed: the file's names whose values follow from the architecture; the model computes them itself.
    """

    source: Path
    loaded: tuple[str, ...]
    unused: tuple[str, ...]
    initial: tuple[str, ...]
    computed: tuple[str, ...]

    def __str__(self) -> str:
        def named(names: tuple[str, ...]) -> str:
            return f"{len(names)} ({', '.join(folded(names))})" if names else "0"

        return (
            f"{self.source}: {len(self.loaded)} loaded, {named(self.unused)} unused, "
            f"{named(self.initial)} left at initial values, {len(self.computed)} computed instead"
        )


def folded(names: Iterable[str]) -> list[str]:
    """Dotted names in a shell's braces, so that what they share is written once: ``a.{x,y}.bias``.

    Expanding the braces gives every name back.
    """
    rests: dict[str, list[str]] = {}
    for name in names:
        head, _, rest = name.partition(".")
        rests.setdefault(head, []).append(rest)
    heads: dict[tuple[str, ...], list[str]] = {}
    for head, below in rests.items():
        heads.setdefault(tuple(folded(below)) if any(below) else (), []).append(head)
    return [".".join(filter(None, (_braced(alike), _braced(below)))) for below, alike in heads.items()]


def _braced(names: Iterable[str]) -> str:
    first, *others = [*names] or [""]
    return f"{{{','.join((first, *others))}}}" if others else first
