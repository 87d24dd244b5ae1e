"""The estimate against numbers that were worked out by hand."""

from typing import Any

import pytest

from psalm.doctor.findings import Status
from psalm.doctor.memory import MemoryNeed, Sharding, check_memory, check_offload, lacking, memory_need
from psalm.doctor.surroundings import Device

SETTINGS: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_checkpointing": False, "deepspeed": None}


@pytest.mark.parametrize(
    ("half", "sharding", "expected"),
    [
        # 100 trained and 60 frozen numbers, 7 bytes of activations: weights, gradients, optimizer.
        (False, None, (640, 400, 800)),
        (True, None, (640, 400, 800)),  # autocast keeps everything in float32
        (False, Sharding(0, 4), (640, 400, 800)),
        (True, Sharding(0, 4), (320, 200, 1200)),  # two moments and a copy of the weights
        (True, Sharding(1, 4), (320, 200, 300)),
        (True, Sharding(2, 4), (320, 50, 300)),
        (True, Sharding(3, 4), (80, 50, 300)),
        (False, Sharding(2, 4), (640, 100, 300)),
        (False, Sharding(3, 8), (80, 50, 150)),
        (True, Sharding(2, 1), (320, 200, 1200)),
    ],
)
def test_need_of_a_device(half: bool, sharding: Sharding | None, expected: tuple[int, int, int]) -> None:
    need = memory_need(100, 60, 7, half=half, sharding=sharding)
    assert need == MemoryNeed(*expected, 7)
    assert need.total == sum(expected) + 7


def test_the_example_of_the_zero_paper() -> None:
    """7.5 billion parameters on 64 devices: 120, 31.4, 16.6 and 1.9 GB (figure 1)."""
    needs = [memory_need(7_500_000_000, 0, 0, half=True, sharding=Sharding(stage, 64)).total for stage in range(4)]
    assert [round(need / 1e9, 1) for need in needs] == [120.0, 31.4, 16.6, 1.9]


def test_what_does_not_fit_is_a_problem_with_its_remedies() -> None:
    need = MemoryNeed(2 * 2**30, 2**30, 4 * 2**30, 3 * 2**30)
    (finding,) = check_memory(need, Device("cuda", 10 * 2**30), SETTINGS)
    assert finding.status is Status.OK
    (finding,) = check_memory(need, Device("cuda", 9 * 2**30), SETTINGS)
    assert finding.status is Status.PROBLEM
    assert finding.text == (
        "10.0 GiB per device (weights 2.0 GiB, gradients 1.0 GiB, optimizer 4.0 GiB, activations 3.0 GiB) with "
        "--per_device_train_batch_size 4, but 9.0 GiB are free: --gradient_checkpointing True; a smaller "
        "--per_device_train_batch_size with more --gradient_accumulation_steps; a smaller --mm_hidden_dim; a smaller "
        "--image_size; --deepspeed zero2 or zero3 on several devices"
    )


def test_remedies_that_are_in_use_are_not_named() -> None:
    settings = {"per_device_train_batch_size": 1, "gradient_checkpointing": True, "deepspeed": "zero2"}
    (finding,) = check_memory(MemoryNeed(2, 0, 0, 0), Device("cuda", 1), settings)
    assert finding.text.endswith(" are free: a smaller --mm_hidden_dim; a smaller --image_size")


def test_what_one_process_cannot_do_several_with_deepspeed_may() -> None:
    zero = {**SETTINGS, "deepspeed": "zero3"}
    assert lacking("too much", SETTINGS, Device("cuda", 1, 8)).status is Status.PROBLEM
    assert lacking("too much", zero, Device("cuda", 1, 1)).status is Status.PROBLEM
    finding = lacking("too much", zero, Device("cuda", 1, 8))
    assert finding.status is Status.NOT_CHECKED
    assert finding.text == "too much; DeepSpeed, which divides over 8 devices, may still train"


def test_nothing_is_estimated_where_state_is_moved_away() -> None:
    (finding,) = check_offload({"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}})
    assert finding.text == "not estimated, because DeepSpeed moves state away: offload_optimizer to cpu"
    assert check_offload({"stage": 2}) == []
