"""Searched arguments that depend on each other: all their valid combinations, and how one of them is drawn."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from itertools import product
from typing import TypeGuard

from tune.space.parameters import Choice, Parameter, Real, Value


class Mark(Enum):
    """What stands in a combination where there is no one value."""

    ABSENT = "absent"
    """The argument is not searched there."""
    ANY = "any"
    """Whatever its parameter has: no other argument depends on it."""


Entry = Value | Mark
Row = tuple[Entry, ...]
Setting = dict[str, Value]


@dataclass(frozen=True)
class Linked:
    """Some arguments with all valid combinations (``rows``, in the order of the parameters).

    What decides whether an argument is searched stands before it: so it is absent in all rows with the same entries
    before it, or in none. A study keeps one list of choices per name: an argument that is drawn from several lists,
    by what was drawn before, has a name for each.
    """

    parameters: Mapping[str, Parameter]
    rows: tuple[Row, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments."""
        return tuple(self.parameters)

    @cached_property
    def following(self) -> dict[Row, tuple[Entry, ...]]:
        """What may come next, for all entries before it that are possible."""
        found: dict[Row, dict[Entry, None]] = {}
        for row in self.rows:
            for place, entry in enumerate(row):
                found.setdefault(row[:place], {})[entry] = None
        return {before: tuple(entries) for before, entries in found.items()}

    @cached_property
    def lists(self) -> dict[str, tuple[tuple[Entry, ...], ...]]:
        """The lists from which each argument is drawn, where it is searched."""
        found: dict[str, dict[tuple[Entry, ...], None]] = {name: {} for name in self.names}
        for before, entries in self.following.items():
            if entries != (Mark.ABSENT,):
                found[self.names[len(before)]][entries] = None
        return {name: tuple(lists) for name, lists in found.items()}

    @property
    def conditional(self) -> bool:
        """Whether the set of the study's parameters differs between trials."""
        return any(len(lists) > 1 for lists in self.lists.values()) or any(Mark.ABSENT in row for row in self.rows)

    def draw(self, draw: Callable[[str, str, Parameter], Value]) -> Setting:
        """A valid setting.

        Args:
            draw: is given an argument, what the study calls it, and what it may be drawn from; one after another.
        """
        setting: Setting = {}
        before: Row = ()
        for name in self.names:
            entries = self.following[before]
            if entries != (Mark.ABSENT,):
                setting[name] = draw(name, self._study_name(name, entries), self._parameter(name, entries))
            before = _after(before, entries, setting, name)
        return setting

    def applicable(self, values: Mapping[str, Value]) -> Setting:
        """Of values of all the arguments, those of the arguments that are searched with them.

        What comes after a value that cannot be is taken too.
        """
        setting: Setting = {}
        before: Row | None = ()
        for name in self.names:
            entries = () if before is None else self.following[before]
            if entries != (Mark.ABSENT,):
                setting[name] = values[name]
            fits = isinstance(next(iter(entries), None), Mark) or values[name] in entries
            before = _after(before, entries, values, name) if before is not None and fits else None
        return setting

    def refusal(self, setting: Mapping[str, Value], conditions: Mapping[str, str], rules: Sequence[str]) -> str | None:
        """Why a setting is no valid combination; None if it is one.

        Args:
            setting: of some of the arguments, each with a value that its parameter has.
            conditions: under which the arguments are searched, in words.
            rules: that restrict combinations, in words.
        """
        before: Row = ()
        for place, name in enumerate(self.names, start=1):
            entries = self.following[before]
            if entries == (Mark.ABSENT,):
                if name in setting:
                    return f"{name} = {setting[name]}, but it is searched only when {conditions[name]}"
            elif name not in setting:
                return f"{name} is missing" + (
                    f"; it is searched when {conditions[name]}" if name in conditions else ""
                )
            elif entries != (Mark.ANY,) and setting[name] not in entries:
                *given, last = (f"{each} = {setting[each]}" for each in self.names[:place] if each in setting)
                return f"{', '.join(given)} with {last} is not in the space; required: {'; '.join(rules)}"
            before = _after(before, entries, setting, name)
        return None

    @cached_property
    def size(self) -> int:
        """How many combinations there are; a continuous parameter counts once."""
        counts = [1 if isinstance(each, Real) else len(each.values) for each in self.parameters.values()]
        marks = [[count for entry, count in zip(row, counts, strict=True) if entry is Mark.ANY] for row in self.rows]
        return sum(map(math.prod, marks))

    def combinations(self) -> Iterator[Setting]:
        """All of them; a continuous parameter must not be among the arguments."""
        for row in self.rows:
            yield from self._expanded(row, lambda parameter: () if isinstance(parameter, Real) else parameter.values)

    def examples(self) -> Iterator[Setting]:
        """Settings in which every value, and both ends of every range, occur at least once."""
        seen: set[tuple[str, Entry]] = set()
        for row in self.rows:
            new = [each for each in zip(self.names, row, strict=True) if each not in seen]
            if not new:
                continue
            first = next(self._expanded(row, lambda parameter: parameter.examples()[:1]))
            yield first
            for name in (name for name, entry in new if entry is Mark.ANY):
                yield from (first | {name: value} for value in self.parameters[name].examples()[1:])
            seen.update(new)

    def largest(self) -> Iterator[Setting]:
        """For every combination of what is no number: settings in which one number has its largest value, each once.

        The numbers besides that one are the largest that are valid with it, the first of them first.
        """
        patterns: dict[Row, list[Row]] = {}
        for row in self.rows:
            patterns.setdefault(tuple(Mark.ANY if _is_number(entry) else entry for entry in row), []).append(row)
        for rows in patterns.values():
            places = [place for place, entry in enumerate(rows[0]) if _is_number(entry)] or [0]
            for row in dict.fromkeys(max(rows, key=partial(_sizes, place)) for place in places):
                yield from self._expanded(row, _largest_of)

    def _expanded(self, row: Row, values: Callable[[Parameter], Iterable[Value]]) -> Iterator[Setting]:
        """The settings of a row, with some values of the parameters of which it leaves any."""
        present = {name: entry for name, entry in zip(self.names, row, strict=True) if entry is not Mark.ABSENT}
        lists = [values(self.parameters[n]) if isinstance(e, Mark) else (e,) for n, e in present.items()]
        yield from (dict(zip(present, combination, strict=True)) for combination in product(*lists))

    def _study_name(self, name: str, entries: tuple[Entry, ...]) -> str:
        return name if len(self.lists[name]) == 1 else f"{name}[{','.join(map(str, entries))}]"

    def _parameter(self, name: str, entries: tuple[Entry, ...]) -> Parameter:
        """What an argument is drawn from: its own parameter where all values are valid, so that a study knows order."""
        own = self.parameters[name]
        values = tuple(entry for entry in entries if not isinstance(entry, Mark))
        return own if isinstance(own, Real) or entries == (Mark.ANY,) or values == tuple(own.values) else Choice(values)


def _after(before: Row, entries: tuple[Entry, ...], setting: Mapping[str, Value], name: str) -> Row:
    """What stands before the next argument."""
    return (*before, entries[0] if isinstance(entries[0], Mark) else setting[name])


def _sizes(place: int, row: Row) -> list[float]:
    """The numbers of a row, the one at a place before all."""
    numbers = [float(entry) if _is_number(entry) else 0.0 for entry in row]
    return [numbers[place], *numbers]


def _is_number(entry: Entry) -> TypeGuard[int | float]:
    return isinstance(entry, int | float) and not isinstance(entry, bool)


def _largest_of(parameter: Parameter) -> Iterable[Value]:
    """The largest number, or every word, true and false."""
    examples = parameter.examples()
    return (max(examples),) if all(map(_is_number, examples)) else examples
