"""The language of conditions: what it says, what it refuses, and that nothing in it is ever run."""

import random
from typing import Any

import pytest

from tune.errors import SearchError
from tune.space.expressions import DEEPEST, MOST_CHARACTERS, Expression

VALUES: dict[str, Any] = {"a": 6, "b": 4, "x": 0.5, "on": True, "off": False, "word": "base", "empty": None, "zero": 0}
KNOWN = {*VALUES, "listed"}


def parse(text: Any) -> Expression:
    return Expression.parse("require", text, KNOWN)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a % b == 2", True),
        ("a * b <= 23", False),
        ("a + b - 1 > x", True),
        ("a / b == 1.5", True),
        ("-a // b == -2", True),
        ("a % -b == -2", True),
        ("2 + 3 * a == 20", True),
        ("(2 + 3) * a == 30", True),
        ("b < a < 7", True),
        ("b < a < 6", False),
        ("a > b == 4", True),
        ("not (on and off)", True),
        ("on and off or on", True),
        ("not on or on", True),
        ("word == 'base'", True),
        ('word != "base"', False),
        ("a in [4, 6]", True),
        ("a not in (4, 6)", False),
        ("a in []", False),
        ("word in ['base', 'large']", True),
        ("on == true", True),
        ("on == True", True),
        ("off == false", True),
        ("empty == none", True),
        ("empty != None", False),
        ("a == none", False),
        ("none in [empty]", True),
        ("on", True),
        ("  a ==\n  6 ", True),
        ("a == 6.0", True),
        ("zero == 0 or a // zero == 1", True),
        ("zero != 0 and a // zero == 1", False),
        ("word == 'b\u00e4se' or a == 6", True),
    ],
)
def test_values_are_those_that_python_gives(text: str, value: bool) -> None:
    assert parse(text).holds(VALUES) is value


