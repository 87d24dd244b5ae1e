"""What a run's checkpoints hold on disk, which of them it goes on from, and what is left of them at its end.

``checkpoint-N`` holds the weights once, as safetensors with configuration, tokenizer and settings, whatever DeepSpeed's
stage: it opens with ``load_model`` at any time. Beside them is what only going on needs: the optimizer's state, which
DeepSpeed writes in files of its own, one per rank, the schedule's, the random generators'. A run that ends drops that.

DeepSpeed reads its files without restriction, so they could run code. They are trusted where the run itself has written
them, directly below its own folder, and nowhere else.
"""

import json
import shutil
from pathlib import Path

from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from psalm.train.fields import SettingError

DEEPSPEED_STATE = "global_step*"
RESUME_STATE = (
    TRAINER_STATE_NAME,  # first: without it a checkpoint is not gone on from
    OPTIMIZER_NAME,
    SCHEDULER_NAME,
    SCALER_NAME,
    "rng_state*.pth",
    "loss_window_*.json",
    DEEPSPEED_STATE,
    "latest",
    "zero_to_*.py",  # DeepSpeed's, for getting weights out of its files
)
"""What a checkpoint holds besides the model, as patterns of names."""


def checkpoint_folder(output_dir: str | Path, step: int) -> Path:
    """Where a run saves its checkpoint of a global step."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def checkpoint_step(checkpoint: str | Path) -> int:
    """The global step at which a checkpoint was saved.

    Raises:
        SettingError: the folder is no checkpoint of a run, or holds nothing but weights.
    """
    folder = Path(checkpoint)
    if any(folder.glob("*.safetensors")) and not any(_optimizer_states(folder).values()):
        raise SettingError(
            f"resume_from_checkpoint must hold the optimizer's state, but {folder} holds weights alone, as after a "
            "run's end; give a checkpoint of a run that was interrupted"
        )
    path = folder / TRAINER_STATE_NAME
    if not path.is_file():
        raise SettingError(f"resume_from_checkpoint must be a checkpoint's folder, but {path} is missing; give another")
    return int(json.loads(path.read_text())["global_step"])


def resumed_step(checkpoint: str | Path, output_dir: str | Path, *, deepspeed: bool) -> int:
    """The global step after which a run goes on from a checkpoint of its own.

    Args:
        checkpoint: the checkpoint's folder.
        output_dir: the run's.
        deepspeed: whether the run uses it.

    Raises:
        SettingError: the checkpoint is not directly below the run's folder, or was saved with DeepSpeed and the run is
            without it, or the other way round; or see ``checkpoint_step``.
    """
    folder = Path(checkpoint)
    if folder.resolve().parent != Path(output_dir).resolve():
        raise SettingError(
            f"resume_from_checkpoint must be a {PREFIX_CHECKPOINT_DIR}-N in output_dir, which is {output_dir}, but got "
            f"{checkpoint}: reading an optimizer's state can run code, so only the run's own is trusted; "
            "give the output_dir of the run that goes on"
        )
    step = checkpoint_step(checkpoint)
    if not _optimizer_states(folder)[deepspeed]:
        saved, given = ("without", "with") if deepspeed else ("with", "without")
        raise SettingError(
            f"resume_from_checkpoint must be of a run {given} DeepSpeed, as this one is, but {checkpoint} was saved "
            f"{saved} it; give the deepspeed setting that the run was begun with"
        )
    return step


def _optimizer_states(folder: Path) -> dict[bool, bool]:
    """Whether a checkpoint has an optimizer's state, with DeepSpeed (True) and without (False)."""
    return {True: any(folder.glob(DEEPSPEED_STATE)), False: (folder / OPTIMIZER_NAME).is_file()}


def finish_checkpoints(output_dir: str | Path, last_step: int | None) -> None:
    """Drops what only going on needs from every checkpoint of a run that has ended; their weights are kept.

    Args:
        output_dir: the run's folder.
        last_step: the step of the run's final model where that has been saved: a checkpoint of it says the same.
    """
    for checkpoint in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if last_step is not None and checkpoint == checkpoint_folder(output_dir, last_step):
            shutil.rmtree(checkpoint)
            continue
        for path in [path for pattern in RESUME_STATE for path in checkpoint.glob(pattern)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
