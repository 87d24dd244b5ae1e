"""Ready-made masks are those that transformers' language models would make themselves."""

import math
from typing import Any

import pytest
import torch
from transformers import AutoModel, LlamaConfig, Phi3Config, PhiConfig, PreTrainedConfig, Qwen2Config

from psalm.model.causal_masks import CausalMasks

SIZES: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
QWEN = {**SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
B, T = 2, 12


@pytest.mark.parametrize(
    "config",
    [
        PhiConfig(**SIZES),
        Phi3Config(**SIZES),
        Phi3Config(**SIZES, sliding_window=5),
        Phi3Config(**SIZES, sliding_window=T + 1),
        LlamaConfig(**SIZES),
        Qwen2Config(**QWEN),
        Qwen2Config(**{**QWEN, "use_sliding_window": False}),
    ],
    ids=["phi", "phi3", "phi3-window", "phi3-wide-window", "llama", "qwen2-mixed", "qwen2-full"],
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hidden_states_are_those_without_a_mask_of_ours(config: PreTrainedConfig, attention: str) -> None:
    torch.manual_seed(0)
    llm = AutoModel.from_config(config, attn_implementation=attention).eval()
    embeddings = torch.randn(B, T, 32)
    expected = llm(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    actual = llm(inputs_embeds=embeddings, attention_mask=CausalMasks(config)(embeddings), use_cache=False)
    torch.testing.assert_close(actual.last_hidden_state, expected, atol=1e-6, rtol=1e-6)


def test_a_window_is_as_wide_as_it_says() -> None:
    mask = CausalMasks(Phi3Config(**SIZES, sliding_window=3))(torch.zeros(B, T, 32, dtype=torch.bfloat16))
    assert isinstance(mask, torch.Tensor)
    assert mask.shape == (B, 1, T, T)
    assert mask.dtype == torch.bfloat16
    for query in range(T):
        for key in range(T):
            assert mask[1, 0, query, key] == (0 if query - 3 < key <= query else -math.inf)


def test_layers_that_attend_otherwise_are_refused() -> None:
    config = PhiConfig(**SIZES)
    config.layer_types = ["full_attention", "chunked_attention", "linear_attention"]
    message = "must have full_attention or sliding_attention, but phi has chunked_attention, linear_attention"
    with pytest.raises(ValueError, match=message):
        CausalMasks(config)
