"""An LLM's folder as on the hub fills the model exactly, and nothing in it is run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from psalm.constants import SEG_TOKEN
from psalm.model.checkpoints import build_model, check_model
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.language_weights import NOT_ARCHITECTURE, PAD_TOKEN, load_tokenizer, read_language_config
from psalm.model.weight_files import BUILTIN_FOLDER

Folder = Callable[..., Path]

SIZES: dict[str, Any] = {
    "vocab_size": 1280, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
LAYER = "model.layers.1.self_attn"


@pytest.fixture
def build(empty_tower: Path) -> Callable[..., PsalmForSegmentation]:
    """The model around an LLM's folder."""

    def make(folder: Path, **settings: Any) -> PsalmForSegmentation:
        return build_model(str(folder), str(empty_tower), "base", **settings)[0]

    return make


def state_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "options",
    [{}, {"max_shard_size": "100KB"}],
    ids=["one file", "shards"],
)
def test_an_llm_is_loaded_and_every_name_accounted_for(
    language_folder: Folder, build: Callable[..., PsalmForSegmentation], options: dict[str, Any]
) -> None:
    folder = language_folder(**options)
    assert len([*folder.glob("*.safetensors")]) == (1 if not options else len([*folder.glob("model-*")]))
    saved = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    model = build(folder)
    loaded = model.state_dict()
    report = model.key_reports[0]
    assert report.source == folder
    assert set(report.loaded) == {name for name in saved if name.startswith("model.")}
    assert set(report.unused) == {"lm_head.weight", "lm_head.bias"}
    assert report.initial == ("model.embed_tokens.weight[1280:1281]",)
    for name in report.loaded:
        assert torch.equal(loaded[name][: len(saved[name])], saved[name]), name


def test_bin_files_and_names_without_prefix_are_read_too(
    language_folder: Folder, build: Callable[..., PsalmForSegmentation]
) -> None:
    folder = language_folder()
    state = state_of(folder)
    (folder / "model.safetensors").unlink()
    bare = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    torch.save(bare, folder / "pytorch_model.bin")
    model = build(folder)
    assert model.key_reports[0].computed == ("layers.0.self_attn.rotary_emb.inv_freq",)
    assert model.key_reports[0].unused == ()
    assert torch.equal(model.state_dict()[f"{LAYER}.q_proj.weight"], state[f"{LAYER}.q_proj.weight"])


def fuse(projections: list[Tensor], heads: int) -> Tensor:
    """Rows of query, key and value in turns, head by head."""
    rows = []
    size = len(projections[0]) // heads
    for head in range(heads):
        for projection in projections:
            rows += [projection[head * size + row] for row in range(size)]
    return torch.stack(rows)


def test_fused_attention_of_older_phi_is_split(
    language_folder: Folder, build: Callable[..., PsalmForSegmentation]
) -> None:
    folder = language_folder()
    state = state_of(folder)
    for layer in range(2):
        for kind in ("weight", "bias"):
            names = [f"model.layers.{layer}.self_attn.{letter}_proj.{kind}" for letter in "qkv"]
            fused = fuse([state.pop(name) for name in names], heads=2)
            state[f"model.layers.{layer}.self_attn.query_key_value.{kind}"] = fused
    before = state_of(folder)
    save_file(state, folder / "model.safetensors")
    loaded = build(folder).state_dict()
    for letter in "qkv":
        for kind in ("weight", "bias"):
            name = f"{LAYER}.{letter}_proj.{kind}"
            assert torch.equal(loaded[name], before[name]), name


def test_fused_attention_that_does_not_fit_the_heads_is_refused(
    language_folder: Folder, build: Callable[..., PsalmForSegmentation]
) -> None:
    folder = language_folder()
    save_file({f"{LAYER}.query_key_value.bias": torch.zeros(95)}, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"query_key_value\.bias has 95 rows, but must have 3 for each channel of 2 heads$"
    ):
        build(folder)


