"""Trains PSALM: ``python psalm/train/train.py FLAGS``, ``deepspeed psalm/train/train.py FLAGS``, or ``train(args)``."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback, set_seed

from psalm.data.collator import Collator
from psalm.data.dataset import TaskData
from psalm.data.examples import TaskExamples, create_examples
from psalm.data.prompts import PromptBuilder
from psalm.data.questions import Evaluation
from psalm.data.schedule import TrainingSchedule
from psalm.model.checkpoints import build_model
from psalm.model.freezing import set_trainable
from psalm.model.language_model.llava_phi import PsalmForSegmentation, startup_lines
from psalm.train.arguments import Arguments, check_inputs, parse_command_line, resolved_settings
from psalm.train.callbacks import ARTIFACTS, PicturesCallback, RecordsCallback
from psalm.train.checkpoint_files import FINAL_MODEL, finish_checkpoints, last_good_checkpoint, resumed_step
from psalm.train.distributed import from_rank_0, leave_process_group, whole_weights
from psalm.train.fields import SettingError
from psalm.train.fingerprints import run_tags
from psalm.train.inputs import config_overrides
from psalm.train.process_state import own_process_state
from psalm.train.quiet import quiet_libraries
from psalm.train.records import RunRecords
from psalm.train.task_data import load_task
from psalm.train.tasks import ratios_of, tasks_of
from psalm.train.trainer import PsalmTrainer


def train(
    args: Arguments,
    callbacks: Sequence[TrainerCallback] = (),
    resume_from_checkpoint: str | bool | None = None,
    *,
    wait_seconds: float = 0.0,
) -> dict[str, float]:
    """Trains and evaluates one run; rank 0 writes its records into ``args.training.output_dir``.

    A callback may end the run before its full length by ``control.should_training_stop``: nothing is evaluated or saved
    any more then, unless the callback asks for it at that step (``control.should_save``), and checkpoints are kept.

    Args:
        args: see ``psalm.train.arguments``.
        callbacks: called after the run's own, on every rank.
        resume_from_checkpoint: a checkpoint of the same run, in its folder; it then goes on as if it had not been
            interrupted. True: the newest that is whole, and from the beginning where there is none.
        wait_seconds: how long to wait for another writer of the run's records to end.

    Returns:
        The metrics of the last evaluation, which is that of the last step unless the run was stopped; none if a stopped
        run has not been evaluated.

    Raises:
        TrainingDiverged: a loss is no finite number.
        ValueError: data or weights are missing or do not fit; the message is one line.
        SettingError: the checkpoint cannot be gone on from, or is not to be trusted.
        RecordsInUse: another process still writes the run's records.
    """
    quiet_libraries()
    if isinstance(resume_from_checkpoint, str):
        step_to_resume(args, resume_from_checkpoint)
    with own_process_state(args.training):
        records = open_records(args, wait_seconds)
        try:
            return recorded_run(args, callbacks, resume_from_checkpoint, records)
        except Exception as error:
            if records is not None:
                records.event("failed", reason=f"{type(error).__name__}: {error}")
            raise
        finally:
            if records is not None:
                records.close()


def recorded_run(
    args: Arguments,
    callbacks: Sequence[TrainerCallback],
    resume_from_checkpoint: str | bool | None,
    records: RunRecords | None,
) -> dict[str, float]:
    """One run, from what its records begin with to what they end with; see ``train``."""
    checkpoint = checkpoint_to_resume(args, resume_from_checkpoint, records)
    trainer = build_trainer(args)
    try:
        if records is not None:
            lines = (startup_lines(trainer.model), weight_lines(trainer.model), data_lines(trainer))
            sys.stdout.write("\n".join(filter(None, lines)) + "\n")
            record_start(records, trainer, step_to_resume(args, checkpoint) if checkpoint else None)
            trainer.record_event = records.event
            trainer.add_callback(RecordsCallback(records))
            trainer.add_callback(PicturesCallback(records, trainer))
        for callback in callbacks:
            trainer.add_callback(callback)
        metrics = run(trainer, checkpoint, save=args.training.save_final_model)
        if records is not None:
            record_end(records, trainer)
            if not trainer.stopped:
                finish_checkpoints(args.training.output_dir)  # after the record: it cannot be gone on from any more
        return metrics
    finally:
        trainer.accelerator.free_memory()  # ends DeepSpeed's engine, whose hooks would keep it and the weights


def open_records(args: Arguments, wait_seconds: float) -> RunRecords | None:
    """The run's records on rank 0, None on others.

    Raises:
        RecordsInUse: another process writes them, on every rank; so with any other error of the file system.
    """
    records, refusal = None, None
    if args.training.process_index == 0:
        try:
            records = RunRecords(args.training.output_dir, wait_seconds)
        except OSError as error:
            refusal = error
    refusal = from_rank_0(refusal)
    if refusal is not None:
        raise refusal
    return records


def checkpoint_to_resume(args: Arguments, asked: str | bool | None, records: RunRecords | None) -> str | None:
    """The checkpoint asked for; for True the newest that is whole, as rank 0 sees it, which tells of the others."""
    if not asked:
        return None
    if isinstance(asked, str):
        return asked
    found = None
    if records is not None:
        deepspeed = args.training.deepspeed is not None
        newest, rejected = last_good_checkpoint(args.training.output_dir, deepspeed=deepspeed)
        for reason in rejected:
            sys.stdout.write(f"{reason}\n")
            records.event("checkpoint_rejected", reason=reason)
        found = None if newest is None else str(newest)
    return from_rank_0(found)


def build_trainer(args: Arguments) -> PsalmTrainer:
    """Model, data and trainer of a run; nothing has been trained yet. Seeds whatever draws numbers."""
    set_seed(args.training.seed)
    model_args = vars(args.model)
    with whole_weights(args.training):
        model, tokenizer = build_model(
            args.model.model_name_or_path,
            args.model.vision_tower,
            args.model.swin_type,
            pretrain_mm_mlp_adapter=args.model.pretrain_mm_mlp_adapter,
            **config_overrides(model_args),
        )
    set_trainable(
        model,
        **{
            name: model_args[name]
            for name in ("train_backbone", "freeze_backbone", "tune_mm_mlp_adapter", "freeze_mm_mlp_adapter")
        },
    )
    settings = resolved_settings(args)
    settings |= {
        name: getattr(model.config, name) for name, value in config_overrides(settings).items() if value is None
    }
    settings["image_size"] = settings["image_size"] or model.config.image_size
    settings["seg_task"] = ",".join(tasks_of(settings))

    prompts = PromptBuilder(tokenizer)
    data = {task: load_task(settings, task) for task in tasks_of(settings)}
    schedule = training_schedule(
        args, {task: task_examples(settings, splits.train, prompts) for task, splits in data.items()}
    )
    args.training.max_steps = schedule.total_steps
    return PsalmTrainer(
        model,
        args.training,
        schedule=schedule,
        evaluations={task: Evaluation(task_examples(settings, splits.val, prompts)) for task, splits in data.items()},
        data=data,
        collator=Collator(tokenizer.pad_token_id),
        tokenizer=tokenizer,
        settings=settings,
    )


def task_examples(settings: Mapping[str, Any], data: TaskData, prompts: PromptBuilder) -> TaskExamples:
    """A task's samples as settings say that they are asked about."""
    return create_examples(data, prompts, settings["image_size"], settings["refer_expressions"])


