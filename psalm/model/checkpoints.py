"""Weights in: a model from an LLM's folder, a vision tower's weights and projectors, or one that was saved."""

import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from psalm.model.configuration import PsalmConfig
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.language_weights import (
    load_language_model,
    load_tokenizer,
    read_language_config,
    resolve_language_model,
)
from psalm.model.projector_weights import load_projectors
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
    """A model at the start of its training, and its tokenizer.

    What the folders' weights do not cover is drawn from torch's global generator: seed it first. The built-in LLM has
    no weights, so all of it is.

    Args:
        model_name_or_path: the LLM's folder, or ``builtin``.
        vision_tower: the tower's folder, or ``builtin`` for the toy one of ``swin_type``.
        swin_type: base or large.
        pretrain_mm_mlp_adapter: a file of projector weights to start from.
        random_weights: leave the tower, the mask decoder and the LLM at random weights.
        overrides: fields of ``PsalmConfig``; those that are None are as the tower's folder or the defaults say.

    Raises:
        ValueError: a folder or file is missing, does not fit, or contradicts ``swin_type``; the message is one line.
    """
    llm_folder = resolve_language_model(model_name_or_path)
    tower_folder = resolve_vision_tower(vision_tower, swin_type)
    text_config = read_language_config(llm_folder)
    tokenizer = load_tokenizer(llm_folder)
    text_config["vocab_size"] = max(text_config["vocab_size"], len(tokenizer))
    given = {name: value for name, value in overrides.items() if value is not None}
    config = PsalmConfig(**{**read_tower_config(tower_folder, swin_type), **given, "text_config": text_config})
    model = PsalmForSegmentation(config)
    if not random_weights:
        if model_name_or_path != BUILTIN:
            load_language_model(model, llm_folder)
        log.info("%s", load_vision_tower(model, tower_folder))
    if pretrain_mm_mlp_adapter is not None:
        log.info("%s", load_projectors(model, Path(pretrain_mm_mlp_adapter)))
    return model, tokenizer


def load_model(folder: str | Path) -> tuple[PsalmForSegmentation, PreTrainedTokenizerBase]:
    """A model that was saved by ``save_pretrained``, in evaluation mode, and its tokenizer.

    Raises:
        ValueError: the folder holds no such model, or not all of its weights.
    """
    folder = Path(folder)
    if read_json(folder / CONFIG_FILE).get("model_type") != PsalmConfig.model_type:
        raise ValueError(f"{folder / CONFIG_FILE} is not the configuration of a PSALM model")
    return PsalmForSegmentation.from_pretrained(folder, local_files_only=True), load_tokenizer(folder)
