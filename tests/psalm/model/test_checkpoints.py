import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM

from psalm.constants import SEG_TOKEN
from psalm.model.checkpoints import build_model, load_model
from psalm.model.configuration import PsalmConfig
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.language_weights import llm_hidden_size, load_tokenizer
from psalm.model.mask_decoder.pixel_decoder import pixel_decoder_to_detectron2
from psalm.model.multimodal_encoder.swin import swin_to_detectron2
from psalm.model.vision_weights import load_vision_tower, resolve_vision_tower
from psalm.model.weight_files import BUILTIN_FOLDER

SIZES: dict[str, Any] = {
    "vision_config": {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2]},
    "mm_conv_planes": 16, "num_queries": 5, "conv_dim": 32, "mask_dim": 16, "hidden_dim": 32, "num_heads": 4,
    "encoder_layers": 1, "encoder_feedforward_dim": 32, "decoder_layers": 3, "decoder_feedforward_dim": 32,
}  # fmt: skip


def build(tower: Path, **settings: Any) -> PsalmForSegmentation:
    return build_model("builtin", str(tower), "base", **settings)[0]


def detectron2_state(model: PsalmForSegmentation) -> dict[str, Tensor]:
    """The model's tower and mask decoder under Detectron2's names, without PSALM's own score projections."""
    parts = {
        "backbone.": swin_to_detectron2(model.model.vision_tower.state_dict()),
        "sem_seg_head.pixel_decoder.": pixel_decoder_to_detectron2(model.pixel_decoder.state_dict()),
        "sem_seg_head.predictor.": {n: t for n, t in model.predictor.state_dict().items() if "_proj." not in n}
        | {n: t for n, t in model.predictor.state_dict().items() if ".in_proj" in n or ".out_proj" in n},
    }
    return {prefix + name: tensor.clone() for prefix, state in parts.items() for name, tensor in state.items()}


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    """A tower's folder with the weights of seed 1."""
    folder = tmp_path / "tower"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SIZES))
    torch.manual_seed(1)
    save_file(detectron2_state(build(folder, random_weights=True)), folder / "model.safetensors")
    return folder


def test_a_tower_is_loaded_and_every_name_accounted_for(tower: Path) -> None:
    state = load_file(tower / "model.safetensors")
    extra = {
        "sem_seg_head.predictor.class_embed.weight": torch.zeros(3, 3),
        "criterion.empty_weight": torch.zeros(3),
        "backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(3, 3, dtype=torch.int64),
    }
    save_file({**state, **extra}, tower / "model.safetensors")
    model = build(tower, random_weights=True)
    report = load_vision_tower(model, tower)
    assert all(torch.equal(tensor, state[name]) for name, tensor in detectron2_state(model).items())
    assert set(report.unused) == {"sem_seg_head.predictor.class_embed.weight", "criterion.empty_weight"}
    assert report.computed == ("backbone.layers.0.blocks.0.attn.relative_position_index",)
    assert {name.split(".")[1] for name in report.initial} == {"CLASS_proj", "SEG_proj", "REGION_proj"}
    parts = ("model.vision_tower.", "pixel_decoder.", "predictor.")
    own = {name for name in model.state_dict() if name.startswith(parts)}
    assert set(report.loaded) | set(report.initial) == own
    assert not set(report.loaded) & set(report.initial)


def test_the_report_is_one_line(tower: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "psalm"):
        build(tower)
    (message,) = (record.getMessage() for record in caplog.records if "left at initial values" in record.getMessage())
    assert "\n" not in message
    assert message.startswith(f"{tower / 'model.safetensors'}: ")
    assert " loaded, 0 unused, 12 (predictor.CLASS_proj.layers.0.bias, " in message


def test_half_precision_files_fill_a_float32_model(tower: Path) -> None:
    path = tower / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    assert {parameter.dtype for parameter in build(tower).parameters()} == {torch.float32}


def test_a_longer_table_of_queries_is_cut(tower: Path) -> None:
    table = load_file(tower / "model.safetensors")["sem_seg_head.predictor.query_embed.weight"]
    model = build(tower, num_queries=3)
    assert torch.equal(model.predictor.query_embed.weight, table[:3])
    with pytest.raises(ValueError, match="does not fit: the checkpoint has 5 queries, but num_queries is 6"):
        build(tower, num_queries=6)


