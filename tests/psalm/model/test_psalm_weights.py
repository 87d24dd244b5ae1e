"""Whole PSALM checkpoints, the released one's layout and our own, fill the whole model."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from psalm.model.checkpoints import build_model, check_model
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.multimodal_encoder.swin import swin_to_detectron2

DEFORMABLE = "model.mm_projector_deformable."
SIZES: dict[str, Any] = {"mm_hidden_dim": 16, "mm_n_heads": 4, "mm_n_points": 2}

Folder = Callable[..., Path]
Checkpoint = Callable[..., tuple[Path, PsalmForSegmentation]]


def build(folder: Path, seed: int = 0, tower: str = "builtin", **settings: Any) -> PsalmForSegmentation:
    torch.manual_seed(seed)
    return build_model(str(folder), tower, "base", **{**SIZES, **settings})[0]


@pytest.fixture
def trained(language_folder: Folder, empty_tower: Path) -> Callable[..., PsalmForSegmentation]:
    """A model whose weights and statistics are as no model starts with them."""

    def make(**settings: Any) -> PsalmForSegmentation:
        model = build(language_folder(), 5, str(empty_tower), **settings)
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                torch.nn.init.normal_(tensor)
        return model

    return make


def released_state(model: PsalmForSegmentation) -> dict[str, Tensor]:
    """The baseline's weights under the names of PSALM's sources, with what only its own classes have."""
    tower = "model.vision_tower."
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith((tower, DEFORMABLE, "criterion."))
    }
    state |= {
        tower + name: tensor for name, tensor in swin_to_detectron2(model.model.vision_tower.state_dict()).items()
    }
    state["lm_head.weight"] = torch.zeros(4, 32)
    state["predictor.query_feat.weight"] = torch.zeros(8, 32)
    state[f"{tower}layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


@pytest.fixture
def released(trained: Callable[..., PsalmForSegmentation], tmp_path: Path) -> Checkpoint:
    """A checkpoint as the released one, in two shards of torch's, and the model whose weights it holds."""

    def make(change: Callable[[dict[str, Tensor]], Any] = lambda state: None) -> tuple[Path, PsalmForSegmentation]:
        model, folder = trained(), tmp_path / "psalm"
        folder.mkdir()
        state = released_state(model)
        change(state)
        names = sorted(state)
        files = {f"pytorch_model-{half + 1:05d}-of-00002.bin": names[half::2] for half in range(2)}
        for file, part in files.items():
            torch.save({name: state[name] for name in part}, folder / file)
        places = {name: file for file, part in files.items() for name in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
        config = model.config.text_config.to_dict()
        rotation = config.pop("rope_parameters")
        config |= {
            "model_type": "llava_phi", "swin_type": "base", "mm_vision_tower": "/nowhere/model_final_54b88a.pkl",
            "mm_projector_type": "swin_conv", "projector_outdim": 32, "mask_decode_train": True, "with_norm": True,
            "dtype": None, "torch_dtype": "float16", "rope_theta": rotation["rope_theta"], "rope_scaling": None,
            "partial_rotary_factor": rotation["partial_rotary_factor"],
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text((tmp_path / "llm" / name).read_text())
        return folder, model

    return make


@pytest.fixture
def saved(trained: Callable[..., PsalmForSegmentation], tmp_path: Path) -> Checkpoint:
    """A checkpoint of ours, and the model that was saved."""

    def make(
        dtype: torch.dtype = torch.float32, older_names: bool = False, **settings: Any
    ) -> tuple[Path, PsalmForSegmentation]:
        model, folder = trained(**settings), tmp_path / "run"
        model.to(dtype).save_pretrained(folder, save_original_format=older_names)
        AutoTokenizer.from_pretrained(tmp_path / "llm").save_pretrained(folder)
        return folder, model

    return make


def differing(model: PsalmForSegmentation, other: PsalmForSegmentation) -> list[str]:
    """Names of weights that differ by more than float16's precision, or are not in both."""
    first, second = model.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name].half(), second[name].half())]


