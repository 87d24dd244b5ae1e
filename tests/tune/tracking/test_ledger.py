"""What the tracker keeps on disk: names, and runs that end and go on."""

from pathlib import Path

import pytest

from tune.tracking.ledger import Ledger, Run, TrackingError, run_name


def test_names_read_like_the_settings() -> None:
    params = {"swin_type": "base", "learning_rate": 6e-5, "mm_n_points": 4, "mm_n_heads": 8, "mm_hidden_dim": 256}
    assert run_name(7, params) == "0007 d256 h8 p4 lr6.0e-5 base"
    assert run_name(12, {"weight_decay": 0.05, "fp16": True}) == "0012 weight_decay=5.0e-2 fp16=True"
    assert run_name(3, {}) == "0003"
    forked = {"learning_rate": 1e-3, "learning_rate_changes": {"20": 8e-4, "40": 1e-3}}
    assert run_name(5, forked) == "0005 lr1.0e-3 lr8.0e-4@20 lr1.0e-3@40"
    assert run_name(4, {"vision_tower": "/data/weights/swin_base.pkl", "seed": 7}) == "0004 swin_base.pkl seed=7"


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "sqlite:////a.db", "tiny")
    ledger.runs["0"] = Run(name="0000", started=1.5, params={"learning_rate": 6e-5}, tags={"a": "b"})
    ledger.runs["0"].close("FAILED", {"reason": "r"}, 2.5)
    ledger.save()
    loaded = Ledger.load(tmp_path)
    assert loaded is not None
    assert (loaded.uri, loaded.name, loaded.key, loaded.runs) == (ledger.uri, "tiny", ledger.key, ledger.runs)


def test_no_ledger_and_a_damaged_one(tmp_path: Path) -> None:
    assert Ledger.load(tmp_path) is None
    (tmp_path / "tracking.json").write_text('{"uri": 1}')
    with pytest.raises(ValueError, match="is not what a search's tracker writes"):
        Ledger.load(tmp_path)


def test_a_run_that_goes_on_forgets_its_end() -> None:
    run = Run(name="0000", started=1.5)
    run.reopen()
    assert run.stale_tags is None, "it had not ended"
    run.close("FAILED", {"reason": "r"}, 2.5)
    run.reopen()
    assert run == Run(name="0000", started=1.5, stale_tags=["reason"])


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path, "u", "tiny"), Ledger(tmp_path, "u", "tiny")
    first.hold()
    with pytest.raises(TrackingError, match="its own process brings its records"):
        second.hold()
    first.release()
    second.hold()
    second.release()
