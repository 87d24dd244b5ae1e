"""The arguments of a training run in three groups: model, data, training.

Defaults of the model come from ``PsalmConfig``. A field's metadata holds its help and what may be given: see
``psalm.train.fields``.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import transformers
from transformers.trainer_utils import IntervalStrategy, SchedulerType
from transformers.utils import is_torch_tf32_available

from psalm.constants import TASKS
from psalm.data.visual_prompts import PROMPT_TYPES
from psalm.model.configuration import PsalmConfig
from psalm.train.distributed import name_single_process, without_compiled_collectives
from psalm.train.fields import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, Range
from psalm.train.learning_rates import parse_changes
from psalm.train.tasks import parse_mask_types, parse_ratios, parse_tasks

BUILTIN = "builtin"


def _of_model(name: str, help: str, range: Range | None = None) -> Any:  # noqa: A002
    """A field whose default is the model configuration's."""
    return field(default=getattr(PsalmConfig, name), metadata={"help": help, "range": range})


def _of_tower(help: str) -> Any:  # noqa: A002
    """A field that follows the folder of the vision tower, and the model configuration where that says nothing."""
    return field(
        default=None, metadata={"help": f"{help} The vision tower's folder decides if not given.", "range": COUNT}
    )


@dataclass
class ModelArguments:
    """What is trained: weights to start from, architecture, losses."""

    model_name_or_path: str = field(
        default=BUILTIN,
        metadata={
            "help": "Folder of the language model, or of a whole PSALM checkpoint, or 'builtin'.",
            "path": True,
            "words": (BUILTIN,),
        },
    )
    pretrain_mm_mlp_adapter: str | None = field(
        default=None,
        metadata={
            "help": "File of projector weights to start from (mm_projector.bin, or a converted one).",
            "path": True,
        },
    )
    vision_tower: str = field(
        default=BUILTIN,
        metadata={
            "help": "File or folder of the vision tower's weights, or 'builtin' (follows swin_type).",
            "path": True,
            "words": (BUILTIN,),
        },
    )
    train_backbone: bool = field(
        default=False, metadata={"help": "Train the vision tower too; it is frozen otherwise."}
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "Freeze the language model."})
    tune_mm_mlp_adapter: bool = field(default=False, metadata={"help": "Train the projectors and nothing else."})
    freeze_mm_mlp_adapter: bool = field(default=False, metadata={"help": "Freeze the projectors."})
    swin_type: Literal["tiny", "small", "base", "large"] = _of_model("swin_type", "Size of the Swin vision tower.")
    mm_projector_type: Literal["swin_conv", "deformable"] = _of_model(
        "mm_projector_type", "How image features become tokens of the language model."
    )
    mm_hidden_dim: int = _of_model("mm_hidden_dim", "Width of the deformable projector.", COUNT)
    mm_n_heads: int = _of_model("mm_n_heads", "Attention heads of the deformable projector.", COUNT)
    mm_n_points: int = _of_model(
        "mm_n_points", "Sampling points per head and level of the deformable projector.", COUNT
    )
    mm_reference_points: Literal["auto", "center", "proposal", "learned"] = _of_model(
        "mm_reference_points", "Where the deformable projector's queries look first."
    )
    projector_outdim: int | None = _of_model(
        "projector_outdim", "Width of the language model; read from its configuration if not given.", COUNT
    )
    mm_conv_planes: int | None = _of_tower("Width of the convolutional projector.")
    num_queries: int | None = _of_tower("Learned segmentation queries.")
    conv_dim: int | None = _of_tower("Width of the pixel decoder.")
    mask_dim: int | None = _of_tower("Width of the mask features.")
    hidden_dim: int | None = _of_tower("Width of the mask predictor.")
    num_heads: int | None = _of_tower("Attention heads of the mask decoder.")
    encoder_layers: int | None = _of_tower("Layers of the pixel decoder.")
    encoder_feedforward_dim: int | None = _of_tower("Feed-forward width of the pixel decoder.")
    decoder_layers: int | None = _of_tower("Layers of the mask predictor.")
    decoder_feedforward_dim: int | None = _of_tower("Feed-forward width of the mask predictor.")
    num_points: int | None = _of_tower("Points per mask at which the mask losses are taken.")
    class_weight: float = _of_model("class_weight", "Weight of the class losses.", NOT_NEGATIVE)
    mask_weight: float = _of_model("mask_weight", "Weight of loss_mask.", NOT_NEGATIVE)
    dice_weight: float = _of_model("dice_weight", "Weight of loss_dice.", NOT_NEGATIVE)
    no_object_weight: float = _of_model("no_object_weight", "Weight of the background class.", POSITIVE)
    oversample_ratio: float = _of_model("oversample_ratio", "Candidates per point of the mask losses.", Range(1))
    importance_sample_ratio: float = _of_model(
        "importance_sample_ratio", "Fraction of the points placed where the mask is most uncertain.", FRACTION
    )