@pytest.mark.parametrize(
    "config",
    [
        PhiConfig(**{**SIZES, "num_key_value_heads": 4}, partial_rotary_factor=0.25),
        PhiConfig(**SIZES, qk_layernorm=True),
        Phi3Config(**SIZES, sliding_window=5, rope_parameters={"rope_theta": 5e3, "rope_type": "default"}),
        Phi3Config(
            **SIZES,
            max_position_embeddings=64,
            original_max_position_embeddings=32,
            rope_parameters={
                "rope_theta": 1e4, "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4
            },
        ),
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=True),
        GPT2Config(vocab_size=1280, n_embd=32, n_layer=1, n_head=2, n_positions=64),
    ],
    ids=["phi", "phi-grouped", "phi3-window", "phi3-longrope", "qwen2-tied", "gpt2"],
)  # fmt: skip
def test_it_reads_as_transformers_own_model_does(
    language_folder: Folder, build: Callable[..., PsalmForSegmentation], config: PreTrainedConfig
) -> None:
    folder = language_folder(config)
    model = build(folder).eval()
    own = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(model.model) is type(own)
    embeddings = torch.randn(2, 11, 32)
    expected = own(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    torch.testing.assert_close(model.understand(embeddings), expected, atol=1e-6, rtol=1e-6)
    ids = torch.tensor([3, 7])
    assert torch.equal(model.embed(ids), own.get_input_embeddings()(ids))
    buffers, theirs = dict(model.model.named_buffers()), dict(own.named_buffers())
    assert all(torch.equal(buffers[name], theirs[name]) for name in theirs)


def test_half_precision_files_fill_a_float32_model(
    language_folder: Folder, build: Callable[..., PsalmForSegmentation]
) -> None:
    folder = language_folder(dtype=torch.float16)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    model = build(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    stored = state_of(folder)[f"{LAYER}.q_proj.weight"]
    assert torch.equal(model.state_dict()[f"{LAYER}.q_proj.weight"], stored.float())


def test_rows_of_new_tokens_are_drawn_as_transformers_draws_them(
    language_folder: Folder, build: Callable[..., PsalmForSegmentation]
) -> None:
    folder = language_folder(PhiConfig(**{**SIZES, "vocab_size": 900}, initializer_range=0.5))
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(build(folder).model.embed_tokens.weight.detach())
    first, same, other = models
    assert first.shape == (1281, 32)
    assert torch.equal(first, same)
    assert torch.equal(first[:900], other[:900])
    assert not torch.equal(first[900:], other[900:])
    assert first[900:].std() == pytest.approx(0.5, rel=0.05)


def test_spare_rows_of_the_folder_are_kept(language_folder: Folder, build: Callable[..., PsalmForSegmentation]) -> None:
    folder = language_folder(PhiConfig(**{**SIZES, "vocab_size": 1400}))
    model = build(folder)
    assert torch.equal(model.model.embed_tokens.weight, state_of(folder)["model.embed_tokens.weight"])
    assert model.key_reports[0].initial == ()


def test_all_weights_come_from_the_folder_whatever_the_seed(
    language_folder: Folder, build: Callable[..., PsalmForSegmentation]
) -> None:
    folder = language_folder(PhiConfig(**{**SIZES, "vocab_size": 1400}))
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(build(folder).model.state_dict())
    names = [name for name in states[0] if not name.startswith(("mm_projector", "vision_tower"))]
    assert all(torch.equal(states[0][name], states[1][name]) for name in names)


def test_missing_weights_are_named(language_folder: Folder, build: Callable[..., PsalmForSegmentation]) -> None:
    folder = language_folder()
    state = state_of(folder)
    for name in (f"{LAYER}.q_proj.weight", f"{LAYER}.k_proj.weight", "model.final_layernorm.bias"):
        del state[name]
    save_file(state, folder / "model.safetensors")
    named = r"model\.\{layers\.1\.self_attn\.\{q_proj,k_proj\}\.weight,final_layernorm\.bias\}$"
    with pytest.raises(ValueError, match=rf"llm lacks 3 weights: {named}"):
        build(folder)


def test_a_table_with_more_rows_than_the_configuration_says_is_refused(
    language_folder: Folder, build: Callable[..., PsalmForSegmentation]
) -> None:
    folder = language_folder(PhiConfig(**{**SIZES, "vocab_size": 1400}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 1300}))
    with pytest.raises(ValueError, match=r"embed_tokens\.weight is \[1400, 32\] there, but \[1300, 32\] in the model"):
        build(folder)


def test_a_folder_without_weights_or_tokenizer_is_refused(
    language_folder: Folder, build: Callable[..., PsalmForSegmentation]
) -> None:
    folder = language_folder()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"llm has no weights"):
        build(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"llm has no tokenizer: tokenizer\.json, vocab\.json or tokenizer\.model is"):
        build(folder)


