"""Which checkpoints a run goes on from, what is told of the others, and what is left of them at its end."""

import binascii
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from psalm.train import checkpoint_files
from psalm.train.checkpoint_files import (
    MANIFEST,
    checkpoint_folder,
    checkpoint_step,
    drop_checkpoints,
    fault_of,
    finish_checkpoints,
    last_good_checkpoint,
    resumed_step,
    write_manifest,
)
from psalm.train.fields import SettingError

MODEL = {"config.json", "model.safetensors", "settings.json", "tokenizer.json"}
OF_ALL = {"trainer_state.json", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth", "loss_window_0.json"}
WITHOUT = {"optimizer.pt", "scaler.pt", "rng_state.pth"}
WITH = {"global_step3/zero_pp_rank_0_mp_rank_00_optim_states.pt", "latest"}


def checkpoint(run: Path, step: int, names: set[str], complete: bool = True) -> Path:
    folder = checkpoint_folder(run, step)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"global_step": step}))
    if complete:
        write_manifest(folder, names)
    return folder


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("state", "deepspeed"), [(WITHOUT, False), (WITH, True)])
def test_a_run_goes_on_after_the_checkpoint_s_step(tmp_path: Path, state: set[str], deepspeed: bool) -> None:
    folder = checkpoint(tmp_path, 3, MODEL | OF_ALL | state)
    assert checkpoint_step(folder) == 3
    assert resumed_step(folder, tmp_path, deepspeed=deepspeed) == 3


def test_a_run_that_is_reached_by_a_link_is_the_run_s_own(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "run", 3, MODEL | OF_ALL | WITHOUT)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert resumed_step(folder, tmp_path / "link", deepspeed=False) == 3


@pytest.mark.parametrize("place", ["other", "run/below", "run/link"])
def test_a_checkpoint_of_another_folder_is_not_trusted(tmp_path: Path, place: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    foreign = checkpoint(tmp_path / ("run/below" if place == "run/below" else "other"), 3, MODEL | OF_ALL | WITH)
    if place == "run/link":
        (run / "checkpoint-3").symlink_to(foreign)
        foreign = run / "checkpoint-3"
    with pytest.raises(SettingError) as error:
        resumed_step(foreign, run, deepspeed=True)
    assert str(error.value) == (
        f"resume_from_checkpoint must be a checkpoint-N in output_dir, which is {run}, but got {foreign}: "
        "reading an optimizer's state can run code, so only the run's own is trusted; "
        "give the output_dir of the run that goes on"
    )


@pytest.mark.parametrize("deepspeed", [False, True])
def test_a_checkpoint_of_weights_alone_cannot_be_gone_on_from(tmp_path: Path, deepspeed: bool) -> None:
    folder = checkpoint(tmp_path, 3, MODEL)
    with pytest.raises(SettingError) as error:
        resumed_step(folder, tmp_path, deepspeed=deepspeed)
    assert str(error.value) == (
        f"resume_from_checkpoint must hold the optimizer's state, but {folder} holds weights alone, "
        "as after a run's end; give a checkpoint of a run that was interrupted"
    )


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SettingError) as error:
        checkpoint_step(tmp_path)
    assert str(error.value) == (
        f"resume_from_checkpoint must be a checkpoint's folder, but {tmp_path}/trainer_state.json is missing; "
        "give another"
    )


@pytest.mark.parametrize(("state", "saved", "run"), [(WITH, "with", "without"), (WITHOUT, "without", "with")])
def test_a_run_goes_on_as_it_began(tmp_path: Path, state: set[str], saved: str, run: str) -> None:
    """Without DeepSpeed its state would be passed over, and the optimizer would begin anew."""
    folder = checkpoint(tmp_path, 3, MODEL | OF_ALL | state)
    with pytest.raises(SettingError) as error:
        resumed_step(folder, tmp_path, deepspeed=run == "with")
    assert str(error.value) == (
        f"resume_from_checkpoint must be of a run {run} DeepSpeed, as this one is, but {folder} was saved {saved} it; "
        "give the deepspeed setting that the run was begun with"
    )


