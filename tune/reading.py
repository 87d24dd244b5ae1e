"""Reading a YAML file by hand: numbers as people write them, every value of the type asked for, nothing left over.

The same for what an option of the command line assigns.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from psalm.train.fields import nearest
from tune.errors import SearchError


class _Loader(yaml.SafeLoader):
    """YAML as most people expect it: 1e-4 is a number, ``no`` is a word, a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The content of a search's file.

    Raises:
        SearchError: it is missing, is not YAML, or holds no mapping.
    """
    if not path.is_file():
        raise SearchError(f"--config {path}: there is no such file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise SearchError(f"--config {path} is not a text file in UTF-8: {error.reason}") from error
    except yaml.YAMLError as error:
        raise SearchError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise SearchError(f"--config {path} must hold names with values (name: ..., space: ...)")
    return content


def read_assignments(option: str, texts: Iterable[str]) -> dict[str, str]:
    """``name=value`` of an option that may be given many times; of a name that comes twice, the last value.

    Raises:
        SearchError: a text is not of this form.
    """
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise SearchError(f"{option} {text!r} must be name=value")
        values[name.strip()] = value.strip()
    return values


def as_number(text: str) -> int | float | str:
    """The number that a text is; the text itself if it is none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


class Section:
    """Typed reading of a mapping, of a file or an option (``source``); what nobody asked for is refused at the end."""

    def __init__(self, title: str, content: Mapping[str, Any], source: Path | str) -> None:
        self.prefix = f"{title}." if title else ""
        self.content = content
        self.source = source
        self.known: list[str] = []

    def get(self, name: str, default: Any = None) -> Any:
        """The raw value."""
        self.known.append(name)
        return self.content.get(name, default)

    def required(self, name: str, default: Any) -> Any:
        """A value that must be there."""
        value = self.get(name, default)
        if value is None:
            raise SearchError(f"{self.source}: {self.prefix}{name} is missing")
        return value

    def fail(self, name: str, value: Any, rule: str) -> SearchError:
        """The error for a value that breaks a rule."""
        return SearchError(f"{self.source}: {self.prefix}{name} = {value!r} must be {rule}")

    def whole(self, name: str, default: int | None = None, *, low: int) -> int:
        """A whole number of at least ``low``."""
        value = self.required(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise self.fail(name, value, f"a whole number of at least {low}")
        return value

    def number(self, name: str, default: float, allowed: Callable[[float], bool], rule: str) -> float:
        """A number for which ``allowed`` holds."""
        value = self.required(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not allowed(value):
            raise self.fail(name, value, rule)
        return value

    def word(self, name: str) -> str:
        """Text."""
        value = self.required(name, None)
        if not isinstance(value, str):
            raise self.fail(name, value, "a word")
        return value

    def name(self, name: str) -> str:
        """Text that can be a folder's name."""
        value = self.word(name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise self.fail(name, value, "a plain folder name (letters, digits, '.', '_', '-')")
        return value

    def choice(self, name: str, known: tuple[str, ...], default: str) -> str:
        """One of a list of words."""
        value = self.required(name, default)
        if value not in known:
            raise self.fail(name, value, f"one of {', '.join(known)}{nearest(str(value), known)}")
        return str(value)

    def mapping(self, name: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Names with values."""
        value = self.required(name, default)
        if not isinstance(value, Mapping):
            raise self.fail(name, value, "names with values")
        return value

    def section(self, name: str) -> "Section":
        """A mapping with settings of its own."""
        return Section(name, self.mapping(name, {}), self.source)

    def sequence(self, name: str) -> list[Any]:
        """A list; empty if it is not given."""
        value = self.required(name, [])
        if not isinstance(value, list):
            raise self.fail(name, value, "a list")
        return value

    def refuse_rest(self) -> None:
        """Call when everything known has been asked for."""
        for name in self.content:
            if name not in self.known:
                known = f"; known are {', '.join(self.known)}{nearest(str(name), self.known)}"
                raise SearchError(f"{self.source}: {self.prefix}{name} is not a setting of a search{known}")
