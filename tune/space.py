"""A search space: which training arguments vary, and over what.

Every value is a training argument's value, checked before anything runs. Combinations that the model refuses are never
proposed, by construction: where one searched value restricts another, the second is drawn from the list that is valid
for the first. The sampler sees one parameter per such list, because a study keeps one list of choices per name.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from tune.dependents import Dependents
from tune.errors import SearchError
from tune.parameters import Choice, Parameter, Real, Suggester, Value


@dataclass(frozen=True)
class Rule:
    """What values of some arguments must satisfy together; those that restrict the others come first."""

    names: tuple[str, ...]
    holds: Callable[..., bool]
    text: str


def _divisible(*sizes: int | None) -> bool:
    """Whether widths are multiples of the head count, which is last; None is the vision tower's own, not known here."""
    *widths, heads = sizes
    return heads is None or all(width is None or width % heads == 0 for width in widths)


RULES = (
    Rule(("mm_hidden_dim", "mm_n_heads"), _divisible, "mm_hidden_dim must be divisible by mm_n_heads"),
    Rule(("conv_dim", "hidden_dim", "num_heads"), _divisible, "conv_dim and hidden_dim must be divisible by num_heads"),
)
"""The model's rules."""


@dataclass(frozen=True)
class Linked:
    """Searched arguments that restrict each other: all valid combinations of values, in the order of ``names``."""

    names: tuple[str, ...]
    valid: tuple[tuple[Value, ...], ...]

    def values(self, chosen: Mapping[str, Value]) -> tuple[Value, ...]:
        """What the next argument may be, given those chosen before it."""
        before = tuple(chosen[name] for name in self.names if name in chosen)
        return tuple(dict.fromkeys(row[len(before)] for row in self.valid if row[: len(before)] == before))

    def lists(self, name: str) -> dict[tuple[Value, ...], list[tuple[Value, ...]]]:
        """The lists from which an argument is drawn, each with the values before it that lead there."""
        place = self.names.index(name)
        found: dict[tuple[Value, ...], list[tuple[Value, ...]]] = {}
        for before in dict.fromkeys(row[:place] for row in self.valid):
            values = self.values(dict(zip(self.names, before, strict=False)))
            found.setdefault(values, []).append(before)
        return found

    def study_name(self, name: str, values: tuple[Value, ...]) -> str:
        """What the study calls an argument drawn from a list: one name per list."""
        return name if len(self.lists(name)) == 1 else f"{name}[{','.join(map(str, values))}]"