def test_a_released_checkpoint_fills_the_model_but_the_deformable_projector(
    released: Checkpoint,
) -> None:
    folder, source = released()
    model = build(folder)
    assert {name.startswith(DEFORMABLE) for name in differing(model, source)} == {True}
    (report,) = model.key_reports
    assert report.source == folder
    assert set(report.unused) == {"lm_head.weight", "predictor.query_feat.weight"}
    assert report.computed == ("model.vision_tower.layers.0.blocks.0.attn.relative_position_index",)
    new_token = "model.embed_tokens.weight[1281:1281]"
    assert new_token not in report.initial
    state = model.state_dict()
    assert set(report.loaded) | set(report.initial) == set(state)
    assert {name for name in report.initial if name.startswith(DEFORMABLE)} == {n for n in state if DEFORMABLE in n}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_released_checkpoint_brings_its_sizes(released: Checkpoint) -> None:
    folder, source = released()
    config = build(folder).config
    for name in ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio"):
        assert getattr(config.vision_config, name) == getattr(source.config.vision_config, name), name
    for name in ("mm_conv_planes", "num_queries", "conv_dim", "mask_dim", "hidden_dim", "num_heads", "encoder_layers",
                 "encoder_feedforward_dim", "decoder_layers", "decoder_feedforward_dim"):  # fmt: skip
        assert getattr(config, name) == getattr(source.config, name), name
    text, theirs = config.text_config, source.config.text_config
    assert text.rope_parameters == theirs.rope_parameters
    assert (text.model_type, text.num_hidden_layers, text.vocab_size) == ("phi", 2, theirs.vocab_size)
    assert not hasattr(text, "mm_vision_tower")


def test_both_tables_of_queries_are_cut(released: Checkpoint) -> None:
    folder, source = released()
    model = build(folder, num_queries=5)
    assert torch.equal(model.seg_query, source.seg_query[:5].half().float())
    assert torch.equal(model.predictor.query_embed.weight, source.predictor.query_embed.weight[:5].half().float())
    with pytest.raises(ValueError, match=r"psalm does not fit: the checkpoint has 8 queries, but num_queries is 9"):
        build(folder, num_queries=9)


def test_fused_attention_of_a_released_checkpoint_is_split(
    released: Checkpoint,
) -> None:
    def fuse(state: dict[str, Tensor]) -> None:
        for layer in range(2):
            for kind in ("weight", "bias"):
                of_layer = f"model.layers.{layer}.self_attn"
                parts = [state.pop(f"{of_layer}.{letter}_proj.{kind}").unflatten(0, (2, 16)) for letter in "qkv"]
                state[f"{of_layer}.query_key_value.{kind}"] = torch.stack(parts, 1).flatten(0, 2)

    folder, source = released(fuse)
    assert {name.startswith(DEFORMABLE) for name in differing(build(folder), source)} == {True}


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("region_projector.bias", "psalm lacks 1 weights: region_projector.bias$"),
        ("predictor.CLASS_proj.layers.0.weight", r"lacks 1 weights: predictor\.CLASS_proj\.layers\.0\.weight$"),
        ("model.mm_projector.fc.bias", r"lacks 1 weights: model\.mm_projector\.fc\.bias$"),
        ("model.vision_tower.norm3.bias", r"lacks 1 weights: model\.vision_tower\..*stage4\.bias$"),
        ("model.embed_tokens.weight", r"lacks 1 weights: model\.embed_tokens\.weight$"),
        ("model.mm_projector.fc.weight", r"psalm is no PSALM checkpoint: it has no model\.mm_projector\.fc\.weight$"),
    ],
)
def test_other_parts_must_be_there(released: Checkpoint, gone: str, message: str) -> None:
    folder, _ = released(lambda state: state.pop(gone))
    with pytest.raises(ValueError, match=message):
        build(folder)


def test_running_statistics_may_be_missing(released: Checkpoint) -> None:
    name = "model.mm_projector.layer1.0.bn1.running_mean"
    folder, _ = released(lambda state: state.pop(name))
    model = build(folder)
    assert name in model.key_reports[0].initial
    assert not model.state_dict()[name].any()