def test_names_are_in_the_order_in_which_they_stand() -> None:
    assert parse("b * a <= 16 and b in [a, x] and not on == true").names == ("b", "a", "x", "on")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no condition: invalid syntax"),
        ("a ==", "'a ==' is no condition: invalid syntax"),
        ("a = 3", "'a = 3' is no condition: invalid syntax at column 3"),
        ("a == 4or b == 4", "'a == 4or b == 4' is no condition: invalid decimal literal at column 6"),
        (r"word == '\d'", r"is no condition: invalid escape sequence '\d'"),
        ("a == b\0", "is no condition: source code string cannot contain null bytes"),
        ("(" * 220 + "a" + ")" * 220, "is no condition: too many nested parentheses"),
        ("a == c", "a == c: 'c' (column 6) is not an argument; a word is put in quotes"),
        ("wrod == 'base'", "'wrod' (column 1) is not an argument; did you mean 'word'?"),
        ("a is none", "a is none: 'a is none' (column 1) must use == or != instead of is"),
        ("a in b", "a in b: 'b' (column 6) must be a list, e.g. in [2, 4]"),
        ("a in 'abc'", "(column 6) must be a list"),
        (
            "'\u00e4' == word and a ** 2 > 3",
            "'a ** 2' (column 17) is not allowed; allowed are names of arguments, numbers,",
        ),
        (3, "require = 3 must be a condition on arguments, e.g. mm_n_points <= 8"),
        (True, "require = True must be a condition on arguments"),
        ("a == " + "+ 1" * 200, f"has 605 characters, at most {MOST_CHARACTERS} are allowed; divide it"),
        ("a == " + "-" * 100 + "1", f"has more than {DEEPEST} parts inside one another; divide it"),
    ],
)
def test_what_is_not_in_the_language_is_refused_with_its_place(text: Any, message: str) -> None:
    with pytest.raises(SearchError) as error:
        parse(text)
    assert message in str(error.value)
    assert str(error.value).startswith("require")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "a.real == 6",
        "word[0] == 'b'",
        "listed[0]",
        "len(word) == 4",
        "(lambda: on)()",
        "a if on else b",
        "[a for a in [1]] == [1]",
        "{a} == {6}",
        "{a: 1}",
        "f'{word}' == 'base'",
        "b'base' == word",
        "a == 1j",
        "a ** b > 1",
        "a << b > 1",
        "a & b == 4",
        "~a == 1",
        "a @ b == 1",
        "(a := 3) == 3",
        "... == a",
        "[4, 6] == [a, b]",
        "a == (6, 4)",
        "a == [6]",
        "a < 7, on",
        "*word",
        "await word",
        "yield",
        "[*word] == a",
        "a in [*word]",
        "[a, b]",
    ],
)
def test_everything_else_of_python_is_refused(text: str) -> None:
    with pytest.raises(SearchError, match=r"is not allowed; allowed are|is no condition: "):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a // zero == 1", "'a // zero' (column 1) divides by zero, with a = 6, zero = 0; change one"),
        ("1 < a % zero", "'a % zero' (column 5) divides by zero"),
        ("a + word == 3", "'word' (column 5) is a word, but must be a number, with a = 6, word = base; change one"),
        ("on + on == 2", "'on' (column 1) is true or false, but must be a number"),
        ("a < empty", "'empty' (column 5) is none, but must be a number"),
        ("word < 'large'", "'word' (column 1) is a word, but must be a number"),
        ("-word == a", "'word' (column 2) is a word, but must be a number"),
        ("a and on", "'a' (column 1) is a number, but must be true or false"),
        ("not word", "'word' (column 5) is a word, but must be true or false"),
        ("a + b", "'a + b' (column 1) is a number, but must be true or false"),
        ("word", "'word' (column 1) is a word, but must be true or false"),
        ("a == '6'", "'a' (column 1) is a number and is compared with a word"),
        ("on == 1", "'on' (column 1) is true or false and is compared with a number"),
        ("word in ['base', 3]", "'word' (column 1) is a word and is compared with a number"),
        ("listed == a", "'listed' (column 1) is a list and is compared with a number"),
        ("a * 1e300 * 1e300 > b", "'a * 1e300 * 1e300' (column 1) is too large a number"),
        ("a * 1" + "0" * 400 + " / 3.5 > b", "is too large a number"),
        ("1e400 - 1e400 < a", "is too large a number"),
        ("1 // 0 == 1", "'1 // 0' (column 1) divides by zero; change one"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_the_setting(text: str, message: str) -> None:
    expression = parse(text)
    with pytest.raises(SearchError) as error:
        expression.holds(VALUES | {"listed": [1]})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def number(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(["a", "b", "x", "zero", "3", "0.25", "10"])
    if rng.random() < 0.1:
        return f"-{number(rng, 0)}"
    return f"({number(rng, depth - 1)} {rng.choice(['+', '-', '*', '/', '//', '%'])} {number(rng, depth - 1)})"


def condition(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.3:
        compared = rng.choice(["<", "<=", "==", "!=", ">", ">="])
        plain = f"{number(rng, 2)} {compared} {number(rng, 2)}"
        return rng.choice([plain, f"{plain} < {number(rng, 1)}", f"{number(rng, 1)} in [4, {number(rng, 1)}]", "on"])
    if rng.random() < 0.2:
        return f"not ({condition(rng, depth - 1)})"
    return f"({condition(rng, depth - 1)} {rng.choice(['and', 'or'])} {condition(rng, depth - 1)})"


def test_random_expressions_have_the_value_that_python_gives_them() -> None:
    rng, seen = random.Random(0), {True: 0, False: 0, None: 0}
    for _ in range(2000):
        text = condition(rng, 3)
        expression = parse(text)
        try:
            expected = eval(text, dict(VALUES))
        except ZeroDivisionError:
            expected = None
        if expected is None:
            with pytest.raises(SearchError, match="divides by zero"):
                expression.holds(VALUES)
        else:
            assert expression.holds(VALUES) is expected, text
        seen[expected] += 1
    assert min(seen.values()) > 100
