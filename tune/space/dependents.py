"""Arguments that follow a searched one, as a vision tower's weights follow its size: a value for each of its values."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from psalm.train.fields import nearest
from tune.errors import SearchError
from tune.space.parameters import CheckValue, Choice, Parameter, Value

Table = Mapping[Value, Any]
"""A follower's value for each value of its leader."""


@dataclass(frozen=True)
class Dependents:
    """The followers of each leader (the searched argument): ``{leader: {follower: {leader's value: follower's}}}``.

    Use ``build``, which checks them.
    """

    tables: Mapping[str, Mapping[str, Table]] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        content: Mapping[Any, Any],
        parameters: Mapping[str, Parameter],
        arguments: Mapping[str, Any],
        check_value: CheckValue,
        conditional: Collection[str] = (),
    ) -> "Dependents":
        """What ``dependent:`` of a search's file holds.

        Args:
            content: the section.
            parameters: the searched arguments, of which the leaders must be choices.
            arguments: those that are fixed for all trials.
            check_value: what an argument takes a value as.
            conditional: the searched arguments that are not in every trial; where such a leader is not, its followers
                have their values in ``arguments``.

        Raises:
            SearchError: a leader is no choice, a value of it has no entry or an entry no value of it, or a follower
                gets its value elsewhere too.
            psalm.train.arguments.SettingError: a follower is no argument, or a value is not allowed for it.
        """
        tables: dict[str, dict[str, Table]] = {}
        for leader, followers in content.items():
            choice = _choice(str(leader), parameters)
            if not isinstance(followers, Mapping) or not followers:
                raise SearchError(f"dependent: {leader} = {followers!r} must hold arguments with their values")
            tables[str(leader)] = table_of = {}
            for name, entries in followers.items():
                places = {"space": parameters, "arguments": {} if leader in conditional else arguments, **tables}
                taken = next((place for place, names in places.items() if name in names), None)
                if taken is not None:
                    raise SearchError(f"dependent: {name} follows {leader}, but it has values in {taken} too; drop one")
                table_of[str(name)] = _table(str(leader), choice, str(name), entries, check_value)
        return cls(tables)

    @property
    def leaders(self) -> dict[str, str]:
        """Follower -> its leader."""
        return {name: leader for leader, followers in self.tables.items() for name in followers}

    def of(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        """The followers' values beside the leaders' in ``setting``; without those followers that it names itself.

        Raises:
            SearchError: a leader has a value that is not searched.
        """
        values = {}
        for name, leader in self.leaders.items():
            if leader not in setting or name in setting:
                continue
            table, value = self.tables[leader][name], setting[leader]
            if value not in table:
                raise SearchError(
                    f"dependent: {name} has no value for {leader} = {value}, only for {_listed(table)}; "
                    f"add it to the file, or --set {name} too"
                )
            values[name] = table[value]
        return values

    def complete(self, fixed: Mapping[str, Any], setting: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of a trial: those ``fixed`` for all, its setting of the searched ones, what follows that."""
        return {**fixed, **setting, **self.of(setting)}

    def without(self, names: Iterable[str]) -> "Dependents":
        """Those that are left where arguments, leaders or followers, are fixed for all trials."""
        fixed = set(names)
        left = {
            leader: {name: table for name, table in followers.items() if name not in fixed}
            for leader, followers in self.tables.items()
            if leader not in fixed
        }
        return Dependents({leader: followers for leader, followers in left.items() if followers})

    def describe(self) -> dict[str, str]:
        """Every follower with its values, in words."""
        return {
            name: "; ".join(f"{each} for {leader} = {value}" for value, each in self.tables[leader][name].items())
            for name, leader in self.leaders.items()
        }

    def as_record(self) -> dict[str, Any]:
        """The section as JSON holds it, with checked values."""
        return {
            leader: {name: {str(value): each for value, each in table.items()} for name, table in followers.items()}
            for leader, followers in self.tables.items()
        }


def _choice(leader: str, parameters: Mapping[str, Parameter]) -> Choice:
    if leader not in parameters:
        raise SearchError(
            f"dependent: {leader} is not searched, so nothing can follow it; searched are "
            f"{_listed(parameters)}{nearest(leader, parameters)}"
        )
    parameter = parameters[leader]
    if not isinstance(parameter, Choice):
        raise SearchError(f"dependent: {leader} must be a choice to be followed, but is {parameter}; use choice")
    return parameter


def _table(leader: str, choice: Choice, name: str, entries: Any, check_value: CheckValue) -> Table:
    if not isinstance(entries, Mapping):
        raise SearchError(
            f"dependent: {leader}: {name} = {entries!r} must hold a value for each {leader}: {_listed(choice.values)}"
        )
    table: dict[Value, Any] = {}
    for key, value in entries.items():
        known = check_value(leader, key)
        if known not in choice:
            raise SearchError(
                f"dependent: {name} has a value for {leader} = {known}, which is not searched; "
                f"searched are {_listed(choice.values)}; drop it"
            )
        if known in table:
            raise SearchError(f"dependent: {name} has two values for {leader} = {known}; drop one")
        table[known] = check_value(name, value)
    missing = [value for value in choice.values if value not in table]
    if missing:
        raise SearchError(f"dependent: {name} has no value for {leader} = {_listed(missing)}; add it")
    return table


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