@pytest.mark.parametrize("kind", ["released", "saved"])
def test_another_swin_type_is_told_with_both(kind: str, request: pytest.FixtureRequest) -> None:
    folder, _ = request.getfixturevalue(kind)()
    message = r"^swin_type is large, but .*config\.json is a checkpoint of swin_type base$"
    with pytest.raises(ValueError, match=message):
        build_model(str(folder), "builtin", "large")


@pytest.mark.parametrize("kind", ["released", "saved"])
def test_it_brings_its_own_tower(kind: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = request.getfixturevalue(kind)()
    with caplog.at_level(logging.INFO, "psalm"):
        build(folder)
        assert not [each for each in caplog.messages if "is not read" in each]
        build(folder, tower="/nowhere/model_final.pkl")
    assert f"vision_tower /nowhere/model_final.pkl is not read: {folder} brings its own" in caplog.messages
    assert sum(each.startswith(f"{folder}: ") for each in caplog.messages) == 2


@pytest.mark.parametrize("older_names", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_checkpoint_fills_the_model(saved: Checkpoint, dtype: torch.dtype, older_names: bool) -> None:
    folder, source = saved(dtype, older_names)
    model = build(folder)
    assert differing(model, source) == []
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    (report,) = model.key_reports
    assert set(report.loaded) == set(model.state_dict())
    assert report.unused == report.initial == report.computed == ()
    assert model.config.vision_config.to_dict() == source.config.vision_config.to_dict()
    assert model.config.num_points == source.config.num_points == 128


def test_a_baseline_starts_deformable_training_of_any_size(
    saved: Checkpoint,
) -> None:
    folder, source = saved(mm_projector_type="swin_conv")
    for width in (16, 32):
        model = build(folder, mm_hidden_dim=width)
        assert set(model.key_reports[0].initial) == {n for n in model.state_dict() if DEFORMABLE in n}
        assert torch.equal(model.seg_query, source.seg_query)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mm_hidden_dim": 32}, r"is \[32, 16\] there, but \[32, 32\] in the model; it follows mm_hidden_dim$"),
        ({"mm_n_heads": 8}, r"is \[32\] there, but \[64\] in the model; it follows mm_n_heads and mm_n_points$"),
        ({"mm_n_heads": 2, "mm_n_points": 4}, r"^mm_n_heads is 2, but 4 in the deformable projector of .*run$"),
        ({"conv_dim": 64}, r"is \[.*\] there, but \[.*\] in the model$"),
    ],
)
def test_settings_that_contradict_are_refused(saved: Checkpoint, settings: dict[str, Any], message: str) -> None:
    folder, _ = saved()
    for do in (build_model, check_model):
        with pytest.raises(ValueError, match=message) as refusal:
            do(str(folder), "builtin", "base", **{**SIZES, **settings})
        assert "\n" not in str(refusal.value)


def test_projectors_of_a_file_go_before_those_of_the_checkpoint(saved: Checkpoint, tmp_path: Path) -> None:
    folder, _ = saved()
    save_file({"fc.bias": torch.full((32,), 7.0)}, tmp_path / "fc.safetensors")
    model = build(folder, pretrain_mm_mlp_adapter=str(tmp_path / "fc.safetensors"))
    assert model.model.mm_projector.fc.bias.eq(7).all()
    assert [report.source.name for report in model.key_reports] == ["run", "fc.safetensors"]


def test_code_in_a_checkpoint_is_not_run(saved: Checkpoint, tmp_path: Path) -> None:
    folder, _ = saved()
    (folder / "code.py").write_text(f'open({str(tmp_path / "was run")!r}, "w").close()\nclass Model: ...\n')
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"auto_map": {"AutoModel": "code.Model"}, "attn_implementation": "someone/kernels"}
    (folder / "config.json").write_text(json.dumps(config))
    assert build(folder).model.config._attn_implementation == "sdpa"
    assert not (tmp_path / "was run").exists()
