"""Two runs are equal only if every bit of every value is, and their steps are; elsewhere within a tolerance."""

import math
from typing import Any

import pytest

from psalm.train.comparison import (
    Agreement,
    Tolerance,
    compare,
    default_tolerance,
    other_arithmetic,
    summary,
    verdict,
)

LOSS = [(1, 0.1), (2, 1 / 3), (3, 2.5e-7)]


def difference(recorded: Any, repeated: Any, stopped_at: int | None = None) -> str | None:
    """Where two series of a metric differ."""
    (row,) = compare({"loss": recorded}, {"loss": repeated}, stopped_at)
    return row.difference


def test_equal_runs() -> None:
    rows = compare({"loss": LOSS, "eval_pq": [(3, 50.0)]}, {"loss": LOSS, "eval_pq": [(3, 50.0)]})
    assert [(row.name, row.points, row.difference) for row in rows] == [("eval_pq", 1, None), ("loss", 3, None)]


def test_one_bit_is_a_difference() -> None:
    other = math.nextafter(1 / 3, 1)
    found = difference(LOSS, [(1, 0.1), (2, other), (3, 9.0)])
    assert found == f"step 2: recorded 0.3333333333333333, now {other!r}"


@pytest.mark.parametrize(
    ("repeated", "found"),
    [
        (LOSS[:2], "step 3: recorded 2.5e-07, now nothing"),
        ([*LOSS, (4, 0.5)], "step 4: recorded nothing, now 0.5"),
        ([(1, 0.1), (3, 2.5e-7)], "step 2: recorded 0.3333333333333333, now nothing"),
        ([], "step 1: recorded 0.1, now nothing"),
    ],
    ids=["last-missing", "one-more", "hole", "none"],
)
def test_other_steps_are_a_difference(repeated: Any, found: str) -> None:
    assert difference(LOSS, repeated) == found


def test_a_second_value_for_a_step_is_a_difference() -> None:
    """MLflow never changes a point: a value that is logged again stands beside the first."""
    assert difference([*LOSS[:2], (2, 9.0), LOSS[2]], LOSS) == (
        "step 2: recorded 0.3333333333333333 and 9.0, now 0.3333333333333333"
    )


def test_a_metric_of_one_run_only_is_a_difference() -> None:
    rows = compare({"loss": LOSS}, {"loss": LOSS, "loss_dice": LOSS})
    assert [row.difference for row in rows] == [None, "step 1: recorded nothing, now 0.1"]


def test_not_a_number_equals_itself() -> None:
    assert difference([(1, math.nan)], [(1, math.nan)]) is None
    assert difference([(1, math.nan)], [(1, 0.0)]) == "step 1: recorded nan, now 0.0"


def test_the_machine_is_not_compared() -> None:
    assert compare({"system/step_seconds": [(1, 0.5)]}, {"system/step_seconds": [(1, 0.6)]}) == []


@pytest.mark.parametrize(
    ("repeated", "equal"),
    [
        (LOSS, True),
        ([*LOSS, (4, 0.5)], True),
        (LOSS[:2], False),
        ([LOSS[0], (2, 9.0), LOSS[2]], False),
        ([*LOSS[:2], (2.5, 1.0), LOSS[2]], False),
    ],
    ids=["same", "beyond", "shorter", "altered", "between"],
)
def test_a_stopped_run_is_compared_up_to_its_last_step(repeated: Any, equal: bool) -> None:
    assert (difference(LOSS, repeated, stopped_at=3) is None) is equal


def test_a_stopped_run_may_lack_only_its_last_step() -> None:
    """It was cut off between the loss and the evaluation of step 4, but it did evaluate step 2."""
    recorded = {"loss": [(2, 0.5), (4, 0.25)], "eval_pq": [(2, 10.0)]}
    repeated = {"loss": [(2, 0.5), (4, 0.25)], "eval_pq": [(2, 10.0), (4, 20.0)]}
    assert [row.difference for row in compare(recorded, repeated, stopped_at=4)] == [None, None]
    recorded["eval_pq"] = []
    assert compare(recorded, repeated, stopped_at=4)[0].difference == "step 2: recorded nothing, now 10.0"


# Where the arithmetic is another one.

ALLOWED = Tolerance(rtol=0.01, atol=2.0, rtol_source="a", atol_source="b")
RUN = {"loss": [(1, 40.0), (2, 30.0)], "grad_norm": [(1, 5.0), (2, 4.0)], "eval_pq": [(1, 20.0), (2, 50.0)]}


def judged(**changes: Any) -> dict[str, Agreement]:
    """How each metric of a run compares that differs from ``RUN`` in these."""
    rows = compare(RUN, RUN | changes, tolerance=ALLOWED, main_metrics=["eval_pq"])
    return {row.name: row.agreement for row in rows}


def test_equal_bits_are_equal_within_any_tolerance() -> None:
    assert set(judged().values()) == {Agreement.EQUAL}


