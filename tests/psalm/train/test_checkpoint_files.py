import json
from pathlib import Path

import pytest

from psalm.train.checkpoint_files import checkpoint_folder, checkpoint_step, finish_checkpoints, resumed_step
from psalm.train.fields import SettingError

MODEL = {"config.json", "model.safetensors", "settings.json", "tokenizer.json"}
OF_ALL = {"trainer_state.json", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth", "loss_window_0.json"}
WITHOUT = {"optimizer.pt", "scaler.pt", "rng_state.pth"}
WITH = {"global_step3/zero_pp_rank_0_mp_rank_00_optim_states.pt", "latest", "zero_to_fp32.py", "zero_to_torch.py"}


def checkpoint(run: Path, step: int, names: set[str]) -> Path:
    folder = checkpoint_folder(run, step)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"global_step": step}))
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
    for step in (3, 6):
        checkpoint(tmp_path, step, MODEL | OF_ALL | state)
    finish_checkpoints(tmp_path, last_step=6)
    assert names_in(tmp_path) == {f"checkpoint-3/{name}" for name in MODEL}
    assert not (tmp_path / "checkpoint-3" / "global_step3").exists()


def test_the_last_checkpoint_is_kept_where_there_is_no_final_model(tmp_path: Path) -> None:
    for step in (3, 6):
        checkpoint(tmp_path, step, MODEL | OF_ALL | WITHOUT)
    finish_checkpoints(tmp_path, last_step=None)
    assert names_in(tmp_path) == {f"checkpoint-{step}/{name}" for step in (3, 6) for name in MODEL}
