"""Memory and time of a block."""

import time

import pytest
import torch

from psalm.doctor.measuring import PeakMemory, stopwatch

CPU = torch.device("cpu")


def test_memory_that_was_taken_for_a_while_is_seen() -> None:
    with PeakMemory(CPU) as peak:
        held = torch.ones(200 * 2**20, dtype=torch.uint8)
        time.sleep(0.1)
        del held
    assert peak.growth == pytest.approx(200 * 2**20, rel=0.1)


def test_memory_that_was_there_before_does_not_count() -> None:
    held = torch.ones(200 * 2**20, dtype=torch.uint8)
    with PeakMemory(CPU) as peak:
        time.sleep(0.02)
    assert peak.growth < 50 * 2**20
    del held


def test_seconds_of_a_block() -> None:
    with stopwatch(CPU) as watch:
        time.sleep(0.05)
    assert 0.05 <= watch.seconds < 5
