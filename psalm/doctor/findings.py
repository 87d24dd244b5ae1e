"""What a check found: fine, something that would make the training fail, or something to know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.table import Table
from rich.text import Text

NAMED = 3
"""Of many names so many are shown."""


class Status(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    PROBLEM = "problem"
    ADVICE = "advice"
    NOT_CHECKED = "not checked"


STYLES = {Status.OK: "green", Status.PROBLEM: "bold red", Status.ADVICE: "yellow", Status.NOT_CHECKED: "dim"}


@dataclass(frozen=True)
class Finding:
    """One line of a check."""

    status: Status
    text: str


Findings = Sequence[Finding]


def ok(text: str) -> Finding:
    """As it should be."""
    return Finding(Status.OK, text)


def problem(text: object) -> Finding:
    """Training would fail; an error is told in one line."""
    return Finding(Status.PROBLEM, " ".join(str(text).split()))


def advice(text: str) -> Finding:
    """Training would work, but perhaps not as its user thinks."""
    return Finding(Status.ADVICE, text)


def not_checked(text: str) -> Finding:
    """Nothing is known, because of something else."""
    return Finding(Status.NOT_CHECKED, text)


def shortened(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def count(found: Mapping[str, Findings], status: Status) -> int:
    """How many findings matter as much."""
    return sum(finding.status is status for findings in found.values() for finding in findings)


def findings_table(found: Mapping[str, Findings]) -> Table:
    """One row per finding; a check's name stands at its first."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("finding", overflow="fold")
    for check, findings in found.items():
        for number, finding in enumerate(findings):
            name = check if number == 0 else ""
            table.add_row(name, Text(finding.status, STYLES[finding.status]), Text(finding.text))
    return table