@pytest.mark.parametrize(
    ("name", "points", "agreement"),
    [
        ("loss", [(1, 40.4), (2, 99.0)], Agreement.WITHIN),
        ("loss", [(1, 40.41), (2, 30.0)], Agreement.DIFFERENT),
        ("loss", [(1, 39.59), (2, 30.0)], Agreement.DIFFERENT),
        ("eval_pq", [(1, 0.0), (2, 48.0)], Agreement.WITHIN),
        ("eval_pq", [(1, 20.0), (2, 52.01)], Agreement.DIFFERENT),
        ("eval_pq", [(1, 20.0), (2, math.nan)], Agreement.DIFFERENT),
        ("loss", [(1, math.nan), (2, 30.0)], Agreement.DIFFERENT),
        ("grad_norm", [(1, 50.0), (2, 4.0)], Agreement.SHOWN),
        ("grad_norm", [(1, 5.0)], Agreement.DIFFERENT),
        ("loss_new", [(1, 5.0)], Agreement.DIFFERENT),
    ],
)
def test_losses_are_judged_where_they_begin_and_metrics_where_they_end(
    name: str, points: Any, agreement: Agreement
) -> None:
    assert judged(**{name: points}) == dict.fromkeys(RUN, Agreement.EQUAL) | {name: agreement}


def test_each_task_of_a_mixture_has_its_loss() -> None:
    first, second = {"region/loss": [(1, 10.0)]}, {"region/loss": [(1, 10.2)]}
    assert compare(first, second, tolerance=ALLOWED)[0].agreement == Agreement.DIFFERENT
    assert compare(first, {"region/loss": [(1, 10.05)]}, tolerance=ALLOWED)[0].agreement == Agreement.WITHIN


def test_a_stopped_run_is_judged_at_its_last_step() -> None:
    rows = compare({"eval_pq": [(1, 20.0)]}, {"eval_pq": [(1, 21.0), (2, 60.0)]}, 1, ALLOWED, ["eval_pq"])
    assert [row.agreement for row in rows] == [Agreement.WITHIN]
    assert rows[0].difference == "step 1: recorded 20, now 21, 1 apart"


def test_the_verdict_is_that_of_the_worst_metric() -> None:
    close, far = {"loss": [(1, 40.1), (2, 30.0)]}, {"eval_pq": [(1, 20.0), (2, 10.0)]}

    def rows(**changes: Any) -> Any:
        return compare(RUN, RUN | changes, tolerance=ALLOWED, main_metrics=["eval_pq"])

    assert verdict(rows()) == "identical"
    assert summary(rows()) == "3 metrics, 6 values, equal bit for bit"
    assert verdict(rows(**close)) == "within tolerance"
    assert summary(rows(**close)) == ("of 3 metrics 2 are equal bit for bit, 1 within the tolerance, 0 not judged")
    assert verdict(rows(**close, **far)) == "different"
    assert summary(rows(**close, **far)) == "1 of 3 metrics differ"


@pytest.mark.parametrize(("bf16", "fp16", "rtol"), [(False, False, 0.01), (True, False, 0.05), (False, True, 0.05)])
def test_half_precision_may_begin_further_apart(bf16: bool, fp16: bool, rtol: float) -> None:
    assert default_tolerance({"bf16": bf16, "fp16": fp16}).rtol == rtol


def test_a_given_figure_replaces_one() -> None:
    assert str(ALLOWED.replaced(None, 0.5)) == (
        "the first logged loss within 1.00% (a), main metrics at the last evaluation within 0.50 points (as given)"
    )


MACHINE = {"device": "cpu", "processor": "x, AVX2", "omp_num_threads": "1", "torch_threads": 1, "version.torch": "2.13"}


def test_the_same_machine_has_the_same_arithmetic() -> None:
    present = {name: str(value) for name, value in MACHINE.items()}  # as MLflow has them
    assert other_arithmetic(MACHINE, present | {"hostname": "y", "version.mlflow": "9"}) == []
    assert other_arithmetic(MACHINE, {"device": "cpu"}) == [], "what is not known beforehand"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("processor", "x, AVX512", "processor: recorded x, AVX2, here x, AVX512"),
        ("device", "NVIDIA H200", "device: recorded cpu, here NVIDIA H200"),
        ("torch_threads", 2, "torch threads: recorded 1, here 2"),
        ("version.torch", "2.14", "version.torch: recorded 2.13, here 2.14"),
    ],
)
def test_another_machine_has_another(name: str, value: Any, reason: str) -> None:
    assert other_arithmetic(MACHINE, MACHINE | {name: value}) == [reason]


def test_what_was_not_recorded_may_be_another() -> None:
    (reason,) = other_arithmetic({"device": "cpu"}, {"device": "cpu", "processor": "x"})
    assert reason == "the processor was not recorded, here it is x"


def test_one_gpu_is_not_even_like_itself() -> None:
    gpu = MACHINE | {"device": "NVIDIA H200"}
    assert other_arithmetic(gpu, gpu) == ["a GPU (NVIDIA H200) adds in no fixed order"]
