"""A small language for conditions on a trial's arguments, e.g. ``mm_hidden_dim % mm_n_heads == 0``.

Python's notation and precedence, of which only this is known: names of arguments, numbers, words in quotes, ``true``,
``false``, ``none``; ``+ - * / // %``; comparisons, also chained; ``in [..]``; ``and``, ``or``, ``not``; parentheses.
Python parses a text, and nothing of it is ever run: its tree is checked node by node, and its value is computed here.

Types are strict, so that a slip is an error and not a condition that never holds: arithmetic and order are for numbers,
``and``, ``or`` and ``not`` for true and false, and only values of one type can be equal (``none`` compares with all).
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from psalm.train.fields import nearest
from tune.errors import SearchError

MOST_CHARACTERS = 500
DEEPEST = 30
"""Parts inside one another; with the length, what bounds the work and the size of numbers."""

ALLOWED = (
    "names of arguments, numbers, words in quotes, true, false, none, + - * / // %, comparisons, in [..], "
    "and, or, not, parentheses"
)
CONSTANTS = {"true": True, "false": False, "none": None}

_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_ORDER: dict[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_SIGNS: dict[type[ast.AST], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_LISTS = (ast.List, ast.Tuple)

_NUMBER, _WORD, _TRUTH, _NONE, _OTHER = "a number", "a word", "true or false", "none", "a list"


@dataclass(frozen=True)
class Expression:
    """A condition that was parsed and found to be in the language. Use ``parse``."""

    where: str
    """Where it stands in a search's file, for messages."""
    text: str
    _tree: ast.expr = field(compare=False, repr=False)

    @classmethod
    def parse(cls, where: str, text: Any, known: Collection[str]) -> "Expression":
        """Read a condition.

        Args:
            where: it stands, for messages.
            text: of the condition, as YAML gives it.
            known: the names that it may use.

        Raises:
            SearchError: it is not in the language; with the place.
        """
        if not isinstance(text, str):
            raise SearchError(f"{where} = {text!r} must be a condition on arguments, e.g. mm_n_points <= 8")
        text = " ".join(text.splitlines()).strip()
        if len(text) > MOST_CHARACTERS:
            raise SearchError(
                f"{where}: {text[:40]}... has {len(text)} characters, at most {MOST_CHARACTERS} are allowed; divide it"
            )
        expression = cls(where, text, _parse(where, text))
        expression._check(expression._tree, known, depth=1)
        return expression

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The arguments that it names, in order."""
        found = (node for node in ast.walk(self._tree) if isinstance(node, ast.Name) and node.id not in CONSTANTS)
        return tuple(dict.fromkeys(node.id for node in sorted(found, key=lambda node: node.col_offset)))

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the condition is true.

        Args:
            values: of at least the arguments that it names.

        Raises:
            SearchError: it cannot be computed with these values, or is neither true nor false.
        """
        return self._truth(self._tree, values)

    def __str__(self) -> str:
        return self.text

    def _check(self, node: ast.AST, known: Collection[str], depth: int) -> None:
        """Refuse what is not in the language."""
        if depth > DEEPEST:
            raise SearchError(f"{self.where}: {self.text}: has more than {DEEPEST} parts inside one another; divide it")
        inside: list[ast.expr] = []
        match node:
            case ast.Name(id=name):
                if name not in known and name not in CONSTANTS:
                    hint = nearest(name, known) or "; a word is put in quotes"
                    raise SearchError(f"{self._at(node)} is not an argument{hint}")
            case ast.Constant(value=bool() | int() | float() | str() | None):
                pass
            case ast.BoolOp(values=parts):
                inside = parts
            case ast.UnaryOp(op=ast.Not() | ast.UAdd() | ast.USub(), operand=operand):
                inside = [operand]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                inside = [left, right]
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                inside = [left]
                for comparison, right in zip(ops, comparators, strict=True):
                    if isinstance(comparison, ast.Is | ast.IsNot):
                        raise SearchError(f"{self._at(node)} must use == or != instead of is")
                    inside += self._listed(comparison, right)
            case _:
                raise SearchError(f"{self._at(node)} is not allowed; allowed are {ALLOWED}")
        for part in inside:
            self._check(part, known, depth + 1)

    def _listed(self, op: ast.cmpop, right: ast.expr) -> list[ast.expr]:
        """The parts at the right of a comparison; ``in`` has a list there, and nothing else has one."""
        if not isinstance(op, ast.In | ast.NotIn):
            return [right]
        if not isinstance(right, _LISTS):
            raise SearchError(f"{self._at(right)} must be a list, e.g. in [2, 4]")
        return right.elts

    def _value(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return CONSTANTS[name] if name in CONSTANTS else values[name]
            case ast.BoolOp(op=ast.And(), values=parts):
                return all(self._truth(part, values) for part in parts)
            case ast.BoolOp(values=parts):
                return any(self._truth(part, values) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._truth(operand, values)
            case ast.UnaryOp(op=sign, operand=operand):
                return _SIGNS[type(sign)](self._number(operand, values))
            case ast.BinOp(left=left, op=op, right=right):
                return self._computed(node, type(op), self._number(left, values), self._number(right, values), values)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                pairs = zip((left, *comparators), ops, comparators, strict=False)
                return all(self._compares(one, comparison, other, values) for one, comparison, other in pairs)
        raise AssertionError(f"{ast.dump(node)} was checked when it was parsed")

    def _computed(
        self, node: ast.expr, op: type[ast.AST], left: float, right: float, values: Mapping[str, Any]
    ) -> float:
        try:
            result: float = _ARITHMETIC[op](left, right)
            finite = math.isfinite(result)
        except ZeroDivisionError:
            raise self._fault(node, "divides by zero", values) from None
        except OverflowError:
            finite = False
        if not finite:
            raise self._fault(node, "is too large a number", values)
        return result

    def _compares(self, left: ast.expr, op: ast.cmpop, right: ast.expr, values: Mapping[str, Any]) -> bool:
        if type(op) in _ORDER:
            return _ORDER[type(op)](self._number(left, values), self._number(right, values))
        equal = [self._equal(left, each, values) for each in self._listed(op, right)]
        return any(equal) if isinstance(op, ast.Eq | ast.In) else not any(equal)

    def _equal(self, left: ast.expr, right: ast.expr, values: Mapping[str, Any]) -> bool:
        one, other = self._value(left, values), self._value(right, values)
        kinds = _kind(one), _kind(other)
        if _OTHER in kinds or (kinds[0] != kinds[1] and _NONE not in kinds):
            raise self._fault(left, f"is {kinds[0]} and is compared with {kinds[1]}", values)
        return bool(one == other)

    def _truth(self, node: ast.expr, values: Mapping[str, Any]) -> bool:
        value = self._value(node, values)
        if not isinstance(value, bool):
            raise self._fault(node, f"is {_kind(value)}, but must be true or false", values)
        return value

    def _number(self, node: ast.expr, values: Mapping[str, Any]) -> float:
        value = self._value(node, values)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._fault(node, f"is {_kind(value)}, but must be a number", values)
        return value

    def _fault(self, node: ast.expr, what: str, values: Mapping[str, Any]) -> SearchError:
        """A value that cannot be used, and the setting where."""
        setting = ", ".join(f"{name} = {values[name]}" for name in self.names)
        return SearchError(f"{self._at(node)} {what}" + (f", with {setting}" if setting else "") + "; change one")

    def _at(self, node: ast.AST) -> str:
        """The expression, a part of it, and its place."""
        segment = ast.get_source_segment(self.text, node)
        return f"{self.where}: {self.text}: {segment!r} (column {_column(self.text, node)})"


def _parse(where: str, text: str) -> ast.expr:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what Python only frowns at, as 4or 8, is a mistake here
        try:
            return ast.parse(text, mode="eval").body
        except SyntaxError as error:
            place = f" at column {error.offset}" if error.offset else ""
            raise SearchError(f"{where}: {text!r} is no condition: {error.msg}{place}") from None
        except (ValueError, MemoryError, RecursionError) as error:
            raise SearchError(f"{where}: {text!r} is no condition: {error or 'too deep'}") from None


def _column(text: str, node: ast.AST) -> int:
    """From 1; the tree counts bytes from 0."""
    assert isinstance(node, ast.expr), "only operators have no place"
    return len(text.encode()[: node.col_offset].decode()) + 1


def _kind(value: Any) -> str:
    if value is None:
        return _NONE
    if isinstance(value, bool):
        return _TRUTH
    if isinstance(value, int | float):
        return _NUMBER
    return _WORD if isinstance(value, str) else _OTHER
