"""Weights in: a model from an LLM's folder, a vision tower's weights and projectors, or one that was saved."""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from psalm.model.configuration import PsalmConfig
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.language_weights import (
    empty_language_model,
    load_language_model,
    load_tokenizer,
    read_language_config,
    resolve_language_model,
)
from psalm.model.projector_weights import load_projectors
from psalm.model.psalm_weights import OURS, is_whole_checkpoint, load_checkpoint, read_checkpoint_config
from psalm.model.vision_weights import load_vision_tower, read_tower_config, resolve_vision_tower
from psalm.model.weight_files import BUILTIN, CONFIG_FILE, read_json

log = logging.getLogger(__name__)


def build_model(
    model_name_or_path: str,
    vision_tower: str,
    swin_type: str,
    *,
    pretrain_mm_mlp_adapter: str | None = None,
    random_weights: bool = False,
    **overrides: Any,
) -> tuple[PsalmForSegmentation, PreTrainedTokenizerBase]:
    """A model in float32 at the start of its training, and its tokenizer.

    What the files' weights do not cover is drawn from torch's global generator: seed it first. The built-in LLM has no
    weights, so all of it is. What became of each name in the files is in the model's ``key_reports``, and in the log.

    Args:
        model_name_or_path: the LLM's folder, or ``builtin``; or a whole PSALM checkpoint, which brings its own tower.
        vision_tower: the tower's weights, or ``builtin`` for the toy one of ``swin_type``.
        swin_type: tiny, small, base or large.
        pretrain_mm_mlp_adapter: a file of projector weights to start from.
        random_weights: leave the tower, the mask decoder and the LLM at random weights.
        overrides: fields of ``PsalmConfig``; those that are None are as the tower, the checkpoint or the defaults say.

    Raises:
        ValueError: a folder or file is missing, does not fit, or contradicts ``swin_type``; the message is one line.
    """
    adapter = None if pretrain_mm_mlp_adapter is None else Path(pretrain_mm_mlp_adapter)
    model, tokenizer = _build(
        model_name_or_path, vision_tower, swin_type, adapter, random_weights, overrides, torch.device("cpu")
    )
    if vision_tower != BUILTIN and is_whole_checkpoint(resolve_language_model(model_name_or_path)):
        log.info("vision_tower %s is not read: %s brings its own", vision_tower, model_name_or_path)
    for report in model.key_reports:
        log.info("%s", report)
    return model, tokenizer


def check_model(
    model_name_or_path: str,
    vision_tower: str,
    swin_type: str,
    *,
    pretrain_mm_mlp_adapter: str | None = None,
    **overrides: Any,
) -> PsalmForSegmentation:
    """Does all that ``build_model`` does but reading and drawing numbers: a model of shapes alone takes no memory.

    Returns:
        That model, on the meta device.

    Raises:
        ValueError: as ``build_model`` would.
    """
    adapter = None if pretrain_mm_mlp_adapter is None else Path(pretrain_mm_mlp_adapter)
    return _build(model_name_or_path, vision_tower, swin_type, adapter, False, overrides, torch.device("meta"))[0]


def _build(
    model_name_or_path: str,
    vision_tower: str,
    swin_type: str,
    adapter: Path | None,
    random_weights: bool,
    overrides: dict[str, Any],
    device: torch.device,
) -> tuple[PsalmForSegmentation, PreTrainedTokenizerBase]:
    folder = resolve_language_model(model_name_or_path)
    whole = is_whole_checkpoint(folder)
    if whole:
        fields = read_checkpoint_config(folder, swin_type)
    else:
        tower = resolve_vision_tower(vision_tower, swin_type)
        fields = {**read_tower_config(tower, swin_type), "text_config": read_language_config(folder)}
    text_config = fields["text_config"]
    tokenizer = load_tokenizer(folder, text_config)
    text_config.vocab_size = max(text_config.vocab_size, len(tokenizer))
    given = {name: value for name, value in overrides.items() if value is not None}
    config = PsalmConfig(**{**fields, **given})

    filled = model_name_or_path != BUILTIN and not random_weights
    with device:
        language_model = empty_language_model(config.text_config) if filled else None
        model = PsalmForSegmentation(config, language_model)
    reports = []
    if whole:
        reports.append(load_checkpoint(model, folder))
    elif not random_weights:
        if filled:
            reports.append(load_language_model(model, folder))
        reports.append(load_vision_tower(model, tower))
    if adapter is not None:
        reports.append(load_projectors(model, adapter))
    model.key_reports = tuple(reports)
    return model, tokenizer


def load_model(folder: str | Path) -> tuple[PsalmForSegmentation, PreTrainedTokenizerBase]:
    """A model that was saved by ``save_pretrained``, in evaluation mode, and its tokenizer.

    Raises:
        ValueError: the folder holds no such model, or not all of its weights.
    """
    folder = Path(folder)
    if read_json(folder / CONFIG_FILE).get("model_type") != OURS:
        raise ValueError(f"{folder / CONFIG_FILE} is not the configuration of a PSALM model")
    return PsalmForSegmentation.from_pretrained(folder, local_files_only=True), load_tokenizer(folder)
