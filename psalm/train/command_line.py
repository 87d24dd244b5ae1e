"""Flags of a command line and a YAML file -> settings by name."""

import logging
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from psalm.train.fields import Field, SettingError, nearest

logger = logging.getLogger(__name__)


def read_flags(
    argv: Sequence[str],
    fields: Mapping[str, Field],
    extra: Collection[str] = (),
    retired: Collection[str] = (),
    switches: Collection[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """``--name value``, ``--name=value``, ``--switch`` and ``--no_switch``, over the mapping in ``--config FILE``.

    Names may be written with hyphens. Values stay text (several after one name become a list): whoever checks them
    knows their types. Flags named in ``retired`` are dropped with one warning, those in ``extra`` are let through, and
    those in ``switches`` too, which need no value; an old name in ``renamed`` stands for its new one.

    Raises:
        SettingError: a flag without a known name, a value without a flag, or a config file that is no YAML mapping.
        SystemExit: after ``--help``.
    """
    if {"-h", "--help"} & set(argv):
        sys.stdout.write(help_text(fields))
        raise SystemExit(0)
    config: dict[str, Any] = {}
    flags: dict[str, Any] = {}
    without_effect = []
    for flag, values in _split(argv):
        name = (renamed or {}).get(flag, flag)
        if name == "config":
            settings = read_config(_single(name, values))
            config = {(renamed or {}).get(given, given): value for given, value in settings.items()}
        elif name in retired:
            without_effect.append(f"--{name}")
        elif name in fields or name in extra or name in switches:
            if not values and not (name in switches or _is_switch(name, fields)):
                raise SettingError(f"--{name} needs a value; write --{name} VALUE")
            flags[name] = values[0] if len(values) == 1 else values or "true"
        elif not values and _is_switch(name.removeprefix("no_"), fields):
            flags[name.removeprefix("no_")] = "false"
        else:
            raise SettingError(f"--{name} is not an argument{nearest(name, fields) or '; --help lists them'}")
    if without_effect:
        logger.warning("%s: no effect any more", ", ".join(dict.fromkeys(without_effect)))
    return config | flags


def read_config(file: str) -> dict[str, Any]:
    """The settings of a YAML file.

    Raises:
        SettingError: it is missing, does not parse, or is no mapping of names.
    """
    try:
        settings = yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise SettingError(
            f"config must be a readable file, but got {file!r} ({error.strerror}); give its path"
        ) from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise SettingError(f"config must be YAML, but {file!r} does not parse: {reason}; mend the file") from error
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise SettingError(f"config must map names to values, but {file!r} does not; write lines of 'name: value'")
    return settings


def help_text(fields: Mapping[str, Field]) -> str:
    """Every argument with its values and default, by group."""
    lines = ["usage: train.py [--config FILE] [--resume_from_checkpoint DIR|True] [--NAME VALUE ...]", ""]
    for group in dict.fromkeys(field.group for field in fields.values()):
        lines.append(f"{group}:")
        for field in (field for field in fields.values() if field.group == group):
            lines.append(f"  --{field.name}  ({field.expected()}; default {field.default})")
            lines += textwrap.wrap(field.help, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines)


def _split(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    flags: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            flags.append((name.replace("-", "_"), [value] if equals else []))
        elif flags:
            flags[-1][1].append(word)
        else:
            raise SettingError(f"{word!r} does not follow a flag; write --name value")
    return flags


def _single(name: str, values: list[str]) -> str:
    if len(values) != 1:
        raise SettingError(f"--{name} takes one value, but got {len(values)}; write --{name} VALUE")
    return values[0]


def _is_switch(name: str, fields: Mapping[str, Field]) -> bool:
    return name in fields and bool in fields[name].kinds
