"""Scores a finished run: ``python -m psalm.train.evaluate --checkpoint DIR [--zero_deformable_tokens] [--split val]``.

DIR is a checkpoint or the final model of a run; it holds the weights, the tokenizer and the run's settings. Other flags
replace settings, such as ``--panoptic_json_path`` where the data lies elsewhere, or ``--per_device_eval_batch_size``.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState

from psalm.data.coco_panoptic import SPLITS, Split
from psalm.data.collator import Collator
from psalm.data.examples import PanopticEvaluation
from psalm.data.prompts import PromptBuilder
from psalm.model.checkpoints import load_model
from psalm.train.arguments import SettingError, argument_fields, check_settings, parse_settings
from psalm.train.command_line import read_flags
from psalm.train.distributed import leave_process_group
from psalm.train.fields import TRUE, nearest
from psalm.train.quiet import quiet_libraries
from psalm.train.train import load_split
from psalm.train.trainer import SETTINGS_FILE, PsalmTrainer


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
        changes: settings that replace those of the run. DeepSpeed is left out: nothing is trained.

    Raises:
        SettingError: the folder is no checkpoint, or a changed setting cannot be used.
        ValueError: weights or data are missing.
    """
    quiet_libraries()
    checkpoint = Path(checkpoint).resolve()
    of_run = {"deepspeed": None, "output_dir": str(checkpoint)}
    settings = check_settings(read_settings(checkpoint) | of_run | dict(changes or {}))
    model, tokenizer = load_model(checkpoint)
    model.float()  # DeepSpeed saves what it computed with; precision is now the trainer's business, as in training
    model.zero_deformable_tokens = zero_deformable_tokens
    data = load_split(settings, split)
    trainer = PsalmTrainer(
        model,
        parse_settings(settings).training,
        schedule=None,
        evaluation=PanopticEvaluation(data, PromptBuilder(tokenizer), settings["image_size"]),
        collator=Collator(tokenizer.pad_token_id),
        tokenizer=tokenizer,
        settings=settings,
    )
    return trainer.evaluate()


def read_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that saved a checkpoint.

    Raises:
        SettingError: the folder holds none.
    """
    path = checkpoint / SETTINGS_FILE
    if not path.is_file():
        raise SettingError(
            f"checkpoint must be a folder that a run has saved, but {path} is missing; "
            "give a run's checkpoint-N or model"
        )
    settings: dict[str, Any] = json.loads(path.read_text())
    return settings


def main() -> None:
    """The command line; a wrong setting ends with one line on stderr and exit code 2."""
    try:
        flags = read_flags(
            sys.argv[1:], argument_fields(), extra=("checkpoint", "split"), switches=("zero_deformable_tokens",)
        )
        checkpoint, split = flags.pop("checkpoint", None), flags.pop("split", "val")
        if checkpoint is None:
            raise SettingError("checkpoint must be given; write --checkpoint DIR")
        if split not in SPLITS:
            hint = nearest(str(split), SPLITS)
            raise SettingError(f"split must be one of {', '.join(SPLITS)}, but got {split!r}{hint}")
        zeroed = str(flags.pop("zero_deformable_tokens", "false")).lower() in TRUE
        metrics = evaluate_checkpoint(checkpoint, cast(Split, split), zeroed, flags)
    except SettingError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    if PartialState().is_main_process:
        for name, value in metrics.items():
            sys.stdout.write(f"{name} {value:.4f}\n")
    leave_process_group()


if __name__ == "__main__":
    main()
