"""Two runs are equal only if every bit of every value is, and their steps are."""

import math
from typing import Any

import pytest

from tune.verdict import compare, differences, inconsistencies

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


def test_an_overview_that_contradicts_its_history() -> None:
    assert inconsistencies({"loss": 2.5e-7}, {"loss": LOSS}) == []
    assert inconsistencies({"loss": 0.5}, {"loss": LOSS}) == [
        "loss: the record shows 0.5 as its last value, but its history does not end with it"
    ]


THEN = {"source_fingerprint": "a", "data_fingerprint_val": "1", "version.torch": "2.13.0", "hostname": "x", "seed": "0"}


def test_what_differs_is_named() -> None:
    now = THEN | {"source_fingerprint": "b", "version.torch": "2.14.0", "data_fingerprint_val": "2"}
    old, new = {"psalm/a.py": "1", "psalm/gone.py": "1"}, {"psalm/a.py": "2", "tune/new.py": "1"}
    assert differences(THEN, now, old, new) == [
        "sources differ: psalm/a.py, psalm/gone.py, tune/new.py",
        "data fingerprint val differs: recorded 1, here 2",
        "version.torch differs: recorded 2.13.0, here 2.14.0",
    ]


def test_what_was_never_recorded_differs() -> None:
    now = THEN | {"weights_fingerprint_vision_tower": "7"}
    assert differences(THEN, now, {}, {}) == ["weights fingerprint vision tower differs: recorded none, here 7"]


def test_another_machine_and_seed_tag_are_no_difference() -> None:
    assert differences(THEN, THEN | {"hostname": "y", "git_commit": "c"}, {}, {}) == []
