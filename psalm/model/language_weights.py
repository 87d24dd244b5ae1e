"""The language model's folder, as on the hub: configuration, tokenizer, weights."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from psalm.constants import SEG_TOKEN
from psalm.model.filling import Explain, Rename, fill, no_explanation, outlines
from psalm.model.key_report import KeyReport
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.weight_files import BUILTIN, BUILTIN_FOLDER, CONFIG_FILE, open_weights, read_json

PAD_TOKEN = "<|pad|>"

NOT_ARCHITECTURE = frozenset((
    "auto_map",  # code beside the weights
    "attn_implementation", "_attn_implementation", "experts_implementation",  # may name code on the hub
    "dtype", "torch_dtype", "quantization_config",  # what is trained is float32
))  # fmt: skip
"""Entries of a ``config.json`` that are left out: the model's own code runs, and nothing else."""

_FUSED = re.compile(r"(.*\.self_attn)\.query_key_value\.(weight|bias)")


def resolve_language_model(model_name_or_path: str) -> Path:
    """The LLM's folder; ``builtin`` is the toy Phi.

    Raises:
        ValueError: there is no such folder.
    """
    if model_name_or_path == BUILTIN:
        return BUILTIN_FOLDER / "phi"
    folder = Path(model_name_or_path)
    if not folder.is_dir():
        raise ValueError(f"model_name_or_path must be {BUILTIN!r} or a folder, but there is no folder {folder}")
    return folder


def read_language_config(folder: Path) -> PreTrainedConfig:
    """The LLM's configuration, from its ``config.json``.

    Raises:
        ValueError: there is no such file, or it is not of a language model that transformers knows by itself.
    """
    path = folder / CONFIG_FILE
    return language_config(read_json(path), path)


def language_config(entries: Mapping[str, Any], path: Path) -> PreTrainedConfig:
    """The configuration that these entries of a file describe, less those of ``NOT_ARCHITECTURE``.

    Raises:
        ValueError: they are not of a language model that transformers knows by itself.
    """
    kind = entries.get("model_type")
    if kind is None:
        raise ValueError(f"{path} has no model_type: it is not the configuration of a language model")
    if kind not in CONFIG_MAPPING:
        code = "; the code that its folder names (auto_map) is never run" if "auto_map" in entries else ""
        raise ValueError(f"{path}: model_type must be one of transformers' own, as phi or phi3, but is {kind!r}{code}")
    unsaid = () if entries.get("rope_scaling") else ("rope_scaling",)  # an old way to say nothing
    kept = {name: value for name, value in entries.items() if name not in (*NOT_ARCHITECTURE, *unsaid)}
    try:
        config = AutoConfig.for_model(**kept)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not valid: {' '.join(str(error).split())}") from error
    for name in ("hidden_size", "vocab_size"):
        if not hasattr(config, name):
            raise ValueError(f"{path} has no {name}: it is not the configuration of a language model")
    return config


def load_tokenizer(folder: Path, config: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, with [SEG] and a padding token added where it has none.

    A padding token that is the end of text too is kept: what is padded is masked, whatever stands there.

    Args:
        folder: has ``tokenizer.json``, or other files that transformers reads.
        config: the LLM's, where the folder's own is of more than that.

    Raises:
        ValueError: the folder has no tokenizer that transformers can read by itself.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise ValueError(f"{folder} has no tokenizer: tokenizer.json, vocab.json or tokenizer.model is needed")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # those of the package tokenizers have no class of their own
        raise ValueError(f"{folder}: its tokenizer cannot be read: {' '.join(str(error).split())}") from error
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.add_tokens([SEG_TOKEN], special_tokens=True)
    return tokenizer


def empty_language_model(config: PreTrainedConfig) -> PreTrainedModel:
    """An LLM whose weights are to be filled: they are in memory, but hold nothing yet; its buffers are right."""
    with no_init_weights():
        llm: PreTrainedModel = AutoModel.from_config(config, trust_remote_code=False)
    return llm


def load_language_model(model: PsalmForSegmentation, folder: Path) -> KeyReport:
    """Fills the LLM from a folder as on the hub (safetensors or ``.bin``, which is read as weights only).

    Rows of tokens that the folder does not know are drawn as transformers draws them.

    Raises:
        ValueError: the folder has no weights, lacks some, or has some of other shapes.
    """
    weights = open_weights(folder)
    names = language_names(model.model, folder)
    return fill_with_new_tokens(model, language_state(model), weights, names, folder, optional=lambda name: False)


def fill_with_new_tokens(
    model: PsalmForSegmentation,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    rename: Rename,
    source: Path,
    *,
    optional: Callable[[str], bool],
    explain: Explain = no_explanation,
) -> KeyReport:
    """As ``fill``, for tensors of a model among which the LLM's are; buffers may be missing.

    The file's table of embeddings may have fewer rows than the model's, which knows more tokens: transformers' own rule
    draws the others, and the report names them.
    """
    table = model.model.get_input_embeddings().weight
    name = next(name for name, parameter in model.named_parameters() if parameter is table)
    prefix = f"{model.model.base_model_prefix}."
    shapes = {theirs: outline.shape for theirs, outline in outlines(weights).items()}
    stored = [theirs for theirs in shapes if name in (theirs, f"model.{theirs.removeprefix(prefix)}")]
    rows = min((shapes[theirs][0] for theirs in stored), default=len(table))
    buffers = dict(model.named_buffers())
    report = fill(
        {**own, name: own[name][:rows]},
        weights,
        rename,
        source,
        optional=lambda name: name in buffers or optional(name),
        explain=explain,
    )
    if rows >= len(table):
        return report
    fresh = nn.Embedding(len(table) - rows, table.shape[1], device=table.device, dtype=table.dtype)
    model.model._init_weights(fresh)
    with torch.no_grad():
        table[rows:] = fresh.weight
    return dataclasses.replace(report, initial=(*report.initial, f"{name}[{rows}:{len(table)}]"))


def language_state(model: PsalmForSegmentation) -> dict[str, Tensor]:
    """The LLM's tensors under their names in the model."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("model.") and not name.startswith(("model.vision_tower.", "model.mm_projector"))
    }


def language_names(llm: PreTrainedModel, source: Path) -> Rename:
    """From the names in an LLM's files to those in our model; ``source`` is the file that errors name.

    Files of the model with its head have ``model.`` before each name, others have not. Phi's of transformers 4.36 fuse
    the attention's projections: rows of ``query_key_value`` are [heads, 3, head_dim], as in GPT-NeoX.
    """
    own = {name for name, _ in llm.named_parameters()}
    prefix = f"{llm.base_model_prefix}."

    def rename(name: str, tensor: Tensor) -> dict[str, Tensor]:
        bare = name.removeprefix(prefix)
        fused = _FUSED.fullmatch(bare)
        if fused is None or bare in own:
            return {f"model.{bare}": tensor}
        heads = llm.config.num_attention_heads
        if len(tensor) % (3 * heads):
            raise ValueError(
                f"{source}: {name} has {len(tensor)} rows, but must have 3 for each channel of {heads} heads"
            )
        parts = tensor.unflatten(0, (heads, 3, -1)).unbind(1)
        return {
            f"model.{fused[1]}.{kind}_proj.{fused[2]}": part.flatten(0, 1)
            for kind, part in zip("qkv", parts, strict=True)
        }

    return rename