class SearchSpace:
    """The searched arguments: free ones, and groups of linked ones.

    Use ``build``, which finds the groups.
    """

    def __init__(self, free: Mapping[str, Parameter], linked: Iterable[Linked]) -> None:
        self.free = dict(free)
        self.linked = tuple(linked)

    @classmethod
    def build(
        cls, parameters: Mapping[str, Parameter], fixed: Mapping[str, Any], dependents: Dependents
    ) -> "SearchSpace":
        """Apply the rules between arguments; ``fixed`` holds the values of those that are the same in all trials.

        Raises:
            SearchError: no valid combination is left.
        """
        free, linked = dict(parameters), []
        for names, rules in _deciding(parameters, dependents):
            combinations = list(product(*(_discrete(name, parameters[name]) for name in names)))
            valid = combinations
            for rule in rules:
                valid = _valid(rule, names, valid, fixed, dependents)
            if len(valid) == len(combinations):
                continue
            if len(names) == 1:
                free[names[0]] = Choice(tuple(value for (value,) in valid))
            else:
                linked.append(Linked(names, tuple(valid)))
                for name in names:
                    del free[name]
        return cls(free, linked)

    @property
    def names(self) -> tuple[str, ...]:
        """The searched arguments."""
        return (*(name for group in self.linked for name in group.names), *self.free)

    @property
    def conditional(self) -> bool:
        """Whether the set of the study's parameters differs between trials."""
        return any(len(group.lists(name)) > 1 for group in self.linked for name in group.names)

    def suggest(self, trial: Suggester) -> dict[str, Value]:
        """A valid setting of the searched arguments, drawn from the trial."""
        setting: dict[str, Value] = {}
        for group in self.linked:
            chosen: dict[str, Value] = {}
            for name in group.names:
                values = group.values(chosen)
                chosen[name] = trial.suggest_categorical(group.study_name(name, values), values)
            setting |= chosen
        return setting | {name: parameter.suggest(trial, name) for name, parameter in self.free.items()}

    def study_params(self, setting: Mapping[str, Value]) -> dict[str, Value]:
        """A setting under the names by which the study knows its parameters."""
        params = {name: setting[name] for name in self.free}
        for group in self.linked:
            chosen: dict[str, Value] = {}
            for name in group.names:
                params[group.study_name(name, group.values(chosen))] = chosen[name] = setting[name]
        return params

    def refusal(self, setting: Mapping[str, Value]) -> str | None:
        """Why a setting (of all searched arguments) is outside the space; None if it is inside."""
        for name, parameter in self.free.items():
            if setting[name] not in parameter:
                return f"{name} = {setting[name]} is not in the space ({parameter})"
        for group in self.linked:
            if tuple(setting[name] for name in group.names) not in group.valid:
                given = " with ".join(f"{name} = {setting[name]}" for name in group.names)
                return f"{given} is not in the space"
        return None

    def examples(self) -> Iterable[dict[str, Value]]:
        """Settings in which every listed value, and both ends of every range, occur at least once."""
        first: dict[str, Value] = {name: parameter.examples()[0] for name, parameter in self.free.items()}
        for group in self.linked:
            first |= dict(zip(group.names, group.valid[0], strict=True))
        yield first
        for name, parameter in self.free.items():
            yield from (first | {name: value} for value in parameter.examples() if value != first[name])
        for group in self.linked:
            yield from (first | dict(zip(group.names, row, strict=True)) for row in group.valid[1:])

    def describe(self) -> dict[str, str]:
        """Every searched argument with its values, in words."""
        described = {name: str(parameter) for name, parameter in self.free.items()}
        for group in self.linked:
            for name in group.names:
                lists = group.lists(name)
                before = ", ".join(group.names[: group.names.index(name)])
                described[name] = "; ".join(
                    str(Choice(values)) + (f" for {before} = {_shown(leading)}" if len(lists) > 1 else "")
                    for values, leading in lists.items()
                )
        return {name: described[name] for name in self.names}


def _shown(rows: Iterable[tuple[Value, ...]]) -> str:
    return ", ".join("/".join(map(str, row)) for row in rows)


def _deciding(
    parameters: Mapping[str, Parameter], dependents: Dependents
) -> list[tuple[tuple[str, ...], tuple[Rule, ...]]]:
    """The searched arguments that decide whether a rule holds, with it; rules that share one are taken together."""
    leaders = dependents.leaders
    groups: list[tuple[tuple[str, ...], tuple[Rule, ...]]] = []
    for rule in RULES:
        deciding = dict.fromkeys(leaders.get(name, name) for name in rule.names)
        names = tuple(name for name in deciding if name in parameters)
        rules: tuple[Rule, ...] = (rule,)
        for group in [group for group in groups if set(group[0]) & set(names)]:
            groups.remove(group)
            names, rules = tuple(dict.fromkeys((*group[0], *names))), (*group[1], *rules)
        groups.append((names, rules))
    return [group for group in groups if group[0]]


def _discrete(name: str, parameter: Parameter) -> Iterable[Value]:
    if isinstance(parameter, Real):
        raise SearchError(f"space: {name} takes whole numbers; use int or choice")
    return parameter.values


def _valid(
    rule: Rule,
    names: tuple[str, ...],
    rows: list[tuple[Value, ...]],
    fixed: Mapping[str, Any],
    dependents: Dependents,
) -> list[tuple[Value, ...]]:
    """The rows, values of ``names``, with which a rule holds."""
    given = []
    for row in rows:
        complete = dependents.complete(fixed, dict(zip(names, row, strict=True)))
        given.append([complete[name] for name in rule.names])
    found = [row for row, values in zip(rows, given, strict=True) if rule.holds(*values)]
    if not found:
        columns = (", ".join(map(str, dict.fromkeys(column))) for column in zip(*given, strict=True))
        listed = "; ".join(f"{name}: {column}" for name, column in zip(rule.names, columns, strict=True))
        raise SearchError(f"no combination is valid of {listed}; {rule.text}")
    return found
