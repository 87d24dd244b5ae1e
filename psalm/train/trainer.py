"""PSALM's trainer: transformers' loop with PSALM's schedule, losses and evaluation.

Letters: W ranks, A accumulation steps (micro-batches of one optimizer step on one rank).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerControl

from psalm.data.questions import Asked, Evaluation
from psalm.data.schedule import TrainingSchedule
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.train.learning_rates import set_rates, with_changes
from psalm.train.loss_window import LossWindow
from psalm.train.measures import StepClock, peak_memory_mb
from psalm.train.optimizer import learning_rate_multipliers, multiply_learning_rates
from psalm.train.predictions import PredictionWriter
from psalm.train.saving import SavingTrainer
from psalm.train.scorers import SCORERS, Scorer
from psalm.train.scoring import answer_batches, make_loader, of_all_ranks, shard
from psalm.train.task_data import TaskSplits
from psalm.train.tasks import metric_name, with_mean

SHOWN_IMAGES = 4
"""Questions of each task whose answers are kept for the pictures of predictions."""

SPEED_KEYS = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss")
"""What transformers logs at the end of a run about that process's share of it: not the same for a resumed run."""


class PsalmTrainer(SavingTrainer):
    """Trains on a ``TrainingSchedule`` and scores on an ``Evaluation`` per task.

    Losses are normalised over the whole optimizer step: the criterion divides by the masks and regions of all ranks and
    micro-batches, so that neither the number of ranks nor accumulation changes them. Each is logged under its name,
    averaged over the steps since the last log that had it; in a mixture below the name of its task
    (``region/loss_mask``), with the steps that each task has had (``region/steps``). Besides, logs hold the real
    ``epoch`` and figures of the machine below ``system/``.

    Args:
        model, args, callbacks: as in transformers.
        schedule: the samples in the order of training.
        evaluations: task -> the questions to score on.
        collator: examples -> batch.
        data: of a training: task -> what schedule and evaluations were made from.
        tokenizer, settings: see ``SavingTrainer``; settings name the tasks and so the metrics.
    """

    def __init__(
        self,
        model: PsalmForSegmentation,
        args: transformers.TrainingArguments,
        *,
        schedule: TrainingSchedule | None,
        evaluations: Mapping[str, Evaluation],
        collator: Callable[[Sequence[Any]], dict[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        settings: Mapping[str, Any],
        data: Mapping[str, TaskSplits] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=schedule,
            eval_dataset=dict(evaluations),
            callbacks=list(callbacks),
            tokenizer=tokenizer,
            settings=settings,
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = (
            True  # compute_loss normalises over the step; the Trainer must not divide again
        )
        self.loss_is_scaled_for_ga = True
        self.epoch_samples = sum(len(source) for source in schedule.datasets.values()) if schedule is not None else 0
        self.last_evaluation: tuple[int, dict[str, float]] = (-1, {})
        self.evaluations = dict(evaluations)
        self.data = dict(data or {})
        self.shown: dict[str, list[tuple[Asked, Any]]] = {}
        """Task -> its first questions and their answers at the last evaluation."""
        self.per_class: dict[str, dict[str, dict[str, float]]] = {}
        """Task -> class -> metric -> percent at the last evaluation, of tasks with classes."""
        self.model: PsalmForSegmentation
        self.control: TrainerControl
        self.losses = LossWindow()
        self.clock = StepClock()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As in transformers; the losses of an unfinished logging window are taken up from the checkpoint."""
        if isinstance(resume_from_checkpoint, str):
            self.losses.load(resume_from_checkpoint, self.args.process_index, self.args.device)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in transformers, with a learning rate of its own for the parts that the settings name."""
        exists = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if not exists:
            multipliers = learning_rate_multipliers(
                self.model,
                offset_lr_multiplier=self.args.offset_lr_multiplier,
                backbone_lr_multiplier=self.args.backbone_lr_multiplier,
            )
            multiply_learning_rates(optimizer, multipliers)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """As in transformers, with the changes of the peak learning rate that the settings name."""
        exists = self.lr_scheduler is not None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        changes = self.args.learning_rate_changes
        if changes and not exists:
            assert isinstance(scheduler, LambdaLR), "settings with another schedule are refused"
            scheduler.lr_lambdas = [
                with_changes(each, self.args.learning_rate, changes) for each in scheduler.lr_lambdas
            ]
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As in transformers; then the rates are this run's, also where the checkpoint's run had no such changes."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.args.learning_rate_changes:
            set_rates(self.lr_scheduler)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of one optimizer step, and the masks per micro-batch."""
        self.clock.begin_step()
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """(masks, regions) of the whole step over all ranks, divided by its W * A parts: float32 [2]."""
        if not batch_samples:
            return None
        counts = [
            sum(len(labels) for batch in batch_samples for labels in batch.get(name, ()))
            for name in ("mask_labels", "region_labels")
        ]
        own = torch.tensor([counts], dtype=torch.float32, device=device)
        return self.accelerator.gather(own).mean(0) / len(batch_samples)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """A part's share of the step's loss, times W: backward sums over micro-batches and averages over ranks."""
        masks, regions = (None, None) if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        output = model(**inputs, num_masks=masks, num_regions=regions)
        parts = self.current_gradient_accumulation_steps if self.model.training else 1
        loss = output["loss"] / parts
        if self.model.training:
            named = {"loss": loss} | {name: value / parts for name, value in output["losses"].items()}
            if self._mixed:
                named = {"loss": loss} | {f"{inputs['task']}/{name}": value for name, value in named.items()}
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
            if self._mixed:
                steps = self.train_dataset.steps_per_task(self.state.global_step)
                logs |= {f"{task}/steps": float(count) for task, count in steps.items()}
            logs["system/step_seconds"] = self.clock.take()
            logs["system/peak_memory_mb"] = peak_memory_mb()
        if not logs:
            return
        if self.train_dataset is not None:
            self.state.epoch = self.state.global_step * self.train_dataset.samples_per_step / self.epoch_samples
        super().log(logs, start_time)

    @property
    def stopped(self) -> bool:
        """Whether training has ended before its full length, because a callback wanted it so."""
        return self.state.global_step < self.args.max_steps

    @property
    def _mixed(self) -> bool:
        """Whether the run trains several tasks."""
        return self.train_dataset is not None and len(self.train_dataset.datasets) > 1

    def evaluate(
        self,
        eval_dataset: Mapping[str, Evaluation] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Quality on each task's questions at the images' original sizes, in percent; the same on every rank.

        Raises:
            TrainingDiverged: a loss since the last log was not finite.
        """
        self.losses.check(self.accelerator)
        with self.clock.apart():
            start = time.perf_counter()
            self._share_buffers()
            metrics: dict[str, float] = {}
            for task, evaluation in (eval_dataset or self.evaluations).items():
                scorer = self._score(evaluation)
                figures = scorer.metric.compute()
                self.per_class[task] = scorer.per_class()
                metrics |= {
                    metric_name(task, name, self.settings, metric_key_prefix): value for name, value in figures.items()
                }
            metrics = with_mean(metrics, self.settings, metric_key_prefix)
            metrics[f"system/{metric_key_prefix}_seconds"] = time.perf_counter() - start
            self.last_evaluation = (self.state.global_step, metrics)
            self.log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _score(self, evaluation: Evaluation) -> Scorer[Any]:
        """What all ranks have counted; the first answers are kept in ``shown``."""
        args = self.args
        share = shard(len(evaluation), args.per_device_eval_batch_size, args.process_index, args.world_size)
        loader = make_loader(evaluation, share.batches, self.data_collator, args.dataloader_num_workers)
        self.callback_handler.eval_dataloader = loader
        if self.accelerator.native_amp and not hasattr(self.model, "_original_forward"):
            self.model = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        scorer = SCORERS[evaluation.task](evaluation.data)
        writer = PredictionWriter(Path(args.output_dir), scorer) if args.save_predictions else None
        shown = self.shown[evaluation.task] = []
        answers = answer_batches(self.model, self._shown_progress(loader), self._prepare_inputs, scorer)
        for counts, of_batch in zip(share.counts, answers, strict=True):
            for asked, answer in of_batch if counts else ():
                scorer.count(asked, answer)
                if len(shown) < SHOWN_IMAGES:
                    shown.append((asked, answer))
                if writer is not None:
                    writer.add(asked, answer)
        if writer is not None:
            writer.finish(args.process_index)
        states = of_all_ranks(scorer.metric.state())
        for rank, state in enumerate(states):
            if rank != args.process_index:
                scorer.metric.add_state(state)
        return scorer

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

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        with self._writing():
            self.losses.save(output_dir, self.args.process_index)

    def _share_buffers(self) -> None:
        """Every rank takes rank 0's buffers (statistics of batch normalisation, which drift apart)."""
        if self.args.world_size > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
