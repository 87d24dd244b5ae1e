"""One searched argument: a list of values or a range, and how it is written in a search's file."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from psalm.train.fields import nearest
from tune.errors import SearchError
from tune.space.expressions import Expression

Value = bool | int | float | str
CheckValue = Callable[[str, Any], Any]

WHEN = "when"
"""Beside a parameter's values: the condition on other arguments under which it is searched."""

PROBE = 0.318
"""Where inside a range, as a fraction, a value is checked besides the ends: no whole number where fractions exist."""


class Suggester(Protocol):
    """The part of ``optuna.Trial`` that a space needs."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...  # noqa: D102
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...  # noqa: D102
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Choice:
    """One of a list of values."""

    values: tuple[Value, ...]

    def suggest(self, trial: Suggester, name: str) -> Value:
        """The trial's value."""
        return trial.suggest_categorical(name, self.values)

    def __contains__(self, value: Value) -> bool:
        return any(value == known and type(value) is type(known) for known in self.values)

    def examples(self) -> tuple[Value, ...]:
        """Values whose validity stands for that of all."""
        return self.values

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Whole:
    """A whole number from ``low`` to ``high``, both included, in steps."""

    low: int
    high: int
    step: int = 1

    def suggest(self, trial: Suggester, name: str) -> int:
        """The trial's value."""
        return trial.suggest_int(name, self.low, self.high, step=self.step)

    def __contains__(self, value: Value) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value in self.values

    @property
    def values(self) -> range:
        """All values."""
        return range(self.low, self.high + 1, self.step)

    def examples(self) -> tuple[Value, ...]:
        """Values whose validity stands for that of all."""
        return (self.values[0], self.values[-1])

    def __str__(self) -> str:
        return f"whole numbers from {self.low} to {self.high}" + (f" by {self.step}" if self.step > 1 else "")


@dataclass(frozen=True)
class Real:
    """A number from ``low`` to ``high``, uniform or uniform in its logarithm."""

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: Suggester, name: str) -> float:
        """The trial's value."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def __contains__(self, value: Value) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high

    def examples(self) -> tuple[Value, ...]:
        """Values whose validity stands for that of all."""
        return (self.low, self.high, self.low + PROBE * (self.high - self.low))

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (" on a log scale" if self.log else "")


Parameter = Choice | Whole | Real


def read_space(
    content: Mapping[Any, Any], check_value: CheckValue, known: Collection[str]
) -> tuple[dict[str, Parameter], dict[str, Expression]]:
    """What ``space:`` of a search's file holds: the parameters, and the conditions (``when``) of those that have one.

    Args:
        content: the section.
        check_value: what an argument takes a value as.
        known: all arguments.

    Raises:
        SearchError, psalm.train.arguments.SettingError: see ``parse_parameter``; or a condition is none.
    """
    parameters, conditions = {}, {}
    for name, spec in ((str(name), spec) for name, spec in content.items()):
        if isinstance(spec, Mapping) and WHEN in spec:
            conditions[name] = Expression.parse(f"space: {name}: {WHEN}", spec[WHEN], known)
            spec = {key: value for key, value in spec.items() if key != WHEN}
        parameters[name] = parse_parameter(name, spec, check_value)
    return parameters, conditions


def parse_parameter(name: str, spec: Any, check_value: CheckValue) -> Parameter:
    """One entry of ``space:``, e.g. ``{choice: [2, 4]}``, ``{int: [1, 9]}``, ``{loguniform: [1.0e-4, 1.0e-2]}``.

    Raises:
        SearchError: the entry is not of this form.
        psalm.train.arguments.SettingError: the name is no training argument, or a value is not allowed for it.
    """
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise SearchError(
            f"space: {name} = {spec!r} must be one of {', '.join(_KINDS)} with its values, e.g. int: [1, 9], and "
            f"may have a condition besides ({WHEN})"
        )
    kind, values = next(iter(spec.items()))
    if kind not in _KINDS:
        raise SearchError(
            f"space: {name} has the unknown kind {kind!r}; known are {', '.join(_KINDS)}{nearest(str(kind), _KINDS)}"
        )
    if not isinstance(values, list) or not values:
        raise SearchError(f"space: {name}: {kind} needs a list of values, but got {values!r}")
    return _KINDS[kind](name, values, check_value)


def _choice(name: str, values: list[Any], check_value: CheckValue) -> Choice:
    for value in values:
        if not isinstance(value, (bool, int, float, str)):
            raise SearchError(f"space: {name}: {value!r} cannot be a choice; use numbers, words, true or false")
    checked = [check_value(name, value) for value in values]
    if len({(type(value), value) for value in checked}) < len(checked):
        raise SearchError(f"space: {name}: a value occurs twice in {values}")
    return Choice(tuple(checked))


def _whole(name: str, values: list[Any], check_value: CheckValue) -> Whole:
    if len(values) not in (2, 3) or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise SearchError(f"space: {name}: int needs [lowest, highest] or [lowest, highest, step], but got {values}")
    low, high, step = values if len(values) == 3 else (*values, 1)
    if low >= high or step < 1:
        raise SearchError(f"space: {name}: int needs lowest < highest and a step of at least 1, but got {values}")
    parameter = Whole(low, range(low, high + 1, step)[-1], step)
    for value in parameter.examples():
        check_value(name, value)
    return parameter


def _real(name: str, values: list[Any], check_value: CheckValue, log: bool = False) -> Real:
    kind = "loguniform" if log else "uniform"
    if len(values) != 2 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise SearchError(f"space: {name}: {kind} needs two numbers [lowest, highest], but got {values}")
    low, high = map(float, values)
    if not low < high:
        raise SearchError(f"space: {name}: {kind} needs lowest < highest, but got {values}")
    if log and low <= 0:
        raise SearchError(f"space: {name}: loguniform needs numbers above 0, but got {values}")
    parameter = Real(low, high, log)
    for value in parameter.examples():
        check_value(name, value)
    return parameter


def _log_real(name: str, values: list[Any], check_value: CheckValue) -> Real:
    return _real(name, values, check_value, log=True)


_KINDS: dict[str, Callable[[str, list[Any], CheckValue], Parameter]] = {
    "choice": _choice,
    "int": _whole,
    "uniform": _real,
    "loguniform": _log_real,
}
