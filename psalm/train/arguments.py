"""Every argument of a training run: the seed's flags, checked before anything is built.

A setting is checked by ``check_setting`` (alone) and ``check_settings`` (together) without building
``TrainingArguments``, whose constructor initialises devices and process groups; ``check_inputs`` looks at the files
that settings name. Command lines, YAML files, searches and records of earlier runs all come through here.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

import transformers

from psalm.train.argument_groups import Arguments, DataArguments, ModelArguments, TrainingArguments
from psalm.train.command_line import read_flags
from psalm.train.fields import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    STEPS,
    TRUE,
    Field,
    Range,
    SettingError,
    as_json,
    fields_of,
    nearest,
    unset_variables,
)
from psalm.train.inputs import check_files, deepspeed_file
from psalm.train.learning_rates import LEARNING_RATE_CHANGES, check_changes
from psalm.train.quiet import quiet_libraries
from psalm.train.tasks import ratios_of, tasks_of

__all__ = [
    "Arguments",
    "DataArguments",
    "Field",
    "ModelArguments",
    "SettingError",
    "TrainingArguments",
    "argument_fields",
    "check_inputs",
    "check_setting",
    "check_settings",
    "parse_command_line",
    "parse_settings",
    "resolved_settings",
    "with_defaults",
]

GROUPS = {"model": ModelArguments, "data": DataArguments, "training": TrainingArguments}

# fmt: off
NOT_SETTINGS = frozenset((
    # Other names of gradient_checkpointing.
    "activation_checkpointing", "activation_checkpointing_kwargs",
    # Facts of an invocation, not of a run.
    "resume_from_checkpoint", "local_rank", "do_train", "do_eval", "do_predict",
    # Secrets and services.
    "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision", "push_to_hub",
    "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token", "project", "trackio_space_id",
    "trackio_bucket_id", "trackio_static_space_id",
    # What this loop does its own way, or not: accepted, they would be ignored.
    "remove_unused_columns", "logging_nan_inf_filter", "dataloader_drop_last", "train_sampling_strategy", "data_seed",
    "group_by_length", "length_column_name", "label_names", "label_smoothing_factor", "neftune_noise_alpha",
    "include_num_input_tokens_seen", "include_tokens_per_second", "ignore_data_skip", "include_for_metrics",
    "include_inputs_for_metrics", "batch_eval_metrics", "prediction_loss_only", "eval_do_concat_batches",
    "eval_use_gather_object", "eval_accumulation_steps", "auto_find_batch_size", "load_best_model_at_end", "fsdp",
    "fsdp_config", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap", "parallelism_config",
    "accelerator_config", "use_liger_kernel", "liger_kernel_config", "enable_jit_checkpoint", "past_index",
    "average_tokens_across_devices", "bf16_full_eval", "fp16_full_eval", "use_cache", "optim_target_modules",
    "save_on_each_node",
))
"""Arguments of transformers' Trainer that are not a run's settings."""

OF_THE_DISK = ("checkpoint_budget_gb", "checkpoint_budget_dir")
"""Arguments that follow from where a run is, and not from what it is: they are not recorded with it."""

RETIRED = frozenset((
    "version", "lazy_preprocess", "is_multimodal", "group_by_modality_length", "model_max_length", "mmconv_path",
    "mm_vision_select_layer", "mm_use_im_start_end", "mm_use_im_patch_token", "freeze_vision_tower",
))
"""Flags of older scripts that the command line accepts and that have no effect."""
# fmt: on

RANGES: dict[str, Range] = {
    **dict.fromkeys(("learning_rate", "num_train_epochs", "adam_epsilon"), POSITIVE),
    **dict.fromkeys(("weight_decay", "max_grad_norm", "warmup_steps", "eval_delay"), NOT_NEGATIVE),
    **dict.fromkeys(("seed", "dataloader_num_workers"), NOT_NEGATIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Range(0, 1, below=True)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), STEPS),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "save_total_limit", "dataloader_prefetch_factor"), COUNT),
    **dict.fromkeys(("torch_empty_cache_steps", "ddp_timeout", "ddp_bucket_cap_mb"), COUNT),
    "max_steps": Range(1, also=(-1,)),
}
PATHS = ("output_dir",)

RENAMED = {"evaluation_strategy": "eval_strategy"}
"""Old names of arguments that the command line still takes."""


@lru_cache(maxsize=1)
def argument_fields() -> dict[str, Field]:
    """Every argument by name."""
    fields: dict[str, Field] = {}
    for group, arguments in GROUPS.items():
        fields |= fields_of(group, arguments, NOT_SETTINGS, RANGES, PATHS)
    optimizers = get_type_hints(transformers.TrainingArguments)["optim"]
    fields["optim"] = dataclasses.replace(fields["optim"], choices=_choices(optimizers))
    for name in ("logging_strategy", "eval_strategy", "save_strategy"):
        without_epoch = tuple(choice for choice in fields[name].choices or () if choice != "epoch")
        fields[name] = dataclasses.replace(fields[name], choices=without_epoch)
    return fields


def check_setting(name: str, value: Any) -> Any:
    """The value as the argument of this name takes it; text is read as the argument's type, paths become absolute.

    Raises:
        SettingError: unknown name, wrong type, unknown choice or out of range.
    """
    fields = argument_fields()
    if name not in fields:
        hint = nearest(name, fields) or "; see psalm/train/train.py --help for the names"
        raise SettingError(f"{name} is not an argument (its value is {value!r}){hint}")
    if name == "deepspeed" and isinstance(value, str):
        return deepspeed_file(value)
    return fields[name].check(value)


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings checked alone and together (with the defaults of those not given); returns those given, normalised.

    Raises:
        SettingError: see ``check_setting``; or a combination that cannot be.
    """
    checked = {name: check_setting(name, value) for name, value in settings.items()}
    _check_together(with_defaults(checked))
    return checked


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, and the defaults of those not given."""
    return {name: settings.get(name, known.default) for name, known in argument_fields().items()}


def check_inputs(settings: Mapping[str, Any]) -> None:
    """The files that settings name exist, are of the format expected, and fit the sizes asked for; builds no model.

    Raises:
        SettingError: one line that says which setting, which file, and what is wrong with it.
    """
    check_files(with_defaults(check_settings(settings)))


def parse_settings(settings: Mapping[str, Any]) -> Arguments:
    """Arguments from a flat mapping; those not given have their defaults. Initialises devices and process groups.

    Raises:
        SettingError: see ``check_settings``.
    """
    quiet_libraries()
    checked = check_settings(settings)
    fields = argument_fields()
    checked.setdefault("output_dir", fields["output_dir"].check(fields["output_dir"].default))
    built = {
        group: arguments(**{name: value for name, value in checked.items() if fields[name].group == group})
        for group, arguments in GROUPS.items()
    }
    return Arguments(**built)


def parse_command_line(argv: Sequence[str]) -> Arguments:
    """Arguments from ``--name value`` flags; ``--config FILE`` takes more from a YAML mapping, flags win.

    ``--resume_from_checkpoint DIR``, or ``True`` for the run's last, is taken besides the settings; ``--local_rank`` of
    launchers is ignored.

    Raises:
        SettingError: see ``check_settings``; or flags that cannot be read.
        SystemExit: after ``--help``.
    """
    flags = read_flags(
        argv, argument_fields(), extra=("resume_from_checkpoint", "local_rank"), retired=RETIRED, renamed=RENAMED
    )
    flags.pop("local_rank", None)
    checkpoint = flags.pop("resume_from_checkpoint", None)
    arguments = parse_settings(flags)
    if str(checkpoint).lower() in TRUE:
        arguments.training.resume_from_checkpoint = True
    elif checkpoint is not None:
        arguments.training.resume_from_checkpoint = str(Path(checkpoint).resolve())
    return arguments


def resolved_settings(arguments: Arguments) -> dict[str, Any]:
    """Every argument of a run, flat, as JSON holds it; ``parse_settings`` makes the same run of it.

    Those ``OF_THE_DISK`` are not in it.
    ``deepspeed`` is the content of its file, so that a record stands on its own.
    """
    settings = {}
    for name, known in argument_fields().items():
        if name in OF_THE_DISK:
            continue
        value = as_json(getattr(getattr(arguments, known.group), name))
        if name == "deepspeed" and isinstance(value, str):
            value = json.loads(Path(value).read_text())
        if name == "report_to" and value == []:
            value = "none"
        settings[name] = value
    return settings


def _choices(hint: Any) -> tuple[str, ...] | None:
    return fields_of("", dataclasses.make_dataclass("Choice", [("choice", hint)]))["choice"].choices


def _check_together(values: Mapping[str, Any]) -> None:
    """Rules between settings; the first one broken is raised."""
    for name, divisor in (("mm_hidden_dim", "mm_n_heads"), ("conv_dim", "num_heads"), ("hidden_dim", "num_heads")):
        if values[name] and values[divisor] and values[name] % values[divisor]:
            raise SettingError(
                f"{name} must be divisible by {divisor}, but got {values[name]} and {values[divisor]}; "
                "change one of them"
            )
    tasks = tasks_of(values)
    for task in ratios_of(values):
        if task not in tasks:
            raise SettingError(
                f"data_ratio must name tasks of the run, which are {', '.join(tasks)}, but got {task}; "
                "drop it, or add it to seg_task"
            )
    for name in ("train_backbone", "freeze_mm_mlp_adapter"):
        if values["tune_mm_mlp_adapter"] and values[name]:
            raise SettingError(
                f"tune_mm_mlp_adapter trains nothing but the projectors, but got true with {name} true; drop one"
            )
    if values["fp16"] and values["bf16"]:
        raise SettingError("fp16 and bf16 must not both be true, but got true and true; choose one of them")
    for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
        if values[name] and not values["dataloader_num_workers"]:
            raise SettingError(
                f"{name} needs dataloader_num_workers of at least 1, but got {values[name]} and 0; "
                "give workers or leave it out"
            )
    check_changes(values)
    _check_budget(values)
    _check_deepspeed(values)


def _check_budget(values: Mapping[str, Any]) -> None:
    """A budget counts the run's own checkpoints."""
    gigabytes, folder = (values[name] for name in OF_THE_DISK)
    if (gigabytes is None) != (folder is None):
        given, missing = OF_THE_DISK if folder is None else reversed(OF_THE_DISK)
        raise SettingError(f"{given} needs {missing}, but got {values[given]} alone; give both or neither")
    if folder is None or unset_variables(folder) or unset_variables(values["output_dir"]):
        return
    if not Path(values["output_dir"]).absolute().is_relative_to(folder):
        raise SettingError(
            f"checkpoint_budget_dir must hold output_dir, which is {values['output_dir']}, but got {folder}; "
            "give a folder above it"
        )


def _check_deepspeed(values: Mapping[str, Any]) -> None:
    """Rules of DeepSpeed's configuration; what does not parse is told by ``check_inputs``."""
    content = values["deepspeed"]
    if isinstance(content, str):
        try:
            content = json.loads(Path(content).read_text())
        except ValueError:
            return
    if not isinstance(content, dict):
        return
    if "zero_optimization" not in content:
        raise SettingError(
            "deepspeed must have a section zero_optimization, but has none; "
            'add "zero_optimization": {"stage": 0}, which shards nothing, or a higher stage'
        )
    for name in ("offset_lr_multiplier", "backbone_lr_multiplier"):
        if values[name] != 1 and "optimizer" in content:
            raise SettingError(
                f"{name} must be 1 where DeepSpeed's configuration has an optimizer, which would ignore it, "
                f"but got {values[name]:g}; take the section 'optimizer' out of the configuration"
            )
    if values[LEARNING_RATE_CHANGES] and "scheduler" in content:
        raise SettingError(
            f"{LEARNING_RATE_CHANGES} must be none where DeepSpeed's configuration has a scheduler, which would ignore "
            f"it, but got {values[LEARNING_RATE_CHANGES]}; take the section 'scheduler' out of the configuration"
        )