def test_a_tower_of_another_size_is_refused_with_both_shapes(tower: Path) -> None:
    sizes = {**SIZES, "vision_config": {**SIZES["vision_config"], "embed_dim": 16}}
    (tower / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(
        ValueError, match=r"does not fit swin_type base: .*\.o_proj\.bias is \[8\] there, but \[16\] in"
    ):
        build(tower)


def test_a_file_that_does_not_fit_changes_nothing(tower: Path) -> None:
    model = build(tower, random_weights=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = load_file(tower / "model.safetensors")
    state["sem_seg_head.predictor.decoder_norm.bias"] = torch.zeros(7)
    save_file(state, tower / "model.safetensors")
    with pytest.raises(ValueError, match=r"predictor.decoder_norm.bias is \[7\] there, but \[32\] in the model"):
        load_vision_tower(model, tower)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_tower_without_weights_is_refused_unless_asked_for(tower: Path) -> None:
    (tower / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"model\.safetensors is missing: a vision tower is a folder with config\.json"
    ):
        build(tower)
    build(tower, random_weights=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json is missing"),
        ("{", "config.json is not JSON"),
        ("[1]", "config.json must hold one JSON object, but holds a list"),
        ('{"embed_dim": 3}', "config.json may hold .*, but holds embed_dim"),
        ('{"swin_type": "large"}', "swin_type is base, but .*config.json is a tower of swin_type large"),
    ],
)
def test_a_bad_tower_configuration_is_named(tower: Path, content: str | None, message: str) -> None:
    if content is None:
        (tower / "config.json").unlink()
    else:
        (tower / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        build(tower)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"vision_tower must be 'builtin' or a folder, but there is no folder .*/nowhere"
    ):
        build(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="model_name_or_path must be 'builtin' or a folder"):
        llm_hidden_size("microsoft/phi-1_5")


def test_overrides_go_before_the_tower_and_none_is_no_override(tower: Path) -> None:
    config = build(tower, random_weights=True, num_points=32, num_queries=None, mm_hidden_dim=64, mm_n_heads=2).config
    assert (config.num_points, config.num_queries, config.mm_hidden_dim, config.mm_n_heads) == (32, 5, 64, 2)
    assert config.mm_n_points == PsalmConfig.mm_n_points


def test_weights_depend_on_the_seed_alone(tower: Path) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build(tower).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.fixture
def phi(tmp_path: Path) -> Path:
    """An LLM's folder as on the hub: a head, a tokenizer that knows neither [SEG] nor padding, spare rows or none."""
    folder = tmp_path / "phi"
    torch.manual_seed(2)
    builtin = load_tokenizer(BUILTIN_FOLDER / "phi")
    config = PhiConfig(
        vocab_size=len(builtin), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    PhiForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (BUILTIN_FOLDER / "phi" / name).read_text()
        (folder / name).write_text(text.replace(SEG_TOKEN, "[OTHER]").replace('"pad_token": "<|pad|>",', ""))
    return folder


def test_an_llm_is_loaded_and_grows_with_its_tokenizer(phi: Path, tower: Path) -> None:
    model, tokenizer = build_model(str(phi), str(tower), "base", projector_outdim=32)
    saved = PhiForCausalLM.from_pretrained(phi).model.state_dict()
    loaded = model.model.state_dict()
    rows = saved.pop("embed_tokens.weight")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())
    assert torch.equal(loaded["embed_tokens.weight"][: len(rows)], rows)
    assert len(loaded["embed_tokens.weight"]) == len(tokenizer) == len(rows) + 1
    assert tokenizer.encode(SEG_TOKEN, add_special_tokens=False) == [len(rows)]
    assert tokenizer.pad_token == "<|pad|>"


def test_an_llm_without_weights_or_tokenizer_is_refused(phi: Path, tower: Path) -> None:
    (phi / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="phi has no weights"):
        build_model(str(phi), str(tower), "base")
    (phi / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="phi has no tokenizer"):
        build_model(str(phi), str(tower), "base")


def test_projector_outdim_is_checked_against_the_llm(tower: Path) -> None:
    assert llm_hidden_size("builtin") == 96
    with pytest.raises(ValueError, match="projector_outdim must be the LLM's hidden size 96, but got 2048"):
        build(tower, random_weights=True, projector_outdim=2048)


def test_a_saved_model_opens_with_its_tokenizer(tower: Path, tmp_path: Path) -> None:
    model, tokenizer = build_model("builtin", str(tower), "base")
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    again, same = load_model(tmp_path / "run")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert same.get_vocab() == tokenizer.get_vocab()
    assert not again.training
    with pytest.raises(
        ValueError, match=r"run/config.json has no hidden_size: it is not the configuration of a language"
    ):
        llm_hidden_size(str(tmp_path / "run"))


def test_only_a_psalm_checkpoint_opens_as_one(phi: Path) -> None:
    with pytest.raises(ValueError, match="is not the configuration of a PSALM model"):
        load_model(phi)


@pytest.mark.parametrize("swin_type", ["base", "large"])
def test_builtin_towers_build(swin_type: str) -> None:
    model, _ = build_model("builtin", "builtin", swin_type, random_weights=True)
    assert model.config.swin_type == swin_type
    assert model.config.image_size == 128
    assert resolve_vision_tower("builtin", swin_type).is_dir()


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
