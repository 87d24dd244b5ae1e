import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from psalm.model.checkpoints import build_model
from psalm.model.mask2former_weights import Mask2FormerWeights, open_mask2former
from psalm.model.vision_weights import load_vision_tower, read_tower_config

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = {"image_size": 64, "embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}
SIZES = {"feature_size": 32, "mask_feature_size": 16, "hidden_dim": 32, "encoder_feedforward_dim": 40,
         "encoder_layers": 2, "decoder_layers": 5, "num_attention_heads": 4, "dim_feedforward": 56, "num_queries": 6,
         "num_labels": 3}  # fmt: skip
SPELLINGS = ("hub", "hub, .bin", "transformers 5")


def mask2former(**changes: Any) -> Mask2FormerForUniversalSegmentation:
    """transformers' model with weights that are all different from one another and from their initial values."""
    torch.manual_seed(0)
    swin = SwinConfig(**SWIN, mlp_ratio=2.0, drop_path_rate=0.0, out_features=STAGES)
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, **{**SIZES, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save(model: Mask2FormerForUniversalSegmentation, folder: Path, spelling: str) -> Path:
    model.save_pretrained(folder)
    if spelling == "transformers 5":
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights_of(folder))
    elif spelling == "hub, .bin":
        torch.save(load_file(weights_of(folder)), folder / "pytorch_model.bin")
        weights_of(folder).unlink()
    return folder


def weights_of(folder: Path) -> Path:
    return folder / "model.safetensors"


def rectify_lateral_features(model: Mask2FormerForUniversalSegmentation) -> None:
    """The one thing that PSALM's pixel decoder does and Mask2Former's does not."""
    model.model.pixel_level_module.decoder.adapter_1.append(nn.ReLU())


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("hidden_dim", [32, 48])
@torch.no_grad()
def test_features_and_masks_are_those_of_transformers(tmp_path: Path, spelling: str, hidden_dim: int) -> None:
    theirs = mask2former(hidden_dim=hidden_dim)
    ours, _ = build_model("builtin", str(save(theirs, tmp_path, spelling)), "base", mm_conv_planes=16)
    ours.eval()
    rectify_lateral_features(theirs)
    image = torch.randn(2, 3, 64, 96)
    maps = theirs.model.pixel_level_module.encoder(image).feature_maps
    features = ours.model.vision_tower(image)
    close(features.values(), maps)
    decoded = theirs.model.pixel_level_module.decoder(maps, output_hidden_states=False, return_dict=True)
    mask_features, multi_scale = ours.pixel_decoder(features)
    close([mask_features, *multi_scale], [decoded.mask_features, *decoded.multi_scale_features])
    queries = theirs.model.transformer_module.queries_features.weight.expand(2, -1, -1)
    predictions = ours.predictor(multi_scale, mask_features, queries)
    outputs = theirs(image, output_auxiliary_logits=True)
    auxiliary = [layer["masks_queries_logits"] for layer in outputs.auxiliary_logits]
    close([prediction.masks for prediction in predictions], [*auxiliary, outputs.masks_queries_logits])


def close(ours: Any, theirs: Any) -> None:
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_sizes_are_those_of_its_configuration(tmp_path: Path, spelling: str) -> None:
    found = read_tower_config(save(mask2former(hidden_dim=48), tmp_path, spelling), "base")
    assert found == {
        "swin_type": "base",
        "vision_config": {**SWIN, "mlp_ratio": 2.0, "image_size": 1024, "drop_path_rate": 0.0},
        "num_queries": 6, "conv_dim": 32, "mask_dim": 16, "hidden_dim": 48, "num_heads": 4,
        "encoder_layers": 2, "encoder_feedforward_dim": 40, "decoder_layers": 4, "decoder_feedforward_dim": 56,
    }  # fmt: skip


@pytest.mark.parametrize("spelling", ["hub", "transformers 5"])
def test_every_name_is_accounted_for(tmp_path: Path, spelling: str) -> None:
    folder = save(mask2former(), tmp_path, spelling)
    index = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    save_file({**load_file(weights_of(folder)), index: torch.zeros(16, 16, dtype=torch.int64)}, weights_of(folder))
    model, _ = build_model("builtin", str(folder), "base", mm_conv_planes=16)
    report = load_vision_tower(model, folder)
    assert set(report.unused) == {
        "class_predictor.weight",
        "class_predictor.bias",
        "criterion.empty_weight",
        "model.pixel_level_module.encoder.swin.layernorm.weight",
        "model.pixel_level_module.encoder.swin.layernorm.bias",
        "model.transformer_module.queries_features.weight",
    }
    assert {".".join(name.split(".")[:2]) for name in report.initial} == {
        "pixel_decoder.adapter_1", "pixel_decoder.layer_1",
        "predictor.CLASS_proj", "predictor.REGION_proj", "predictor.SEG_proj",
    }  # fmt: skip
    assert report.computed == (index,)


def test_a_model_without_its_head_is_read_too(tmp_path: Path) -> None:
    model = mask2former()
    model.model.save_pretrained(tmp_path)
    assert "transformer_module.level_embed.weight" in load_file(weights_of(tmp_path))
    with_head = {name for name in Mask2FormerWeights(model.state_dict()) if name.startswith("sem_seg_head.")}
    assert {name for name in open_mask2former(tmp_path) if name.startswith("sem_seg_head.")} == with_head


def test_tensors_are_read_when_they_are_asked_for() -> None:
    class Counted(dict[str, Tensor]):
        reads: list[str] = []

        def __getitem__(self, name: str) -> Tensor:
            self.reads.append(name)
            return super().__getitem__(name)

    stem = "model.transformer_module.decoder.layers.0.self_attn"
    state = Counted({f"{stem}.{kind}_proj.bias": torch.full((2,), float(i)) for i, kind in enumerate("vkq")})
    weights = Mask2FormerWeights(state)
    joined = "sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.in_proj_bias"
    assert list(weights) == [joined]
    assert joined in weights
    assert state.reads == []
    assert weights[joined].tolist() == [2, 2, 1, 1, 0, 0]


@pytest.mark.parametrize(("field", "value"), [("pre_norm", True), ("activation_function", "gelu")])
def test_a_decoder_that_computes_something_else_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    save(mask2former(), tmp_path, "hub")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ValueError, match=rf"config\.json: {field} must be \w+, but is {value}$"):
        read_tower_config(tmp_path, "base")
