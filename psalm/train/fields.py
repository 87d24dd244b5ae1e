"""One training argument: its type, choices and range, and the check of a value against them.

Values come typed from YAML and Python, or as text from a command line; both end as the same Python value. A wrong one
raises ``SettingError``, whose text is one line: the setting, the value, the rule and what to do.
"""

import dataclasses
import difflib
import enum
import json
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
NOTHING = ("none", "null")

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)


class SettingError(ValueError):
    """A setting that cannot be used; the message is one line."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the known name that is most like ``name``, or nothing."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def unset_variables(path: str) -> list[str]:
    """The environment variables of a path (``$NAME`` or ``${NAME}``) that are not set, or are empty."""
    names = (name.strip("{}") for name in _VARIABLE.findall(path))
    return [name for name in dict.fromkeys(names) if not os.environ.get(name)]


def expand_variables(path: str) -> str:
    """A path with the values of its environment variables; as it is while one of them is not set."""
    return path if unset_variables(path) else os.path.expandvars(path)


@dataclass(frozen=True)
class Range:
    """The numbers a setting may have: from ``low`` to ``high``, or one of ``also``."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    """``low`` itself is not allowed."""
    below: bool = False
    """``high`` itself is not allowed."""
    also: tuple[float, ...] = ()
    whole_from: float = math.inf
    """From here on only whole numbers (below it, fractions of the run)."""

    def __contains__(self, value: float) -> bool:
        if value in self.also:
            return True
        inside = (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )
        return inside and (value < self.whole_from or value == int(value))

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            parts.append(f"{'greater than' if self.above else 'at least'} {self.low:g}")
        if self.high < math.inf:
            parts.append(f"{'less than' if self.below else 'at most'} {self.high:g}")
        text = " and ".join(parts)
        if self.whole_from < math.inf:
            text += f", and whole from {self.whole_from:g} on"
        return text + "".join(f", or {value:g}" for value in self.also)


POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
FRACTION = Range(0, 1)
STEPS = Range(0, above=True, whole_from=1)


@dataclass(frozen=True)
class Field:
    """One argument, as a user knows it."""

    name: str
    group: str
    """model, data or training."""
    kinds: tuple[type, ...]
    """What a value may be: of bool, int, float, str, list, dict."""
    optional: bool
    """Whether it may be left without a value (None)."""
    choices: tuple[str, ...] | None
    default: Any
    help: str
    range: Range | None = None
    path: bool = False
    """Whether text is a path of this machine, unless it is one of ``words``.

    Environment variables in it are replaced, and it is made absolute. While one of them is not set it stays as it is,
    for ``psalm.train.inputs.check_variables`` to refuse.
    """
    words: tuple[str, ...] = ()
    """Text that is no path although ``path`` is set."""
    parse: Callable[[Any], Any] | None = None
    """What reads a value that has a notation of its own; raises SettingError."""

    def check(self, value: Any) -> Any:
        """The value as this argument takes it.

        Raises:
            SettingError: wrong type, unknown choice or out of range.
        """
        if self.path and isinstance(value, str):
            value = expand_variables(value)
        if value is None or (isinstance(value, str) and value.lower() in NOTHING and self._takes_none_as_text()):
            if not self.optional:
                raise SettingError(f"{self.name} must have a value, but got none; give {self.expected()}")
            return None
        if self.parse is not None:
            return self.parse(value)
        if self.choices is not None:
            return self._check_choice(value)
        value = self._convert(value)
        if self.range is not None and isinstance(value, (int, float)) and value not in self.range:
            raise SettingError(f"{self.name} must be {self.range}, but got {value:g}; choose another value")
        if self.range is not None and isinstance(value, float) and value == int(value) >= self.range.whole_from:
            return int(value)
        if self.path and isinstance(value, str) and value not in self.words and not unset_variables(value):
            return os.path.abspath(os.path.expanduser(value))
        return value

    def expected(self) -> str:
        """The allowed values in words."""
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        names = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "text",
            list: "a list",
            dict: "a mapping",
        }
        return " or ".join(names[kind] for kind in self.kinds)

    def _takes_none_as_text(self) -> bool:
        return self.optional and not (self.choices is None and "none" in self.words)

    def _check_choice(self, value: Any) -> str:
        assert self.choices is not None
        if isinstance(value, enum.Enum):
            value = value.value
        if not isinstance(value, str) or value not in self.choices:
            hint = nearest(str(value), self.choices)
            raise SettingError(
                f"{self.name} must be {self.expected()}, but got {_shown(value)}{hint or '; choose one of them'}"
            )
        return value

    def _convert(self, value: Any) -> Any:
        if isinstance(value, bool):
            if bool in self.kinds:
                return value
        elif isinstance(value, int):
            if int in self.kinds:
                return value
            if float in self.kinds:
                return float(value)
        elif isinstance(value, float):
            if float in self.kinds and math.isfinite(value):
                return value
        elif isinstance(value, (list, tuple)):
            if list in self.kinds:
                return list(value)
        elif isinstance(value, dict):
            if dict in self.kinds:
                return dict(value)
        elif isinstance(value, (str, os.PathLike)):
            return self._from_text(os.fspath(value))
        raise self._wrong_type(value)

    def _from_text(self, text: str) -> Any:
        if dict in self.kinds and text.lstrip().startswith("{"):
            try:
                return json.loads(text)
            except ValueError as error:
                raise SettingError(f"{self.name} must be JSON where it starts with {{, but {error}; mend it") from error
        if str in self.kinds:
            return text
        if bool in self.kinds and text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        for kind in (int, float):
            if kind in self.kinds:
                try:
                    number = kind(text)
                except ValueError:
                    continue
                if math.isfinite(number):
                    return number
        raise self._wrong_type(text)

    def _wrong_type(self, value: Any) -> SettingError:
        return SettingError(f"{self.name} must be {self.expected()}, but got {_shown(value)}; change its type")


def fields_of(
    group: str,
    arguments: type,
    without: Iterable[str] = (),
    ranges: Mapping[str, Range] | None = None,
    paths: Iterable[str] = (),
) -> dict[str, Field]:
    """The arguments of a dataclass by name, from its annotations.

    A field's metadata may hold ``help``, ``range``, ``path``, ``words`` and ``parse``; ``ranges`` and ``paths`` give
    them for fields of a base class that somebody else wrote.
    """
    hints = typing.get_type_hints(arguments)
    found = {}
    for field in dataclasses.fields(arguments):
        if field.name in without or not field.init:
            continue
        kinds, optional, choices = _unpack(hints[field.name])
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        found[field.name] = Field(
            name=field.name,
            group=group,
            kinds=kinds,
            optional=optional,
            choices=choices,
            default=default.value if isinstance(default, enum.Enum) else default,
            help=" ".join(field.metadata.get("help", "").split()),
            range=field.metadata.get("range", (ranges or {}).get(field.name)),
            path=field.metadata.get("path", field.name in set(paths)),
            words=field.metadata.get("words", ()),
            parse=field.metadata.get("parse"),
        )
    return found


def as_json(value: Any) -> Any:
    """A value of an argument as JSON holds it: enumerations by value, paths as text."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    return value


def _unpack(hint: Any) -> tuple[tuple[type, ...], bool, tuple[str, ...] | None]:
    """(kinds, optional, choices) of an annotation."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds: list[type] = []
    choices: tuple[str, ...] | None = None
    for member in members:
        origin = typing.get_origin(member) or member
        if origin is Literal:
            choices = tuple(str(choice) for choice in typing.get_args(member))
        elif isinstance(origin, type) and issubclass(origin, enum.Enum):
            choices = tuple(choice.value for choice in origin)
        elif origin in (bool, int, float, str, list, dict):
            kinds.append(origin)
    if choices is not None and kinds in ([], [str]):
        return (str,), type(None) in members, choices
    return tuple(kinds), type(None) in members, None


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)
