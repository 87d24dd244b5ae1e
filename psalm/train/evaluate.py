"""Scores a finished run: ``python -m psalm.train.evaluate --checkpoint DIR [--seg_task region] [--split val]``.

DIR is a checkpoint or the final model of a run; it holds the weights, the tokenizer and the run's settings. Other flags
replace settings: ``--seg_task`` scores other tasks than the run's, ``--panoptic_json_path`` data that lie elsewhere,
``--save_predictions`` writes the official result files below ``--output_dir``. ``--zero_deformable_tokens`` shows what
those tokens contribute.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState

from psalm.data.collator import Collator
from psalm.data.dataset import SPLITS, Split
from psalm.data.errors import DataError
from psalm.data.prompts import PromptBuilder
from psalm.data.questions import Evaluation
from psalm.model.checkpoints import load_model
from psalm.train.arguments import RENAMED, RETIRED, SettingError, argument_fields, check_settings, parse_settings
from psalm.train.command_line import read_flags
from psalm.train.distributed import leave_process_group
from psalm.train.fields import TRUE, nearest
from psalm.train.quiet import quiet_libraries
from psalm.train.saving import SETTINGS_FILE
from psalm.train.task_data import load_training, load_validation
from psalm.train.tasks import tasks_of
from psalm.train.train import task_examples
from psalm.train.trainer import PsalmTrainer


def evaluate_checkpoint(
    checkpoint: str | Path,
    split: Split = "val",
    zero_deformable_tokens: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Quality of saved weights on a split, ``eval_*`` in percent, as at the end of their training.

    Args:
        checkpoint: folder of a run's checkpoint or final model.
        split: "val", or "train".
        zero_deformable_tokens: replace the deformable projector's tokens by zeros, to see what they contribute.
        changes: settings that replace those of the run; a ``seg_task`` among them replaces all tasks of the run.
            DeepSpeed is left out: nothing is trained.

    Raises:
        SettingError: the folder is no checkpoint, or a changed setting cannot be used.
        ValueError: weights or data are missing.
    """
    quiet_libraries()
    checkpoint = Path(checkpoint).resolve()
    of_run = {"deepspeed": None, "output_dir": str(checkpoint)}
    changes = dict(changes or {})
    if "seg_task" in changes:
        changes.setdefault("cross_image_seg_task", False)
        changes.setdefault("data_ratio", None)
    settings = check_settings(read_settings(checkpoint) | of_run | changes)
    read = load_validation if split == "val" else load_training
    data = {task: read(settings, task) for task in tasks_of(settings)}
    model, tokenizer = load_model(checkpoint)
    model.float()  # DeepSpeed saves what it computed with; precision is now the trainer's business, as in training
    model.zero_deformable_tokens = zero_deformable_tokens
    prompts = PromptBuilder(tokenizer)
    trainer = PsalmTrainer(
        model,
        parse_settings(settings).training,
        schedule=None,
        evaluations={task: Evaluation(task_examples(settings, part, prompts)) for task, part in data.items()},
        collator=Collator(tokenizer.pad_token_id),
        tokenizer=tokenizer,
        settings=settings,
    )
    return trainer.evaluate()


def read_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that saved a checkpoint.

    Raises:
        SettingError: the folder holds none, or no weights.
    """
    path = checkpoint / SETTINGS_FILE
    if not path.is_file():
        raise SettingError(
            f"checkpoint must be a folder that a run has saved, but {path} is missing; "
            "give a run's checkpoint-N or model"
        )
    if not any(checkpoint.glob("*.safetensors")):
        raise SettingError(
            f"checkpoint must hold weights, but {checkpoint} has no *.safetensors, as where saving it was cut off; "
            "give another checkpoint-N or model"
        )
    settings: dict[str, Any] = json.loads(path.read_text())
    return settings


def main() -> None:
    """The command line; a wrong setting ends with one line on stderr and exit code 2."""
    try:
        flags = read_flags(
            sys.argv[1:],
            argument_fields(),
            extra=("checkpoint", "split", "local_rank"),
            retired=RETIRED,
            switches=("zero_deformable_tokens",),
            renamed=RENAMED,
        )
        flags.pop("local_rank", None)
        checkpoint, split = flags.pop("checkpoint", None), flags.pop("split", "val")
        if checkpoint is None:
            raise SettingError("checkpoint must be given; write --checkpoint DIR")
        if split not in SPLITS:
            hint = nearest(str(split), SPLITS)
            raise SettingError(f"split must be one of {', '.join(SPLITS)}, but got {split!r}{hint}")
        zeroed = str(flags.pop("zero_deformable_tokens", "false")).lower() in TRUE
        metrics = evaluate_checkpoint(checkpoint, cast(Split, split), zeroed, flags)
    except (SettingError, DataError) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    if PartialState().is_main_process:
        for name, value in metrics.items():
            sys.stdout.write(f"{name} {value:.4f}\n")
    leave_process_group()


if __name__ == "__main__":
    main()
