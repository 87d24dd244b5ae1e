"""What a run was made with and what is here; what its record says twice must be the same."""

from tune.reproduction.verdict import differences, inconsistencies

LOSS = [(1, 0.1), (2, 1 / 3), (3, 2.5e-7)]


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
    now = THEN | {"hostname": "y", "git_commit": "c", "device": "NVIDIA H200", "processor": "other"}
    assert differences(THEN, now, {}, {}) == []