def test_what_fits_is_checked_without_numbers(language_folder: Folder, empty_tower: Path) -> None:
    folder = language_folder()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    check_model(str(folder), str(empty_tower), "base")
    assert torch.equal(before, torch.get_rng_state())
    state = state_of(folder)
    save_file({**state, "model.final_layernorm.bias": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.final_layernorm\.bias is \[3\] there, but \[32\] in the model"):
        check_model(str(folder), str(empty_tower), "base")


def test_seg_and_a_padding_token_are_added_once(language_folder: Folder, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(language_folder())
    assert tokenizer.pad_token == PAD_TOKEN
    assert tokenizer.encode(SEG_TOKEN, add_special_tokens=False) == [1280]
    tokenizer.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.pad_token_id, len(again)) == (tokenizer.pad_token_id, 1281)


def test_a_padding_token_that_ends_text_too_is_kept(language_folder: Folder) -> None:
    folder = language_folder()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<|endoftext|>"}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == 1281


def test_the_builtin_tokenizer_encodes_any_text_and_is_written_anew_alike(tmp_path: Path) -> None:
    from psalm.tools.make_builtin_phi import write

    tokenizer = load_tokenizer(BUILTIN_FOLDER / "phi")
    text = "Grüße, 东西!\n\tthe red circle left of 7 squares"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert tokenizer.tokenize(f"traffic light{SEG_TOKEN}") == ["traffic", "Ġlight", SEG_TOKEN]
    write(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        fresh, shipped = (
            json.loads((tmp_path / name).read_text()),
            json.loads((BUILTIN_FOLDER / "phi" / name).read_text()),
        )
        for content in (fresh, shipped):
            content.pop("transformers_version", None)
        assert fresh == shipped


OLDER_PHI: dict[str, Any] = {
    "model_type": "phi", "architectures": ["PhiForCausalLM"], "num_key_value_heads": None, "rope_scaling": None,
    "rope_theta": 5000.0, "partial_rotary_factor": 0.4, "torch_dtype": "float16", "vocab_size": 51200,
}  # fmt: skip
OLDER_PHI3: dict[str, Any] = {
    "model_type": "phi3", "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "hidden_size": 64,
    "num_attention_heads": 8, "rope_theta": 10000.0, "sliding_window": 2047, "attention_bias": False,
    "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
}  # fmt: skip


@pytest.mark.parametrize("entries", [OLDER_PHI, OLDER_PHI3], ids=["phi", "phi3"])
def test_older_configurations_mean_what_transformers_reads_in_them(tmp_path: Path, entries: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(entries))
    theirs = AutoConfig.from_pretrained(tmp_path, trust_remote_code=False).to_dict()
    ours = read_language_config(tmp_path).to_dict()
    differing = {name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)}
    assert differing <= {*NOT_ARCHITECTURE, "_name_or_path"}
    assert ours["rope_parameters"]["rope_theta"] == entries["rope_theta"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config.json has no model_type: it is not the configuration of a language model"),
        ({"model_type": "vit"}, "config.json has no vocab_size: it is not the configuration of a language model"),
        ({"model_type": "phi", "hidden_size": "wide"}, "config.json is not valid: .*hidden_size"),
        ({"model_type": "phy"}, "model_type must be one of transformers' own, as phi or phi3, but is 'phy'$"),
    ],
)
def test_a_bad_configuration_is_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as refusal:
        read_language_config(tmp_path)
    assert "\n" not in str(refusal.value)


CODE = 'open({marker!r}, "w").close()\nclass Model: ...\n'
MAPS = {
    "auto_map": {"AutoConfig": "code.Model", "AutoModel": "code.Model", "AutoTokenizer": ["code.Model", "code.Model"]}
}


@pytest.fixture
def with_code(language_folder: Folder, tmp_path: Path) -> tuple[Path, Path]:
    """A folder with a module that says so when it is run, and what would be there then."""
    folder, marker = language_folder(), tmp_path / "was run"
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    return folder, marker


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_code_of_a_model_that_transformers_does_not_know_is_not_run(
    with_code: tuple[Path, Path], build: Callable[..., PsalmForSegmentation]
) -> None:
    folder, marker = with_code
    change(folder / "config.json", model_type="mixformer-sequential", **MAPS)
    message = r"config\.json: model_type .* is 'mixformer-sequential'; the code that its folder names .* is never run$"
    with pytest.raises(ValueError, match=message) as refusal:
        build(folder)
    assert "\n" not in str(refusal.value)
    assert not marker.exists()


def test_code_beside_a_model_that_transformers_knows_is_not_run(
    with_code: tuple[Path, Path], build: Callable[..., PsalmForSegmentation]
) -> None:
    folder, marker = with_code
    change(folder / "config.json", attn_implementation="someone/kernels", **MAPS)
    model = build(folder)
    assert model.key_reports[0].loaded
    assert model.model.config._attn_implementation == "sdpa"
    assert "auto_map" not in model.config.text_config.to_dict()
    assert not marker.exists()


def test_code_of_a_tokenizer_is_not_run(with_code: tuple[Path, Path]) -> None:
    folder, marker = with_code
    change(folder / "tokenizer_config.json", tokenizer_class="SomeoneTokenizer", **MAPS)
    assert len(load_tokenizer(folder)) == 1281
    assert not marker.exists()


def test_a_damaged_tokenizer_is_named(language_folder: Folder) -> None:
    folder = language_folder()
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"llm: its tokenizer cannot be read: ") as refusal:
        load_tokenizer(folder)
    assert "\n" not in str(refusal.value)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_pickle_that_is_more_than_weights_is_refused(
    language_folder: Folder, build: Callable[..., PsalmForSegmentation], tmp_path: Path
) -> None:
    folder, marker = language_folder(), tmp_path / "was run"
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Evil(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin") as refusal:
        build(folder)
    assert "\n" not in str(refusal.value)
    assert "getattr" in str(refusal.value)
    assert not marker.exists()
