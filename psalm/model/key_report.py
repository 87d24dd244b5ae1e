"""What became of each name when weights were loaded."""

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
            return f"{len(names)} ({', '.join(names)})" if names else "0"

        return (
            f"{self.source}: {len(self.loaded)} loaded, {named(self.unused)} unused, "
            f"{named(self.initial)} left at initial values, {len(self.computed)} computed instead"
        )
