"""What the doctor says of an estimate."""

from typing import Any

from psalm.doctor.findings import Status
from psalm.doctor.memory import check_memory, check_offload, lacking
from psalm.doctor.surroundings import Device
from psalm.model.memory import MemoryNeed

GIB = 2**30
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_checkpointing": False,
    "tune_mm_mlp_adapter": False,
    "deepspeed": None,
}


def test_what_does_not_fit_is_a_problem_with_its_remedies() -> None:
    need = MemoryNeed(weights=2 * GIB, gradients=GIB, optimizer=4 * GIB, activations=3 * GIB, update=2 * GIB)
    (finding,) = check_memory(need, Device("cuda", 10 * GIB), SETTINGS)
    assert finding.status is Status.OK
    (finding,) = check_memory(need, Device("cuda", 9 * GIB), SETTINGS)
    assert finding.status is Status.PROBLEM
    assert finding.text == (
        "10.0 GiB per device (weights 2.0 GiB, optimizer 4.0 GiB, gradients 1.0 GiB, activations 3.0 GiB) with "
        "--per_device_train_batch_size 4, but 9.0 GiB are free: --gradient_checkpointing True; a smaller "
        "--per_device_train_batch_size with more --gradient_accumulation_steps; a smaller --mm_hidden_dim; a smaller "
        "--image_size; --deepspeed zero2 or zero3 on several devices"
    )


def test_activations_are_not_blamed_for_the_update_of_the_weights() -> None:
    need = MemoryNeed(weights=2 * GIB, gradients=GIB, optimizer=4 * GIB, activations=GIB, update=4 * GIB)
    (finding,) = check_memory(need, Device("cuda", 9 * GIB), SETTINGS)
    assert finding.text == (
        "10.0 GiB per device (weights 2.0 GiB, optimizer 4.0 GiB, update of the weights 4.0 GiB) with "
        "--per_device_train_batch_size 4, but 9.0 GiB are free: --tune_mm_mlp_adapter True; --deepspeed zero2 or zero3 "
        "on several devices"
    )
    (finding,) = check_memory(need, Device("cuda", 9 * GIB), SETTINGS | {"deepspeed": {}, "tune_mm_mlp_adapter": True})
    assert finding.text.endswith(" are free: more devices")


def test_remedies_that_are_in_use_are_not_named() -> None:
    settings = {"per_device_train_batch_size": 1, "gradient_checkpointing": True, "deepspeed": "zero2"}
    (finding,) = check_memory(MemoryNeed(2, 0, 0, 0, 0), Device("cuda", 1), settings)
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