@pytest.mark.parametrize("state", [WITHOUT, WITH])
def test_weights_are_left_of_a_finished_run(tmp_path: Path, state: set[str]) -> None:
    checkpoint(tmp_path, 3, MODEL | OF_ALL | state)
    finish_checkpoints(tmp_path)
    assert names_in(tmp_path) == {f"checkpoint-3/{name}" for name in MODEL | {MANIFEST}}
    assert not (tmp_path / "checkpoint-3" / "global_step3").exists()
    assert fault_of(tmp_path / "checkpoint-3") is None, "its manifest names what is left"
    assert last_good_checkpoint(tmp_path, deepspeed=state is WITH) == (
        None,
        ["checkpoint-3 cannot be gone on from: it holds weights alone, as after a run's end"],
    )


def test_unfinished_checkpoints_do_not_outlive_a_finished_run(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3, MODEL | OF_ALL | WITHOUT)
    checkpoint(tmp_path, 6, MODEL, complete=False)
    finish_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_all_checkpoints_of_a_run_are_dropped(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3, MODEL | OF_ALL | WITHOUT)
    checkpoint(tmp_path, 6, MODEL, complete=False)
    for kept in ("model", "checkpoint-best", "artifacts"):
        (tmp_path / kept).mkdir()
    drop_checkpoints(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "checkpoint-best", "artifacts"}


def test_a_deletion_that_is_cut_short_leaves_an_unfinished_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        (folder / "optimizer.pt").unlink()
        raise KeyboardInterrupt

    checkpoint(tmp_path, 3, MODEL | OF_ALL | WITHOUT)
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        drop_checkpoints(tmp_path)
    assert fault_of(tmp_path / "checkpoint-3") == "it is unfinished: manifest.json is missing"


def truncate(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes((folder / "optimizer.pt").read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "optimizer.pt").read_bytes())
    content[3] ^= 1
    (folder / "optimizer.pt").write_bytes(content)


def forge(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / MANIFEST).write_text(text) and None


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "optimizer.pt has 18 bytes instead of 19"),
    "a bit flipped": (flip_a_bit, "optimizer.pt is damaged: its checksum is "),
    "a file missing": (lambda folder: (folder / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "it is unfinished: manifest.json is missing"),
    "half a manifest": (forge('{"files": {"optim'), "manifest.json cannot be read (Unterminated string"),
    "another manifest": (forge("[]"), "manifest.json cannot be read (no manifest: "),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGES.values(), ids=DAMAGES)
def test_the_one_before_a_damaged_checkpoint_is_gone_on_from(
    tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    names = MODEL | OF_ALL | WITHOUT
    good, bad = (checkpoint(tmp_path, step, names) for step in (9, 10))  # 10 is newer than 9
    assert last_good_checkpoint(tmp_path, deepspeed=False) == (bad, [])
    damage(bad)
    found, (line,) = last_good_checkpoint(tmp_path, deepspeed=False)
    assert found == good
    assert line.startswith(f"checkpoint-10 cannot be gone on from: {told}")


def test_checkpoints_of_the_other_kind_are_told(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3, MODEL | OF_ALL | WITH)
    assert last_good_checkpoint(tmp_path, deepspeed=False) == (
        None,
        ["checkpoint-3 cannot be gone on from: it was saved with DeepSpeed"],
    )


def test_no_checkpoint_is_none_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "link").mkdir()
    (tmp_path / "checkpoint-3").symlink_to(tmp_path / "link")
    (tmp_path / "checkpoint-best").mkdir()
    assert last_good_checkpoint(tmp_path, deepspeed=False) == (None, [])
    assert last_good_checkpoint(tmp_path / "nowhere", deepspeed=False) == (None, [])


@pytest.mark.parametrize("damage", [truncate, lambda folder: (folder / MANIFEST).unlink()])
def test_a_checkpoint_that_is_not_whole_is_refused_where_it_is_named(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = checkpoint(tmp_path, 3, MODEL | OF_ALL | WITHOUT)
    damage(folder)
    with pytest.raises(SettingError) as error:
        resumed_step(folder, tmp_path, deepspeed=False)
    assert str(error.value).startswith(f"resume_from_checkpoint must be whole, but {folder} is not: ")
    assert str(error.value).endswith("; give an earlier one, or true for the last good one")


def test_files_larger_than_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "_CHUNK", 5)
    folder = checkpoint(tmp_path, 3, MODEL)
    written = (folder / MANIFEST).read_text()
    monkeypatch.undo()
    write_manifest(folder, MODEL)
    assert (folder / MANIFEST).read_text() == written
    content = (folder / "config.json").read_bytes()
    assert json.loads(written)["files"]["config.json"] == {
        "bytes": len(content),
        "crc32": f"{binascii.crc32(content):08x}",
    }