def training_schedule(args: Arguments, examples: Mapping[str, TaskExamples]) -> TrainingSchedule:
    """The samples of all steps: ``max_steps`` of them, or ``num_train_epochs`` passes over the data of all tasks."""
    training = args.training
    step_samples = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    steps = training.max_steps
    if steps < 1:
        samples = sum(map(len, examples.values()))
        steps = max(int(-(-training.num_train_epochs * samples // step_samples)), 1)
    return TrainingSchedule(examples, training.seed, steps, step_samples, ratios_of(vars(args.data)))


def weight_lines(model: PsalmForSegmentation) -> str:
    """What became of each name in the files of weights, a line per file."""
    return "\n".join(f"  weights: {report}" for report in model.key_reports)


def data_lines(trainer: PsalmTrainer) -> str:
    """What a run is trained and validated on, a line per task."""
    schedule = trainer.train_dataset
    steps = schedule.steps_per_task()
    return "\n".join(
        f"  {task}: {len(splits.train)} samples, {steps[task]} of {schedule.total_steps} steps "
        f"({schedule.shares[task]:.0%}); validation: {len(splits.val)} samples ({splits.chosen})"
        for task, splits in trainer.data.items()
    )


def schedule_tags(trainer: PsalmTrainer) -> dict[str, float]:
    """How much of each task a run has: samples, those of validation, share of the steps, steps."""
    schedule = trainer.train_dataset
    steps = schedule.steps_per_task()
    tags: dict[str, float] = {}
    for task, splits in trainer.data.items():
        tags |= {f"samples.{task}": len(splits.train), f"validation_samples.{task}": len(splits.val)}
        tags |= {f"share.{task}": schedule.shares[task], f"steps.{task}": steps[task]}
    return tags


def run(trainer: PsalmTrainer, resume_from_checkpoint: str | None, save: bool) -> dict[str, float]:
    """Trains, evaluates the last step if that has not been done, saves the final model.

    A run that was stopped only trains.
    """
    args = trainer.args
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    step, metrics = trainer.last_evaluation
    if trainer.stopped:
        return metrics
    if step != trainer.state.global_step:
        metrics = trainer.evaluate()
    if save:
        trainer.save_final_model(Path(args.output_dir) / FINAL_MODEL)
    trainer.accelerator.wait_for_everyone()
    return metrics


def step_to_resume(args: Arguments, checkpoint: str) -> int:
    """The global step after which the run goes on from a checkpoint.

    Raises:
        SettingError: see ``psalm.train.checkpoint_files.resumed_step``.
    """
    training = args.training
    return resumed_step(checkpoint, training.output_dir, deepspeed=training.deepspeed is not None)


def record_start(records: RunRecords, trainer: PsalmTrainer, resumed_after: int | None) -> None:
    """What was asked, what it is made of, and that it begins, or goes on after a global step."""
    records.settings(trainer.settings)
    records.tags(
        run_tags(trainer.settings, trainer.data, trainer.model, trainer.args.world_size) | schedule_tags(trainer)
    )
    artifacts = records.folder / ARTIFACTS
    artifacts.mkdir(exist_ok=True)
    settings = yaml.safe_dump(trainer.settings, sort_keys=False, allow_unicode=True)
    weights = weight_lines(trainer.model) + "\n"
    for name, text in (("config.yaml", settings), ("weights.txt", weights)):
        (artifacts / name).write_text(text)
        records.artifact(artifacts / name)
    if resumed_after is None:
        records.event("started")
    else:
        records.event("resumed", step=resumed_after)


def record_end(records: RunRecords, trainer: PsalmTrainer) -> None:
    """That the run is complete, or was stopped, and which images were left out."""
    bad = [name for splits in trainer.data.values() for name in (*splits.train.bad_images, *splits.val.bad_images)]
    bad = list(dict.fromkeys(bad))  # tasks may share images
    event = "stopped" if trainer.stopped else "completed"
    records.event(event, step=trainer.state.global_step, **({"bad_images": bad} if bad else {}))


def main() -> None:
    """The command line; a wrong setting ends with one line on stderr and exit code 2."""
    quiet_libraries()
    try:
        args = parse_command_line(sys.argv[1:])
        with whole_weights(args.training):
            check_inputs(resolved_settings(args))
        if isinstance(args.training.resume_from_checkpoint, str):
            step_to_resume(args, args.training.resume_from_checkpoint)
    except SettingError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    metrics = train(args, resume_from_checkpoint=args.training.resume_from_checkpoint)
    if args.training.process_index == 0:
        sys.stdout.write(" ".join(f"{name}={value:.2f}" for name, value in metrics.items()) + "\n")
    leave_process_group()


if __name__ == "__main__":
    main()
