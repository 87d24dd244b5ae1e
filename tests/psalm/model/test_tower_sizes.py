from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from psalm.model.configuration import SWIN_SIZES, PsalmConfig
from psalm.model.mask_decoder.pixel_decoder import PixelDecoder, pixel_decoder_to_detectron2
from psalm.model.mask_decoder.predictor import MaskedAttentionPredictor
from psalm.model.multimodal_encoder.swin import SwinVisionTower, swin_to_detectron2
from psalm.model.tower_sizes import tower_sizes

MODEL = Path("model.pkl")


def shapes(**settings: Any) -> dict[str, Tensor]:
    """A Mask2Former's weights under Detectron2's names, without any numbers in them."""
    config = PsalmConfig(**settings)
    with torch.device("meta"):
        pixel_decoder = PixelDecoder(
            config.feature_channels,
            config.conv_dim,
            config.mask_dim,
            config.num_heads,
            config.encoder_feedforward_dim,
            config.encoder_layers,
        )
        predictor = MaskedAttentionPredictor(
            config.conv_dim,
            config.hidden_dim,
            config.num_queries,
            config.num_heads,
            config.decoder_feedforward_dim,
            config.decoder_layers,
            config.mask_dim,
        )
        parts: dict[str, Mapping[str, Tensor]] = {
            "backbone.": swin_to_detectron2(SwinVisionTower(config.vision_config).state_dict()),
            "sem_seg_head.pixel_decoder.": pixel_decoder_to_detectron2(pixel_decoder.state_dict()),
            "sem_seg_head.predictor.": predictor.state_dict(),
        }
    return {prefix + name: tensor for prefix, state in parts.items() for name, tensor in state.items()}


def test_every_size_is_found() -> None:
    sizes = {
        "num_queries": 7,
        "conv_dim": 96,
        "mask_dim": 24,
        "hidden_dim": 36,
        "num_heads": 6,
        "encoder_layers": 2,
        "encoder_feedforward_dim": 10,
        "decoder_layers": 5,
        "decoder_feedforward_dim": 14,
    }
    swin = {"embed_dim": 12, "depths": [1, 3, 2, 1], "num_heads": [1, 2, 3, 6], "window_size": 5, "mlp_ratio": 1.5}
    found = tower_sizes(shapes(**sizes, vision_config=swin), MODEL, "base")
    assert found == {
        **sizes, "swin_type": "base", "vision_config": {**swin, "image_size": 1024, "drop_path_rate": 0.0}
    }  # fmt: skip


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, Tensor]]:
    return {swin_type: shapes(swin_type=swin_type) for swin_type in SWIN_SIZES}


@pytest.mark.parametrize("swin_type", SWIN_SIZES)
def test_published_sizes_are_those_of_their_name(published: dict[str, dict[str, Tensor]], swin_type: str) -> None:
    named = PsalmConfig(swin_type=swin_type)
    assert PsalmConfig(**tower_sizes(published[swin_type], MODEL, swin_type)).to_dict() == named.to_dict()


@pytest.mark.parametrize(
    ("theirs", "asked", "difference"),
    [
        ("large", "base", "backbone.patch_embed.proj.weight is [192, 3, 4, 4] there, but [128, 3, 4, 4] in the model"),
        ("base", "large", "backbone.patch_embed.proj.weight is [128, 3, 4, 4] there, but [192, 3, 4, 4] in the model"),
        ("small", "base", "backbone.patch_embed.proj.weight is [96, 3, 4, 4] there, but [128, 3, 4, 4] in the model"),
        ("small", "tiny", "backbone has blocks [2, 2, 18, 2] there, but [2, 2, 6, 2] in the model"),
        ("tiny", "small", "backbone has blocks [2, 2, 6, 2] there, but [2, 2, 18, 2] in the model"),
    ],
)
def test_another_published_size_is_refused_by_name(
    published: dict[str, dict[str, Tensor]], theirs: str, asked: str, difference: str
) -> None:
    with pytest.raises(ValueError, match="does not fit") as raised:
        tower_sizes(published[theirs], MODEL, asked)
    assert str(raised.value) == (
        f"model.pkl does not fit swin_type {asked}: {difference}; "
        f"it is a Swin-{theirs[0].upper()}: use --swin_type {theirs}"
    )


def test_the_depth_of_a_published_width_is_free(published: dict[str, dict[str, Tensor]]) -> None:
    shallow = {name: t for name, t in published["tiny"].items() if not name.startswith("backbone.layers.2.blocks.5.")}
    assert tower_sizes(shallow, MODEL, "tiny")["vision_config"]["depths"] == [2, 2, 5, 2]
    assert tower_sizes(shallow, MODEL, "small")["swin_type"] == "small"
    with pytest.raises(ValueError, match="use --swin_type tiny"):
        tower_sizes(shallow, MODEL, "base")


def test_more_queries_than_the_default_are_not_used() -> None:
    assert tower_sizes(shapes(num_queries=200, hidden_dim=32), MODEL, "base")["num_queries"] == 100


def test_what_is_no_mask2former_is_refused(published: dict[str, dict[str, Tensor]]) -> None:
    resnet = {"backbone.stem.conv1.weight": torch.zeros(8, 3, 7, 7)}
    with pytest.raises(
        ValueError, match=r"model.pkl is no Mask2Former .*: it has no backbone.patch_embed.proj.weight$"
    ):
        tower_sizes(resnet, MODEL, "base")
    table = {"sem_seg_head.predictor.query_embed.weight": torch.zeros(8)}
    with pytest.raises(ValueError, match=r"query_embed.weight is \[8\], but must have 2 dimensions"):
        tower_sizes({**published["base"], **table}, MODEL, "base")
