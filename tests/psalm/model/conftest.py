"""Files to start from, of the real formats and a few thousand numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PhiConfig, PreTrainedConfig

from psalm.constants import SEG_TOKEN
from psalm.model.weight_files import BUILTIN_FOLDER

TOKENS = 1280
"""Of the tokenizer of ``language_folder``: the built-in one with another word in the place of [SEG]."""


@pytest.fixture
def language_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes an LLM's folder as on the hub: a head, a tokenizer that knows neither [SEG] nor padding.

    Keywords are those of ``save_pretrained``.
    """

    def make(config: PreTrainedConfig | None = None, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
        folder = tmp_path / "llm"
        torch.manual_seed(2)
        if config is None:
            config = PhiConfig(
                vocab_size=TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
            )
        llm = AutoModelForCausalLM.from_config(config, dtype=dtype)
        for parameter in llm.parameters():  # biases too, which are drawn as zeros
            torch.nn.init.normal_(parameter, std=0.2)
        llm.save_pretrained(folder, **options)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            text = (BUILTIN_FOLDER / "phi" / name).read_text()
            (folder / name).write_text(text.replace(SEG_TOKEN, "[OTHER]").replace('"pad_token": "<|pad|>",', ""))
        return folder

    return make


@pytest.fixture(scope="session")
def empty_tower(tmp_path_factory: pytest.TempPathFactory, tiny_tower: dict[str, Any]) -> Path:
    """A vision tower's folder whose file fills nothing: all weights keep their initial values."""
    folder = tmp_path_factory.mktemp("tower")
    (folder / "config.json").write_text(json.dumps(tiny_tower))
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors")
    return folder
