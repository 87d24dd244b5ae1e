"""How a run's state goes to disk and comes back: what stands in a checkpoint is told in ``checkpoint_files``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import DeepSpeedSchedulerWrapper
from transformers import PreTrainedTokenizerBase
from transformers.trainer import SCHEDULER_NAME, TRAINING_ARGS_NAME

SETTINGS_FILE = "settings.json"
"""In every checkpoint: the run's resolved settings."""


class SavingTrainer(transformers.Trainer):
    """A Trainer whose checkpoints hold the weights once, whole, as safetensors, also those of DeepSpeed.

    DeepSpeed would save them a second time in files of its own, and frozen ones a third time. Its engine saves and
    loads nothing but the optimizer's state here.

    Args:
        tokenizer, settings: saved beside the weights: what ``psalm.train.evaluate`` needs, in one folder.
        others: as in transformers.
    """

    def __init__(self, *, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any], **others: Any) -> None:
        super().__init__(**others)
        self.tokenizer = tokenizer
        self.settings = dict(settings)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As in transformers; weights of a checkpoint are loaded while the model is whole, before DeepSpeed has it."""
        if isinstance(resume_from_checkpoint, str) and self.is_deepspeed_enabled:
            self._load_from_checkpoint(resume_from_checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """transformers only warns of weights that a checkpoint lacks, or has too many of."""
        if wrong := [*load_result.missing_keys, *load_result.unexpected_keys]:
            raise ValueError(f"{len(wrong)} names of weights of the checkpoint are not the model's: {', '.join(wrong)}")

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        if resume_from_checkpoint is None or not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        found, _ = self.model_wrapped.load_checkpoint(resume_from_checkpoint, load_module_strict=False)
        if found is None:
            raise ValueError(
                f"DeepSpeed cannot go on from {resume_from_checkpoint}; "
                "give the deepspeed setting that the run was begun with"
            )
        self._load_optimizer_and_scheduler(resume_from_checkpoint)  # the scheduler's; the optimizer's is there
        return prepared

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # The engine's entry "module" has the weights; entries of the client's state come last and replace it.
        self.model_wrapped.save_checkpoint(output_dir, client_state={"module": {}}, exclude_frozen_parameters=True)
        if self.args.should_save and not isinstance(self.lr_scheduler, DeepSpeedSchedulerWrapper):
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(self.args.output_dir if output_dir is None else output_dir)
            (folder / TRAINING_ARGS_NAME).unlink()  # a pickle, which says no more than the settings
            self.tokenizer.save_pretrained(folder)
            (folder / SETTINGS_FILE).write_text(json.dumps(self.settings, indent=2))
