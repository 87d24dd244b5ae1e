"""The language model's folder, as on the hub: configuration, tokenizer, weights."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from psalm.constants import SEG_TOKEN
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.weight_files import BUILTIN, BUILTIN_FOLDER, CONFIG_FILE, existing_folder, read_json

PAD_TOKEN = "<|pad|>"


def llm_hidden_size(model_name_or_path: str) -> int:
    """Width of the LLM's hidden states, read from its ``config.json`` alone.

    Raises:
        ValueError: there is no such file, or it does not say.
    """
    return int(read_language_config(resolve_language_model(model_name_or_path))["hidden_size"])


def read_language_config(folder: Path) -> dict[str, Any]:
    """The LLM's ``config.json``.

    Raises:
        ValueError: there is no such file, or it is not of a language model.
    """
    config = read_json(folder / CONFIG_FILE)
    for name in ("model_type", "hidden_size", "vocab_size"):
        if name not in config:
            raise ValueError(f"{folder / CONFIG_FILE} has no {name}: it is not the configuration of a language model")
    return config


def resolve_language_model(model_name_or_path: str) -> Path:
    """The LLM's folder; ``builtin`` is the toy Phi."""
    if model_name_or_path == BUILTIN:
        return BUILTIN_FOLDER / "phi"
    return existing_folder("model_name_or_path", model_name_or_path)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, with [SEG] and a padding token added where it has none.

    Raises:
        ValueError: the folder has no tokenizer.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise ValueError(f"{folder} has no tokenizer: tokenizer.json, vocab.json or tokenizer.model is needed")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.add_tokens([SEG_TOKEN], special_tokens=True)
    return tokenizer


def load_language_model(model: PsalmForSegmentation, folder: Path) -> None:
    """Fills the LLM from a folder as on the hub (safetensors or ``.bin``, which is read as weights only).

    Rows of tokens that the folder does not know keep their initial values.

    Raises:
        ValueError: the folder has no weights, or lacks some.
    """
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ValueError(f"{folder} has no weights: *.safetensors or *.bin is needed")
    llm, info = AutoModel.from_pretrained(
        folder, config=AutoConfig.from_pretrained(folder), local_files_only=True, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} weights: {', '.join(missing)}")
    state = llm.state_dict()
    rows = model.model.embed_tokens.weight.detach().clone()
    rows[: len(state["embed_tokens.weight"])] = state["embed_tokens.weight"]
    model.model.load_state_dict({**state, "embed_tokens.weight": rows}, strict=False)
