"""PSALM's trainer: transformers' loop with PSALM's schedule, losses and evaluation.

Letters: W ranks, A accumulation steps (micro-batches of one optimizer step on one rank).
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from psalm.data.examples import PanopticEvaluation
from psalm.data.schedule import TrainingSchedule
from psalm.evaluation.panoptic_quality import PanopticQuality
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.train.loss_window import LossWindow
from psalm.train.measures import StepClock, peak_memory_mb
from psalm.train.scoring import ScoredImage, count_image, make_loader, score_batches, shard, sum_over_ranks

SETTINGS_FILE = "settings.json"
"""In every checkpoint: the run's resolved settings."""
SHOWN_IMAGES = 4
"""Validation images kept for the picture of predictions."""

SPEED_KEYS = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss")
"""What transformers logs at the end of a run about that process's share of it: not the same for a resumed run."""


class PsalmTrainer(transformers.Trainer):
    """Trains on a ``TrainingSchedule`` and scores on a ``PanopticEvaluation``.

    Losses are normalised over the whole optimizer step: the criterion divides by the masks of all ranks and
    micro-batches, so that neither the number of ranks nor accumulation changes them. Each is logged under its name,
    averaged over the steps since the last log. Besides, logs hold the real ``epoch`` and figures of the machine below
    ``system/``.

    Args:
        model, args, callbacks: as in transformers.
        schedule: the samples in the order of training.
        evaluation: the images to score on.
        collator: examples -> batch.
        tokenizer, settings: saved with every checkpoint.
    """

    def __init__(
        self,
        model: PsalmForSegmentation,
        args: transformers.TrainingArguments,
        *,
        schedule: TrainingSchedule | None,
        evaluation: PanopticEvaluation,
        collator: Callable[[Sequence[Any]], dict[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        settings: Mapping[str, Any],
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=schedule,
            eval_dataset=evaluation,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = (
            True  # compute_loss normalises over the step; the Trainer must not divide again
        )
        self.loss_is_scaled_for_ga = True
        self.tokenizer = tokenizer
        self.settings = dict(settings)
        self.epoch_samples = sum(len(source) for source in schedule.datasets.values()) if schedule is not None else 0
        self.last_evaluation: tuple[int, dict[str, float]] = (-1, {})
        self.shown: list[ScoredImage] = []
        self.model: PsalmForSegmentation
        self.control: TrainerControl
        self.losses = LossWindow()
        self.clock = StepClock()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As in transformers; the losses of an unfinished logging window are taken up from the checkpoint."""
        if isinstance(resume_from_checkpoint, str):
            self.losses.load(resume_from_checkpoint, self.args.process_index, self.args.device)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of one optimizer step, and the masks per micro-batch."""
        self.clock.begin_step()
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """Masks of the whole step over all ranks, divided by its W * A parts: float32 scalar."""
        if not batch_samples:
            return None
        masks = torch.tensor(float(sum(len(m) for batch in batch_samples for m in batch["mask_labels"])), device=device)
        return self.accelerator.gather(masks.reshape(1)).mean() / len(batch_samples)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """A part's share of the step's loss, times W: backward sums over micro-batches and averages over ranks."""
        output = model(**inputs, num_masks=num_items_in_batch)
        parts = self.current_gradient_accumulation_steps if self.model.training else 1
        loss = output["loss"] / parts
        if self.model.training:
            named = {"loss": loss} | {name: value / parts for name, value in output["losses"].items()}
            self.losses.add(named, self.state.global_step + 1)
            if self.accelerator.sync_gradients:
                self.losses.end_step()
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs of training get the losses by name, the real epoch, and figures of the machine."""
        if "train_runtime" in logs:
            logs = {name: value for name, value in logs.items() if name not in SPEED_KEYS}
        elif "loss" in logs:
            logs = {**logs, **self.losses.take(self.accelerator, self.state.global_step)}
            logs["system/step_seconds"] = self.clock.take()
            logs["system/peak_memory_mb"] = peak_memory_mb()
        if not logs:
            return
        if self.train_dataset is not None:
            self.state.epoch = self.state.global_step * self.train_dataset.samples_per_step / self.epoch_samples
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: PanopticEvaluation | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Quality on the validation split at the images' original sizes, in percent; the same on every rank.

        Raises:
            TrainingDiverged: a loss since the last log was not finite.
        """
        self.losses.check(self.accelerator)
        with self.clock.apart():
            start = time.perf_counter()
            self._share_buffers()
            quality = self._score(self.eval_dataset if eval_dataset is None else eval_dataset)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in quality.compute().items()}
            metrics[f"system/{metric_key_prefix}_seconds"] = time.perf_counter() - start
            self.last_evaluation = (self.state.global_step, metrics)
            self.log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _score(self, evaluation: PanopticEvaluation) -> PanopticQuality:
        """Quality over all ranks; the first images are kept in ``shown``."""
        isthing = [info.isthing for info in evaluation.dataset.classes]
        args = self.args
        share = shard(len(evaluation), args.per_device_eval_batch_size, args.process_index, args.world_size)
        loader = make_loader(evaluation, share.batches, self.data_collator, args.dataloader_num_workers)
        self.callback_handler.eval_dataloader = loader
        if self.accelerator.native_amp and not hasattr(self.model, "_original_forward"):
            self.model = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        quality = PanopticQuality(isthing)
        self.shown = []
        batches = score_batches(self.model, self._shown_progress(loader), self._prepare_inputs, isthing)
        for counts, images in zip(share.counts, batches, strict=True):
            if counts:
                self.shown += images[: SHOWN_IMAGES - len(self.shown)]
                for image in images:
                    count_image(quality, image)
        total = PanopticQuality(isthing)
        total.add_state(sum_over_ranks(quality.state(), self.args.device))
        return total

    def _shown_progress(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches, with a step of the progress bar after each."""
        for batch in loader:
            yield batch
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the Trainer would count every parameter at every step."""
        return 0

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> SequentialSampler:
        """The schedule is in the order of training already."""
        schedule = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(schedule)  # type: ignore[arg-type]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.losses.check(self.accelerator)
        self._share_buffers()
        with self.clock.apart():
            super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.losses.save(folder, self.args.process_index)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights, configuration, tokenizer and settings: what ``psalm.train.evaluate`` needs, in one folder."""
        super()._save(output_dir, state_dict)
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        self.tokenizer.save_pretrained(folder)
        (folder / SETTINGS_FILE).write_text(json.dumps(self.settings, indent=2))

    def _share_buffers(self) -> None:
        """Every rank takes rank 0's buffers (statistics of batch normalisation, which drift apart)."""
        if self.args.world_size > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
