"""The estimate against numbers that were worked out by hand."""

import pytest

from psalm.model.memory import MemoryNeed, Sharding, memory_need


@pytest.mark.parametrize(
    ("half", "sharding", "expected"),
    [
        # 100 trained and 60 frozen numbers, 7 bytes of activations: weights, gradients, optimizer, activations, update.
        (False, None, (640, 400, 800, 7, 800)),
        (True, None, (640, 400, 800, 7, 800)),  # autocast keeps everything in float32
        (False, Sharding(0, 4), (640, 400, 800, 7, 800)),
        (True, Sharding(0, 4), (320, 200, 1200, 7, 800)),  # two moments and a copy of the weights
        (True, Sharding(1, 4), (320, 200, 300, 7, 200)),
        (True, Sharding(2, 4), (320, 50, 300, 7, 200)),
        (True, Sharding(3, 4), (80, 50, 300, 7, 200)),
        (False, Sharding(2, 4), (640, 100, 300, 7, 200)),
        (False, Sharding(3, 8), (80, 50, 150, 7, 100)),
        (True, Sharding(2, 1), (320, 200, 1200, 7, 800)),
    ],
)
def test_need_of_a_device(half: bool, sharding: Sharding | None, expected: tuple[int, int, int, int, int]) -> None:
    assert memory_need(100, 60, 7, half=half, sharding=sharding) == MemoryNeed(*expected)


def test_the_example_of_the_zero_paper() -> None:
    """7.5 billion parameters on 64 devices: 120, 31.4, 16.6 and 1.9 GB (figure 1)."""
    needs = [memory_need(7_500_000_000, 0, 0, half=True, sharding=Sharding(stage, 64)) for stage in range(4)]
    states = [need.weights + need.gradients + need.optimizer for need in needs]
    assert [round(state / 1e9, 1) for state in states] == [120.0, 31.4, 16.6, 1.9]


def test_the_larger_peak_of_a_step_counts() -> None:
    """Either gradients and activations are there or what the update takes."""
    in_backward = MemoryNeed(weights=1, gradients=20, optimizer=300, activations=4000, update=4019)
    assert (in_backward.total, in_backward.update_is_peak) == (4321, False)
    in_update = MemoryNeed(weights=1, gradients=20, optimizer=300, activations=4000, update=4021)
    assert (in_update.total, in_update.update_is_peak) == (4322, True)
