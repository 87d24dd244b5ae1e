"""Which combinations of searched arguments are valid: by the rules of the model and of training, and by a search's own.

They are found by trying all: arguments that restrict each other, or decide whether another one is searched, are taken
together, and only those.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psalm.train.arguments import argument_fields
from tune.errors import SearchError
from tune.space.dependents import Dependents
from tune.space.expressions import Expression
from tune.space.linked import Entry, Linked, Mark, Row
from tune.space.parameters import Choice, Parameter, Real

MOST_COMBINATIONS = 100_000
"""Of arguments that are taken together; to try so many takes seconds."""


@dataclass(frozen=True)
class Rule:
    """What must hold of a trial's arguments; those that restrict the others come first in it."""

    expression: Expression
    words: str

    @classmethod
    def of(cls, text: str, words: str) -> "Rule":
        """A rule that holds in every search."""
        return cls(Expression.parse("rule", text, argument_fields()), words)


RULES = (
    Rule.of("mm_hidden_dim % mm_n_heads == 0", "mm_hidden_dim must be divisible by mm_n_heads"),
    Rule.of(  # none is the vision tower's own, not known here
        "num_heads == none"
        " or (conv_dim == none or conv_dim % num_heads == 0) and (hidden_dim == none or hidden_dim % num_heads == 0)",
        "conv_dim and hidden_dim must be divisible by num_heads",
    ),
    Rule.of("not (fp16 and bf16)", "fp16 and bf16 must not both be true"),
    Rule.of(
        "not tune_mm_mlp_adapter or not (train_backbone or freeze_mm_mlp_adapter)",
        "tune_mm_mlp_adapter trains nothing but the projectors: train_backbone and freeze_mm_mlp_adapter must be false",
    ),
)
"""Of the model and of training."""


@dataclass(frozen=True)
class Found:
    """Which combinations are valid.

    Args:
        free: parameters that neither restrict others nor decide about them.
        linked: the others.
        conditions: under which arguments are searched, where that differs between trials.
        unsearched: conditions of arguments that are searched in no trial, as they do not hold of what is fixed.
        rules: those that exclude combinations, and all that the search asks for, in words.
    """

    free: Mapping[str, Parameter]
    linked: Sequence[Linked]
    conditions: Mapping[str, str]
    unsearched: Mapping[str, str]
    rules: Sequence[str]


def find_combinations(
    parameters: Mapping[str, Parameter],
    fixed: Mapping[str, Any],
    dependents: Dependents,
    conditions: Mapping[str, Expression],
    required: Sequence[Expression],
) -> Found:
    """Find the valid combinations.

    Args:
        parameters: the searched arguments.
        fixed: values of all arguments that conditions and rules name, where they are not searched.
        dependents: what follows the searched arguments.
        conditions: under which some of them are searched.
        required: what the search asks for besides ``RULES``.

    Raises:
        SearchError: there is none; or there are too many to try, or a condition or rule cannot be computed.
    """
    rules = [*RULES, *(Rule(each, each.text) for each in required)]
    return _Finder(parameters, fixed, dependents, conditions, rules).find()


