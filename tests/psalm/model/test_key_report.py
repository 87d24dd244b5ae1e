import subprocess
from pathlib import Path

import pytest

from psalm.model.key_report import KeyReport, folded


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        (["a"], ["a"]),
        (["a.x.bias", "a.y.bias"], ["a.{x,y}.bias"]),
        (["a.0.w", "a.0.b", "a.1.w", "a.1.b", "c"], ["a.{0,1}.{w,b}", "c"]),
        (["a.0.w", "a.1.w", "a.1.b"], ["a.{0.w,1.{w,b}}"]),
        (["a.w", "b.w"], ["{a,b}.w"]),
    ],
)
def test_names_share_what_they_can(names: list[str], expected: list[str]) -> None:
    assert folded(names) == expected


def test_a_shell_gives_every_name_back() -> None:
    names = [f"layers.{i}.{kind}.{part}" for i in range(3) for kind in ("fc", "norm") for part in ("weight", "bias")]
    names.remove("layers.1.fc.bias")
    names += ["norm.weight", "head"]
    echoed = subprocess.run(
        ["bash", "-c", f"echo {' '.join(folded(names))}"], capture_output=True, text=True, check=True
    )
    assert sorted(echoed.stdout.split()) == sorted(names)


def test_a_report_names_what_was_not_loaded() -> None:
    report = KeyReport(Path("tower.pkl"), ("a", "b"), ("class.w", "class.b"), ("c",), ("i",))
    assert str(report) == (
        "tower.pkl: 2 loaded, 2 (class.{w,b}) unused, 1 (c) left at initial values, 1 computed instead"
    )
