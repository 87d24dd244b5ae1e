import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from psalm.model.checkpoints import build_model
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.mask_decoder.pixel_decoder import pixel_decoder_to_detectron2
from psalm.model.multimodal_encoder.swin import swin_to_detectron2
from psalm.model.vision_weights import PARTS, load_vision_tower, read_tower_config, resolve_vision_tower

PSALM_ONLY = ("CLASS_proj.", "SEG_proj.", "REGION_proj.")


def build(tower: Path, swin_type: str = "base", **settings: Any) -> PsalmForSegmentation:
    return build_model("builtin", str(tower), swin_type, **settings)[0]


def detectron2_state(model: PsalmForSegmentation) -> dict[str, Tensor]:
    """The model's tower and mask decoder under Detectron2's names, without what only PSALM has."""
    pixel_decoder = pixel_decoder_to_detectron2(model.pixel_decoder.state_dict())
    parts = {
        "backbone.": swin_to_detectron2(model.model.vision_tower.state_dict()),
        "sem_seg_head.pixel_decoder.": {
            name: tensor for name, tensor in pixel_decoder.items() if name not in {"adapter_1.bias", "layer_1.bias"}
        },
        "sem_seg_head.predictor.": {
            name: tensor for name, tensor in model.predictor.state_dict().items() if not name.startswith(PSALM_ONLY)
        },
    }
    return {prefix + name: tensor.clone() for prefix, state in parts.items() for name, tensor in state.items()}


@pytest.fixture
def tower(tmp_path: Path, tiny_tower: dict[str, Any]) -> Path:
    """A tower's folder with the weights of seed 1."""
    folder = tmp_path / "tower"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_tower))
    torch.manual_seed(1)
    save_file(detectron2_state(build(folder, random_weights=True)), folder / "model.safetensors")
    return folder


@pytest.fixture
def weights(tower: Path) -> Path:
    """The same weights as a file without any configuration."""
    return tower / "model.safetensors"


def test_a_tower_is_loaded_and_every_name_accounted_for(tower: Path, weights: Path) -> None:
    state = load_file(weights)
    extra = {
        "sem_seg_head.predictor.class_embed.weight": torch.zeros(3, 3),
        "criterion.empty_weight": torch.zeros(3),
        "backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(3, 3, dtype=torch.int64),
    }
    save_file({**state, **extra}, weights)
    model = build(tower, random_weights=True)
    report = load_vision_tower(model, tower)
    assert all(torch.equal(tensor, state[name]) for name, tensor in detectron2_state(model).items())
    assert set(report.unused) == {"sem_seg_head.predictor.class_embed.weight", "criterion.empty_weight"}
    assert report.computed == ("backbone.layers.0.blocks.0.attn.relative_position_index",)
    assert {".".join(name.split(".")[:2]) for name in report.initial} == {
        "pixel_decoder.adapter_1", "pixel_decoder.layer_1",
        "predictor.CLASS_proj", "predictor.REGION_proj", "predictor.SEG_proj",
    }  # fmt: skip
    assert set(report.loaded) | set(report.initial) == {n for n in model.state_dict() if n.startswith(PARTS)}
    assert not set(report.loaded) & set(report.initial)


def test_a_bias_that_the_file_has_is_loaded_wherever_it_stands(tower: Path, weights: Path) -> None:
    bias = torch.arange(32.0)
    save_file({"sem_seg_head.pixel_decoder.adapter_1.bias": bias, **load_file(weights)}, weights)
    assert torch.equal(build(tower).pixel_decoder.adapter_1[0].bias, bias)


def test_the_report_is_one_line(tower: Path, weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "psalm"):
        build(tower)
    (message,) = (record.getMessage() for record in caplog.records if "left at initial values" in record.getMessage())
    assert message.startswith(f"{weights}: ")
    assert message.endswith(
        " loaded, 0 unused, 14 (pixel_decoder.{adapter_1,layer_1}.0.bias, "
        "predictor.{CLASS_proj,REGION_proj,SEG_proj}.layers.{0,1}.{bias,weight}) left at initial values, "
        "0 computed instead"
    )


