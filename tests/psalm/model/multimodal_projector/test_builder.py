import pytest

from psalm.model.multimodal_projector.builder import PROJECTOR_TYPES, REFERENCE_POINTS, build_projector
from psalm.model.multimodal_projector.conv import SwinConvProjector
from psalm.model.multimodal_projector.deformable_alignment import MultiScaleDeformableCrossAttentionAlignment

DEFORMABLE = {"feature_channels": (4, 6, 8, 10), "llm_dim": 12, "hidden_dim": 8, "n_heads": 4, "n_points": 3}


def test_every_name_builds_its_projector():
    swin_conv = build_projector("swin_conv", input_dim=10, out_dim=12, planes=6)
    assert isinstance(swin_conv, SwinConvProjector)
    for reference_points in REFERENCE_POINTS:
        deformable = build_projector("deformable", reference_points=reference_points, **DEFORMABLE)
        assert isinstance(deformable, MultiScaleDeformableCrossAttentionAlignment)
        assert (deformable.n_levels, deformable.n_heads, deformable.n_points) == (4, 4, 3)
    assert PROJECTOR_TYPES == ("swin_conv", "deformable")


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="one of \\('swin_conv', 'deformable'\\), but got 'mlp'"):
        build_projector("mlp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 3}, "hidden_dim 8 is not divisible by n_heads 3; the nearest allowed hidden_dim: 6 and 9"),
        ({"reference_points": "corner"}, "one of .*'auto', 'center', 'proposal', 'learned'.*, but got 'corner'"),
        ({"feature_channels": (4, 6)}, r"channels of .*res2.*, but got \[4, 6\]"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build_projector("deformable", **{**DEFORMABLE, "reference_points": "center", **change})