class _Finder:
    """See ``find_combinations``."""

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        fixed: Mapping[str, Any],
        dependents: Dependents,
        conditions: Mapping[str, Expression],
        rules: Sequence[Rule],
    ) -> None:
        self.parameters = dict(parameters)
        self.conditions = dict(conditions)
        self.rules = rules
        self.dependents = dependents
        self.fixed = {name: fixed[name] for each in self._expressions() for name in each.names}
        self.excluding: list[Rule] = []

    def find(self) -> Found:
        order = self._order()
        unsearched = self._drop_unsearched(order)
        for rule in self.rules:
            self._check_constant(rule)
        for expression in self._expressions():
            self._refuse_continuous(expression)
        free, linked = dict(self.parameters), []
        for together in self._together():
            names = [name for name in order if name in together]
            rows = self._rows(names)
            self._drop_constant_conditions(names, rows)
            rest, rows = self._without_free(names, rows)
            reduced = {name: _reduced(self.parameters[name], column) for name, column in _columns(rest, rows)}
            if self._is_product(reduced, rows):
                free |= reduced
            else:
                linked.append(Linked(reduced, tuple(rows)))
                free = {name: parameter for name, parameter in free.items() if name not in reduced}
        conditions = {name: condition.text for name, condition in self.conditions.items()}
        rules = [rule.words for rule in self.rules if rule in self.excluding or rule not in RULES]
        return Found(free, linked, conditions, unsearched, rules)

    def _expressions(self) -> list[Expression]:
        return [*self.conditions.values(), *(rule.expression for rule in self.rules)]

    def _deciding(self, expression: Expression) -> dict[str, None]:
        """The searched arguments that decide whether a condition holds, in its order."""
        leaders = self.dependents.leaders
        deciding = (leaders.get(name, name) for name in expression.names)
        return dict.fromkeys(name for name in deciding if name in self.parameters)

    def _order(self) -> list[str]:
        """The searched arguments; those that decide about another one before it, those that rules name first."""
        named = [name for rule in self.rules for name in self._deciding(rule.expression)]
        waiting = list(dict.fromkeys((*named, *self.parameters)))
        deciding = {name: self._deciding(condition) for name, condition in self.conditions.items()}
        order: list[str] = []
        while waiting:
            ready = [name for name in waiting if not set(deciding.get(name, ())) & set(waiting)]
            if not ready:
                raise SearchError(f"space: the conditions of {', '.join(waiting)} need each other; drop one")
            order.append(ready[0])
            waiting.remove(ready[0])
        return order

    def _drop_unsearched(self, order: Sequence[str]) -> dict[str, str]:
        """Decide the conditions on what is fixed for all trials; returns those that do not hold."""
        unsearched = {}
        for name in order:
            condition = self.conditions.get(name)
            if condition is None or self._deciding(condition):
                continue
            del self.conditions[name]
            if not condition.holds(self.fixed):
                del self.parameters[name]
                unsearched[name] = condition.text
        return unsearched

    def _check_constant(self, rule: Rule) -> None:
        """What a search asks for must hold of what is fixed; ``check_settings`` does the same for the other rules."""
        if rule in RULES or self._deciding(rule.expression) or rule.expression.holds(self.fixed):
            return
        given = ", ".join(f"{name} = {self.fixed[name]}" for name in rule.expression.names)
        raise SearchError(f"require: {rule.words} does not hold, as {given} in all trials; change one of them")

    def _refuse_continuous(self, expression: Expression) -> None:
        for name in self._deciding(expression):
            parameter = self.parameters[name]
            if isinstance(parameter, Real):
                raise SearchError(
                    f"{expression.where}: {expression.text}: {name} has any value from {parameter}, but combinations "
                    "are tried one by one; use choice, or int with a step"
                )

    def _together(self) -> list[set[str]]:
        """The arguments that must be seen together: what a rule restricts, and what decides about others with those."""
        joined = [set(self._deciding(rule.expression)) for rule in self.rules]
        joined += [{name, *self._deciding(condition)} for name, condition in self.conditions.items()]
        groups: list[set[str]] = []
        for names in joined:
            touching = [group for group in groups if group & names]
            groups = [group for group in groups if group not in touching] + [names.union(*touching)]
        return [group for group in groups if group]

    def _rows(self, names: Sequence[str]) -> list[Row]:
        """All valid combinations of some arguments."""
        decided = {name for expression in self._expressions() for name in self._deciding(expression)}
        rows: list[Row] = [()]
        left = [rule for rule in self.rules if self._deciding(rule.expression).keys() & set(names)]
        for place, name in enumerate(names):
            condition, values = self.conditions.get(name), self._entries(name, name in decided)
            extended: list[Row] = []
            for row in rows:
                searched = condition is None or condition.holds(self._complete(names, row))
                extended += [(*row, entry) for entry in (values if searched else (Mark.ABSENT,))]
                if len(extended) > MOST_COMBINATIONS:
                    raise self._too_many(names)
            rows = extended
            due = [rule for rule in left if self._deciding(rule.expression).keys() <= set(names[: place + 1])]
            for rule in due:
                rows = self._valid(rule, names, rows)
                left.remove(rule)
        return rows

    def _entries(self, name: str, decides: bool) -> Sequence[Entry]:
        """What stands in combinations for an argument that is searched: any value, if nothing depends on it."""
        parameter = self.parameters[name]
        return parameter.values if decides and not isinstance(parameter, Real) else (Mark.ANY,)

    def _complete(self, names: Sequence[str], row: Row) -> dict[str, Any]:
        """The values of all that conditions name, in a combination of the first of some arguments."""
        setting = {name: e for name, e in zip(names, row, strict=False) if not isinstance(e, Mark)}
        return self.dependents.complete(self.fixed, setting)

    def _valid(self, rule: Rule, names: Sequence[str], rows: list[Row]) -> list[Row]:
        """The combinations with which a rule holds."""
        found = [row for row in rows if rule.expression.holds(self._complete(names, row))]
        if not found:
            completed = [self._complete(names, row) for row in rows]
            tried = (f"{name}: {_listed(values[name] for values in completed)}" for name in rule.expression.names)
            raise SearchError(f"no combination is valid of {'; '.join(tried)}; {rule.words}")
        if len(found) < len(rows):
            self.excluding.append(rule)
        return found

    def _too_many(self, names: Sequence[str]) -> SearchError:
        reasons = [each.text for each in self._expressions() if self._deciding(each).keys() & set(names)]
        return SearchError(
            f"space: {', '.join(names)} have more than {MOST_COMBINATIONS:,} combinations, which must be tried one by "
            f"one ({'; '.join(reasons)}); use fewer values, or int with a larger step"
        )

    def _drop_constant_conditions(self, names: Sequence[str], rows: Sequence[Row]) -> None:
        """Those that hold in all combinations; one that holds in none is refused."""
        for name, column in _columns(names, rows):
            if name not in self.conditions:
                continue
            if set(column) == {Mark.ABSENT}:
                raise SearchError(
                    f"space: {name} is searched when {self.conditions[name]}, which holds in no trial; change it, or "
                    f"fix {name} below arguments or by --set"
                )
            if Mark.ABSENT not in column:
                del self.conditions[name]

    def _without_free(self, names: Sequence[str], rows: Sequence[Row]) -> tuple[list[str], list[Row]]:
        """The arguments that are not free of all others, and their combinations."""
        rest = [name for name, column in _columns(names, rows) if set(column) != {Mark.ANY}]
        places = [place for place, name in enumerate(names) if name in rest]
        return rest, [tuple(row[place] for place in places) for row in rows]

    def _is_product(self, parameters: Mapping[str, Parameter], rows: Sequence[Row]) -> bool:
        """Whether the combinations of arguments are all that there can be."""
        if any(isinstance(entry, Mark) for row in rows for entry in row):
            return False
        return len(rows) == math.prod(len(each.values) for each in parameters.values() if not isinstance(each, Real))


def _columns(names: Sequence[str], rows: Sequence[Row]) -> Iterator[tuple[str, tuple[Entry, ...]]]:
    yield from zip(names, zip(*rows, strict=True), strict=True)


def _reduced(parameter: Parameter, column: Collection[Entry]) -> Parameter:
    """A parameter with those of its values that occur in valid combinations."""
    occurring = set(column)
    if Mark.ANY in occurring or isinstance(parameter, Real):
        return parameter
    values = tuple(value for value in parameter.values if value in occurring)
    return parameter if values == tuple(parameter.values) else Choice(values)


def _listed(values: Iterable[Any]) -> str:
    """Different values; the first and the last of many."""
    words = list(dict.fromkeys(map(str, values)))
    return ", ".join(words if len(words) <= 8 else (*words[:6], "...", words[-1]))