def test_half_precision_files_fill_a_float32_model(tower: Path, weights: Path) -> None:
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights)
    assert {parameter.dtype for parameter in build(tower).parameters()} == {torch.float32}


def test_a_longer_table_of_queries_is_cut(tower: Path, weights: Path) -> None:
    table = load_file(weights)["sem_seg_head.predictor.query_embed.weight"]
    model = build(tower, num_queries=3)
    assert torch.equal(model.predictor.query_embed.weight, table[:3])
    with pytest.raises(ValueError, match="does not fit: the checkpoint has 8 queries, but num_queries is 9"):
        build(tower, num_queries=9)


def test_two_hundred_queries_are_cut_to_the_default_unless_more_are_asked_for(weights: Path) -> None:
    table = torch.randn(200, 32)
    save_file({**load_file(weights), "sem_seg_head.predictor.query_embed.weight": table}, weights)
    assert torch.equal(build(weights, mm_conv_planes=16).predictor.query_embed.weight, table[:100])
    assert torch.equal(build(weights, mm_conv_planes=16, num_queries=150).predictor.query_embed.weight, table[:150])


def test_a_tower_of_another_size_is_refused_with_both_shapes(tower: Path, tiny_tower: dict[str, Any]) -> None:
    sizes = {**tiny_tower, "vision_config": {**tiny_tower["vision_config"], "embed_dim": 32}}
    (tower / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(
        ValueError,
        match=r"safetensors: backbone\..+ is \[16.*\] there, but \[32.*\] in the model; its swin_type is base$",
    ):
        build(tower)


def test_a_file_that_does_not_fit_changes_nothing(tower: Path, weights: Path) -> None:
    model = build(tower, random_weights=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file({**load_file(weights), "sem_seg_head.predictor.decoder_norm.bias": torch.zeros(7)}, weights)
    with pytest.raises(ValueError, match=r"predictor.decoder_norm.bias is \[7\] there, but \[32\] in the model"):
        load_vision_tower(model, tower)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_tower_without_weights_is_refused_unless_asked_for(tower: Path, weights: Path) -> None:
    weights.unlink()
    with pytest.raises(ValueError, match=r"tower/model\.safetensors"):
        build(tower)
    build(tower, random_weights=True)


def test_a_file_needs_no_configuration(tower: Path, weights: Path, tiny_tower: dict[str, Any]) -> None:
    found = read_tower_config(weights, "base")
    shown = {name: value for name, value in tiny_tower.items() if name not in {"mm_conv_planes", "num_points"}}
    assert found == {**shown, "vision_config": {**shown["vision_config"], "image_size": 1024}}
    ours, theirs = build(tower), build(weights, mm_conv_planes=16)
    image = torch.randn(1, 3, 40, 56)
    for level, features in ours.model.vision_tower(image).items():
        assert torch.equal(theirs.model.vision_tower(image)[level], features)


@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_a_file_may_be_one_of_torch_s(weights: Path, suffix: str) -> None:
    path = weights.with_suffix(suffix)
    torch.save(load_file(weights), path)
    assert read_tower_config(path, "base") == read_tower_config(weights, "base")


def test_a_swin_type_of_a_tower_of_no_published_width_is_but_a_name(weights: Path) -> None:
    assert build(weights, "large", mm_conv_planes=16).config.swin_type == "large"


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


@pytest.mark.parametrize("swin_type", ["base", "large"])
def test_builtin_towers_build(swin_type: str) -> None:
    model = build(Path("builtin"), swin_type, random_weights=True)
    assert model.config.swin_type == swin_type
    assert model.config.image_size == 128
    assert resolve_vision_tower("builtin", swin_type).is_dir()


def test_other_sizes_have_no_builtin_tower() -> None:
    with pytest.raises(ValueError, match="'builtin' exists for swin_type base and large only, but swin_type is tiny"):
        resolve_vision_tower("builtin", "tiny")


def test_a_missing_tower_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"must be 'builtin' or a folder or file of weights, but there is none at .*/nowhere"
    ):
        resolve_vision_tower(str(tmp_path / "nowhere"), "base")


def golden_beside(golden: Any, module: str) -> Any:
    """The golden of the same letter of another module."""
    return type(golden)(golden.path.with_name(golden.name.replace("mask2former_tiny", module)))


@pytest.mark.golden("mask2former_tiny")
def test_golden_report(golden: Any) -> None:
    model = build(golden.path.with_suffix(".pkl"), mm_conv_planes=16, random_weights=True)
    report = load_vision_tower(model, golden.path.with_suffix(".pkl"))
    # The query features are PSALM's, which never uses them.
    assert set(report.unused) == {*golden.meta["unused_keys"], "sem_seg_head.predictor.static_query.weight"}
    assert set(report.initial) == {*golden.meta["not_in_checkpoint"]} - {"predictor.SEG_query_embed.weight"}
    assert all(name.endswith("relative_position_index") for name in report.computed)
    accounted = len(golden.meta["d2_name_to_psalm_name"]) + len(golden.meta["unused_keys"])
    fused = 2 * sum(name.endswith((".qkv.weight", ".qkv.bias")) for name in golden.meta["d2_name_to_psalm_name"])
    assert len(report.loaded) - fused + len(report.unused) + len(report.computed) == accounted


@pytest.mark.golden("mask2former_tiny")
@torch.no_grad()
def test_golden_features_and_predictions_of_the_whole_model(golden: Any) -> None:
    model = build(golden.path.with_suffix(".pkl"), mm_conv_planes=16).eval()
    swin, pixel_decoder, predictor = (golden_beside(golden, m) for m in ("swin", "pixel_decoder", "predictor"))
    for name in (name for name in swin.tensors if name.startswith("input") and name.endswith(".images")):
        for level, features in model.model.vision_tower(swin.tensors[name]).items():
            swin.close(features, f"{name.removesuffix('.images').replace('input', 'output')}.{level}")

    mask_features, multi_scale = model.pixel_decoder(pixel_decoder.under("input."))
    pixel_decoder.close(mask_features, "output.mask_features")
    for index, features in enumerate(multi_scale):
        pixel_decoder.close(features, f"output.multi_scale_features.{index}")

    psalm_only = predictor.under("weights_psalm.predictor.")
    own = {name: tensor for name, tensor in psalm_only.items() if name.startswith(PSALM_ONLY)}
    model.predictor.load_state_dict({**model.predictor.state_dict(), **own})
    given = predictor.under("input.")
    multi_scale = [given[f"multi_scale_features.{level}"] for level in range(3)]
    images = range(len(given["mask_features"]))
    for case, asked in {
        "class_name": {"class_embeddings": given["class_name.class_name_embedding"]},
        "SEG": {"seg_embeddings": given["SEG.SEG_embedding"]},
        "region": {"region_embeddings": [given[f"region.region_embedding.{image}"] for image in images]},
    }.items():
        *auxiliary, last = model.predictor(multi_scale, given["mask_features"], given[f"{case}.seg_query"], **asked)
        for stem, prediction in {"": last, **{f".aux{i}": p for i, p in enumerate(auxiliary)}}.items():
            predictor.close(prediction.masks, f"output.{case}{stem}.pred_masks")
            if prediction.class_logits is not None:
                predictor.close(prediction.class_logits, f"output.{case}{stem}.pred_class_name_logits")
            if prediction.seg_logits is not None:
                predictor.close(prediction.seg_logits, f"output.{case}{stem}.pred_SEG_logits")
            for image, logits in enumerate(prediction.region_logits or ()):
                predictor.close(logits, f"output.{case}{stem}.pred_region_logits.{image}")
