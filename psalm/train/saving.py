"""How a run's state goes to disk and comes back: what stands in a checkpoint is told in ``checkpoint_files``."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from accelerate.utils import DeepSpeedSchedulerWrapper
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerControl
from transformers.trainer import SCHEDULER_NAME, TRAINING_ARGS_NAME

from psalm.train.checkpoint_files import (
    DEEPSPEED_LATEST,
    checkpoint_folder,
    checkpoint_step,
    drop_checkpoint,
    write_manifest,
)
from psalm.train.disk import (
    GB,
    Budget,
    RunCheckpoints,
    is_full,
    optimizer_bytes,
    small_bytes,
    weights_bytes,
)
from psalm.train.distributed import from_rank_0
from psalm.train.scoring import of_all_ranks

SETTINGS_FILE = "settings.json"
"""In every checkpoint: the run's resolved settings."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class SavingTrainer(transformers.Trainer):
    """A Trainer whose checkpoints hold the weights once, whole, as safetensors, also those of DeepSpeed.

    DeepSpeed would save them a second time in files of its own, and frozen ones a third time. Its engine saves and
    loads nothing but the optimizer's state here.

    Checkpoints and the final model are complete or not there. One that finds no room (see ``disk``) is left out, and
    training goes on.

    Args:
        tokenizer, settings: saved beside the weights: what ``psalm.train.evaluate`` needs, in one folder.
        others: as in transformers.
    """

    def __init__(self, *, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any], **others: Any) -> None:
        super().__init__(**others)
        self.control: TrainerControl
        self.tokenizer = tokenizer
        self.settings = dict(settings)
        self.record_event: Callable[..., None] | None = None
        """Told on rank 0 of what is left out: ``record_event("checkpoint_skipped", step=..., reason=...)``."""
        limit = self.args.checkpoint_budget_gb
        budget = None if limit is None else Budget(Path(self.args.checkpoint_budget_dir), int(limit * GB))
        self._checkpoints = RunCheckpoints(Path(self.args.output_dir), budget)
        self._full: str | None = None  # why this rank could not write

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As in transformers; weights of a checkpoint are loaded while the model is whole, before DeepSpeed has it."""
        checkpoint = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        if self.is_world_process_zero():
            self._checkpoints.begin(0 if checkpoint is None else checkpoint_step(checkpoint))
        if checkpoint is not None and self.is_deepspeed_enabled:
            self._load_from_checkpoint(checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def save_final_model(self, folder: Path) -> bool:
        """Saves weights, tokenizer and settings, or takes them from a checkpoint of this step.

        Returns:
            Whether there was room for them, on every rank.
        """
        if self._of_rank_0(lambda: self._checkpoints.make_final(self.state.global_step, folder)):
            return True
        needed = weights_bytes(self.model) + small_bytes(())
        return self._save_whole("model", folder, needed, lambda: self.save_model(str(folder)))

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

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        folder = checkpoint_folder(self.args.output_dir, step)
        write = partial(super()._save_checkpoint, model, trial)
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # transformers would delete too early
        saved = self._save_whole("checkpoint", folder, self._checkpoint_bytes(), write)
        self.args.save_total_limit = limit
        if saved and self.is_world_process_zero():
            self._checkpoints.add(step, limit, self.state.best_global_step)

    def _checkpoint_bytes(self) -> int:
        """What a checkpoint takes at most."""
        parts = None
        if self.is_deepspeed_enabled:
            parts = self.args.world_size if self.model_wrapped.save_zero_checkpoint else 1
        state = optimizer_bytes(self.optimizer, parts)
        return weights_bytes(self.model) + state + small_bytes(self.state.log_history)

    def _save_whole(self, kind: str, folder: Path, needed: int, write: Callable[[], None]) -> bool:
        """Writes a folder and then its manifest, or leaves nothing of it and says why. The same on every rank.

        Args:
            kind: what it is, for records and logs.
            folder: it replaces one that is there.
            needed: bytes at most.
            write: writes the files; called on every rank.
        """
        start = time.perf_counter()
        first = self.is_world_process_zero()
        self._full = None
        with ExitStack() as stack:
            if first and self._checkpoints.budget is not None:
                stack.enter_context(self._checkpoints.budget.held())
            reason = self._begin(folder, needed)
            if reason is None:
                with self._writing():
                    write()
                reason = self._complete(folder)
        if reason is not None and first:
            logger.warning("%s of step %d is not saved: %s", kind, self.state.global_step, reason)
            if self.record_event is not None:
                self.record_event(f"{kind}_skipped", step=self.state.global_step, reason=reason)
        # No ``self.log``: it would add to the state that checkpoints hold, and to the steps that have an epoch.
        seconds = {f"system/{kind}_seconds": time.perf_counter() - start}
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, seconds)
        return reason is None

    def _begin(self, folder: Path, needed: int) -> str | None:
        """Makes room for a folder; why there is none, on every rank."""

        def begin() -> str | None:
            with self._writing():
                self._full = self._checkpoints.make_room(folder, needed, self.state.best_global_step)
            return self._full

        return self._of_rank_0(begin)

    def _complete(self, folder: Path) -> str | None:
        """Ends the writing of a folder: with a manifest if every rank could write, else without the folder.

        Returns:
            Why it is not there, on every rank.
        """
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        of_ranks = of_all_ranks((self._full, names))

        def end() -> str | None:
            self._full = next((full for full, _ in of_ranks if full is not None), None)
            if self._full is None:
                with self._writing():
                    write_manifest(folder, [name for _, names in of_ranks for name in names])
            if self._full is not None:
                drop_checkpoint(folder)
            return self._full

        return self._of_rank_0(end)

    def _of_rank_0(self, answer: Callable[[], T]) -> T | None:
        """What rank 0 answers, on every rank."""
        return from_rank_0(answer() if self.is_world_process_zero() else None)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A write of this rank alone: that there is no room for it is kept for ``_complete``, where all ranks hear.

        The others would wait for this one in the collectives between here and there.
        """
        try:
            yield
        except Exception as error:
            if not is_full(error):
                raise
            said = " ".join(str(error).split())
            self._full = f"no room was left while rank {self.args.process_index} wrote it ({said})"

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            with self._writing():
                super()._save_optimizer_and_scheduler(output_dir)
            return
        tag = f"global_step{self.state.global_step}"
        self._save_optimizer_of_deepspeed(output_dir, tag)
        if self.args.should_save:
            with self._writing():
                (Path(output_dir) / DEEPSPEED_LATEST).write_text(tag)
                if not isinstance(self.lr_scheduler, DeepSpeedSchedulerWrapper):
                    torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _save_optimizer_of_deepspeed(self, output_dir: str, tag: str) -> None:
        engine = self.model_wrapped
        save = engine.checkpoint_engine.save

        def save_or_note(state_dict: Mapping[str, Any], path: str) -> None:
            with self._writing():
                save(state_dict, path)

        engine.checkpoint_engine.save = save_or_note
        engine._copy_recovery_script = lambda _: None  # scripts that would look for weights in these files
        # The engine's entry "module" has the weights; entries of the client's state come last and replace it.
        engine.save_checkpoint(
            output_dir, tag, client_state={"module": {}}, save_latest=False, exclude_frozen_parameters=True
        )
        engine.checkpoint_engine.save = save

    def _save_scaler(self, output_dir: str) -> None:
        with self._writing():
            super()._save_scaler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        with self._writing():
            super()._save_rng_state(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with self._writing():
            super()._save(output_dir, state_dict)
            if self.args.should_save:
                folder = Path(self.args.output_dir if output_dir is None else output_dir)
                (folder / TRAINING_ARGS_NAME).unlink()  # a pickle, which says no more than the settings
                self.tokenizer.save_pretrained(folder)
                (folder / SETTINGS_FILE).write_text(json.dumps(self.settings, indent=2))
