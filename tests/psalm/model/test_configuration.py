from pathlib import Path

import pytest

from psalm.model.configuration import PsalmConfig
from psalm.model.multimodal_projector.builder import REFERENCE_POINTS


def test_survives_a_round_trip_through_its_file(tmp_path: Path) -> None:
    config = PsalmConfig(
        text_config={"hidden_size": 64, "num_hidden_layers": 2},
        vision_config={"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [2, 4, 8, 8]},
        swin_type="large",
        mm_n_points=8,
        mm_reference_points="learned",
        num_queries=20,
    )
    config.save_pretrained(tmp_path)
    again = PsalmConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.text_config.hidden_size == again.projector_outdim == 64
    assert again.feature_channels == [24, 48, 96, 192]


def test_defaults_are_the_published_sizes() -> None:
    base, large, tiny = PsalmConfig(), PsalmConfig(swin_type="large"), PsalmConfig(swin_type="tiny")
    assert base.feature_channels == [128, 256, 512, 1024]
    assert large.feature_channels == [192, 384, 768, 1536]
    assert tiny.feature_channels == PsalmConfig(swin_type="small").feature_channels == [96, 192, 384, 768]
    assert (tiny.vision_config.window_size, base.vision_config.window_size) == (7, 12)
    assert base.image_size == 1024
    assert base.projector_outdim == base.text_config.hidden_size == 2048
    assert (base.num_queries, base.conv_dim, base.encoder_layers, base.decoder_layers) == (100, 256, 6, 9)


def test_a_default_can_be_read_from_the_class() -> None:
    assert (PsalmConfig.mm_hidden_dim, PsalmConfig.mm_n_heads, PsalmConfig.mm_n_points) == (256, 8, 4)
    assert PsalmConfig.mm_reference_points == "auto"


def test_reference_points_are_the_projector_s() -> None:
    for choice in REFERENCE_POINTS:
        assert PsalmConfig(mm_reference_points=choice).mm_reference_points == choice


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mm_hidden_dim": 30}, "mm_hidden_dim must be a multiple of mm_n_heads, but got 30 and 8"),
        ({"mm_n_heads": 0}, "mm_hidden_dim must be a multiple of mm_n_heads, but got 256 and 0"),
        ({"conv_dim": 48}, "conv_dim must be a multiple of the groups of its GroupNorm, but got 48 and 32"),
        ({"projector_outdim": 2560}, "projector_outdim must be the LLM's hidden size 2048, but got 2560"),
    ],
)
def test_refuses_sizes_that_do_not_go_together(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        PsalmConfig(**settings)


@pytest.mark.parametrize("settings", [{"mm_reference_points": "middle"}, {"swin_type": "huge"}, {"num_queries": "20"}])
def test_refuses_unknown_choices_and_wrong_types(settings: dict[str, str]) -> None:
    with pytest.raises(Exception, match=next(iter(settings))):
        PsalmConfig(**settings)
