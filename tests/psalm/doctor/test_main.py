"""The command line: exit codes and what is printed."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from psalm.doctor.__main__ import main

Settings = Callable[..., dict[str, Any]]


def flags(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def test_what_would_work_is_told_with_exit_code_0(given: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(given())) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split() == ["check", "result", "finding"]
    assert lines[1].startswith("settings      ok      11 settings given, ")
    assert lines[-1] == "Training would work."
    assert captured.err == ""


def test_what_would_fail_is_told_with_exit_code_1(given: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(given(fp16=True, region_json_path="nowhere", seg_task="region,panoptic"))) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "Training would fail: 2 problems."


def test_a_command_line_that_cannot_be_read_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mm_nheads", "8"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "--mm_nheads is not an argument; did you mean 'mm_n_heads'?\n"


def test_no_line_is_longer_than_the_terminal(
    given: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(flags(given(mm_n_heads=3)))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_of_several_processes_the_first_examines(
    given: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(flags(given(mm_n_heads=3))) == 0
    assert capsys.readouterr().out == ""


def test_the_number_of_processes_divides_what_is_needed(
    given: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = '{"train_batch_size": 8, "zero_optimization": {"stage": 2}}'
    assert main(flags(given(deepspeed=config))) == 0, "4 processes with 2 samples each"
    assert "WORLD_SIZE" not in os.environ