def _path(help: str, words: tuple[str, ...] = (), default: str | None = None) -> Any:  # noqa: A002
    return field(default=default, metadata={"help": help, "path": True, "words": words})


@dataclass
class DataArguments:
    """What it is trained and scored on."""

    seg_task: str | None = field(
        default=None,
        metadata={
            "help": f"One or more of {', '.join(TASKS)}, separated by commas; panoptic if nothing is said.",
            "parse": parse_tasks,
        },
    )
    cross_image_seg_task: bool = field(default=False, metadata={"help": "Train cross-image segmentation too."})
    data_ratio: str | None = field(
        default=None,
        metadata={
            "help": "How often each task of a mixture is drawn, as panoptic=1,region=2; 1 if not named.",
            "parse": parse_ratios,
        },
    )
    refer_expressions: Literal["each", "joined"] = field(
        default="each",
        metadata={
            "help": "Ask expressions that mean the same one at a time (the field's protocol), or joined (PSALM's)."
        },
    )
    region_mask_type: str = field(
        default="||".join(f"{kind}_visual_prompt_mask" for kind in PROMPT_TYPES),
        metadata={"help": "Types of visual prompts to use, separated by ||.", "parse": parse_mask_types},
    )

    panoptic_json_path: str = _path(
        "Folder in COCO layout (annotations/, images), or 'builtin'; other tasks look there too for what is not given.",
        (BUILTIN,),
        BUILTIN,
    )
    image_folder: str | None = _path("Folder of the images, where it is not beside the annotations.")
    instance_json_path: str | None = _path("COCO instances file, or PSALM's instance_*_psalm.json.")
    ref_coco_path: str | None = _path("RefCOCO: PSALM's JSON, refs(*).p, or their folder.")
    ref_coco_plus_path: str | None = _path("RefCOCO+: as ref_coco_path.")
    ref_coco_g_path: str | None = _path("RefCOCOg: as ref_coco_path.")
    refcoco_image_folder: str | None = _path("Folder of the images of the three (COCO's train2014).")
    referring_json_path: str | None = _path("Other referring data (gRefCOCO, own): as ref_coco_path.")
    referring_image_folder: str | None = _path("Folder of its images.")
    region_json_path: str | None = _path("COCO-Interactive in PSALM's JSON.")
    region_image_folder: str | None = _path("Folder of its images.")
    region_cross_json_path: str | None = _path("Pairs of images, as JSON.")
    region_cross_image_folder: str | None = _path("Folder of their images.")

    eval_panoptic_json_path: str | None = _path("As panoptic_json_path, for validation.", (BUILTIN,))
    eval_image_folder: str | None = _path("As image_folder, for validation.")
    eval_instance_json_path: str | None = _path("As instance_json_path, for validation.")
    eval_ref_coco_path: str | None = _path("As ref_coco_path, for validation.")
    eval_ref_coco_plus_path: str | None = _path("As ref_coco_plus_path, for validation.")
    eval_ref_coco_g_path: str | None = _path("As ref_coco_g_path, for validation.")
    eval_refcoco_image_folder: str | None = _path("As refcoco_image_folder, for validation.")
    eval_referring_json_path: str | None = _path("As referring_json_path, for validation.")
    eval_referring_image_folder: str | None = _path("As referring_image_folder, for validation.")
    eval_region_json_path: str | None = _path("As region_json_path, for validation.")
    eval_region_image_folder: str | None = _path("As region_image_folder, for validation.")
    eval_region_cross_json_path: str | None = _path("As region_cross_json_path, for validation.")
    eval_region_cross_image_folder: str | None = _path("As region_cross_image_folder, for validation.")
    eval_refer_split: str = field(
        default="val", metadata={"help": "Validation split of RefCOCO's own files: val, testA, testB or test."}
    )

    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the padded square in pixels; the vision tower's own if not given.",
            "range": Range(32),
        },
    )
    skip_bad_images: bool = field(
        default=False, metadata={"help": "Go on without images that are missing or truncated; they are counted."}
    )


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' arguments with PSALM's recipe as defaults, and what this loop adds."""

    output_dir: str = field(
        default="runs/train", metadata={"help": "Folder of the run: records, checkpoints, pictures."}
    )
    per_device_train_batch_size: int = field(
        default=4, metadata={"help": "Images per device and micro-batch in training."}
    )
    per_device_eval_batch_size: int = field(default=4, metadata={"help": "Images per device in evaluation."})
    num_train_epochs: float = field(
        default=10.0, metadata={"help": "Passes over the training data, unless max_steps is given."}
    )
    learning_rate: float = field(default=6e-5, metadata={"help": "Peak learning rate."})
    learning_rate_changes: dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate from given global steps on, as in '{50: 3.0e-4, 100: 6.0e-4}'; the schedule "
            "goes on as it was, and the rates of all parts change by the same ratio.",
            "parse": parse_changes,
        },
    )
    offset_lr_multiplier: float = field(
        default=1.0,
        metadata={
            "help": "Learning rate of the deformable projector's sampling offsets and learned reference points, as a "
            "multiple of learning_rate (Deformable DETR: 0.1).",
            "range": POSITIVE,
        },
    )
    backbone_lr_multiplier: float = field(
        default=1.0,
        metadata={
            "help": "Learning rate of the vision tower where it is trained, as a multiple of learning_rate "
            "(Mask2Former: 0.1).",
            "range": POSITIVE,
        },
    )
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "How the learning rate falls."})
    warmup_ratio: float = field(
        default=0.03,
        metadata={
            "help": "Fraction of the steps over which the learning rate rises, unless warmup_steps is given.",
            "range": FRACTION,
        },
    )
    optim: str = field(default="adamw_torch", metadata={"help": "The optimizer."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between logged losses."})
    eval_strategy: IntervalStrategy | str = field(
        default="steps", metadata={"help": "When to evaluate: every eval_steps, or only at the end (no)."}
    )
    eval_steps: float | None = field(default=500, metadata={"help": "Steps between evaluations."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept; older ones are deleted."})
    checkpoint_budget_gb: float | None = field(
        default=None,
        metadata={
            "help": "GB that all checkpoints and final models below checkpoint_budget_dir may take, of whichever run; "
            "one that would pass it is left out.",
            "range": POSITIVE,
        },
    )
    checkpoint_budget_dir: str | None = _path("Folder of the runs that share checkpoint_budget_gb.")
    save_final_model: bool = field(default=True, metadata={"help": "Save the model's weights at the end of the run."})
    save_predictions: bool = field(
        default=False, metadata={"help": "Write the last evaluation's predictions in COCO's result formats."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Compute activations again in the backward pass: less memory, more time."}
    )
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of gradient_checkpointing."}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bars."})
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU even if there is a GPU."})
    tf32: bool | None = field(
        default=None, metadata={"help": "Faster float32 products on GPUs that have them (Ampere); no effect on others."}
    )
    report_to: str | list[str] | None = field(
        default="none",
        metadata={"help": "Trackers of transformers to feed; a run's own records need none.", "words": ("none",)},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=True, metadata={"help": "Look for parameters without a gradient: a step trains the parts of its task."}
    )
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    dataloader_drop_last: bool = False

    def __post_init__(self) -> None:
        if "activation_checkpointing" in {f.name for f in dataclasses.fields(transformers.TrainingArguments)}:
            self.activation_checkpointing = self.gradient_checkpointing
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
            self.gradient_checkpointing, self.gradient_checkpointing_kwargs = None, None  # type: ignore[assignment]
        if not self.use_cpu and not torch.accelerator.is_available():
            self.use_cpu = True
        if self.tf32 and not is_torch_tf32_available():
            self.tf32 = None  # nothing to switch on, which transformers would take for an error
        if self.deepspeed is not None:
            name_single_process()
            without_compiled_collectives()
        super().__post_init__()
        if self.deepspeed is not None and self.hf_deepspeed_config.is_zero3():
            # Weights are saved whole, also where they are sharded.
            zero = self.hf_deepspeed_config.config["zero_optimization"]
            zero["stage3_gather_16bit_weights_on_model_save"] = True

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Steps of the linear warm-up: ``warmup_steps``, or the fraction ``warmup_ratio`` of all steps."""
        if self.warmup_steps > 0:
            return super().get_warmup_steps(num_training_steps)
        return -int(-self.warmup_ratio * num_training_steps // 1)


@dataclass
class Arguments:
    """Everything a run is told."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
