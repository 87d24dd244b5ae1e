import pytest
import torch
from torch import Tensor
from transformers import SwinConfig

from psalm.model.multimodal_encoder.swin import SwinVisionTower, detectron2_to_swin, swin_to_detectron2

TINY = {"embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4, "drop_path_rate": 0.5}


def tiny_tower(seed: int = 0, **changes) -> SwinVisionTower:
    torch.manual_seed(seed)
    tower = SwinVisionTower(SwinConfig(**{**TINY, **changes}))
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(std=0.1)
    return tower.eval()


@pytest.mark.golden("swin")
def test_golden_swin(golden):
    config = golden.config
    tower = SwinVisionTower(
        SwinConfig(
            embed_dim=config["embed_dim"],
            depths=config["depths"],
            num_heads=config["num_heads"],
            window_size=config["window_size"],
            patch_size=config["patch_size"],
            mlp_ratio=config["mlp_ratio"],
            qkv_bias=config["qkv_bias"],
        )
    ).eval()
    weights = golden.under("weights.backbone.")
    tower.load_state_dict(detectron2_to_swin(weights), strict=True)
    inputs = [name for name in golden.tensors if name.startswith("input") and name.endswith(".images")]
    assert inputs
    for name in inputs:
        with torch.no_grad():
            features = tower(golden.tensors[name])
        outputs = name.removesuffix(".images").replace("input", "output", 1)
        for level, feature in features.items():
            golden.close(feature, f"{outputs}.{level}")


def test_names_survive_the_round_trip_to_detectron2():
    tower = tiny_tower()
    theirs = swin_to_detectron2(tower.state_dict())
    assert theirs["layers.0.blocks.1.attn.qkv.weight"].shape == (24, 8)
    assert "norm3.weight" in theirs
    other = tiny_tower(seed=1)
    other.load_state_dict(detectron2_to_swin(theirs), strict=True)
    image = torch.randn(1, 3, 40, 56)
    for level, feature in tower(image).items():
        torch.testing.assert_close(other(image)[level], feature, rtol=0, atol=0)


@pytest.mark.parametrize("rename", [detectron2_to_swin, swin_to_detectron2])
def test_unknown_name_is_refused_by_name(rename):
    with pytest.raises(ValueError, match=r"'head\.weight' is not the name of a weight of"):
        rename({"head.weight": torch.zeros(1)})


def test_levels_have_their_strides_and_channels():
    tower = tiny_tower()
    features = tower(torch.randn(2, 3, 64, 96))
    assert tower.channels == (8, 16, 32, 64)
    assert [(name, *feature.shape) for name, feature in features.items()] == [
        ("res2", 2, 8, 16, 24),
        ("res3", 2, 16, 8, 12),
        ("res4", 2, 32, 4, 6),
        ("res5", 2, 64, 2, 3),
    ]


def test_a_frozen_tower_keeps_an_image_s_features_while_the_model_trains():
    tower = tiny_tower()
    image = torch.randn(4, 3, 64, 64)
    tower.freeze()
    expected = tower(image)
    torch.nn.Sequential(tower).train()
    features = tower(image)
    assert not any(feature.requires_grad for feature in features.values())
    for level, feature in features.items():
        torch.testing.assert_close(feature, expected[level], rtol=0, atol=0)


def test_a_trained_tower_gives_every_weight_a_gradient():
    tower = tiny_tower(drop_path_rate=0.0).train()
    features: dict[str, Tensor] = tower(torch.randn(1, 3, 64, 64))
    sum(feature.square().sum() for feature in features.values()).backward()
    assert [name for name, parameter in tower.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_the_weights_and_stays_close(dtype):
    tower = tiny_tower()
    image = torch.randn(1, 3, 64, 64)
    expected = tower(image)
    features = tower.to(dtype)(image)
    for level, feature in features.items():
        assert feature.dtype == dtype
        torch.testing.assert_close(feature.float(), expected[level], rtol=0.05, atol=0.05)


def test_nothing_waits_for_the_device():
    # Tensors without data cannot be read back: whatever would wait for a GPU raises here.
    features = tiny_tower().to("meta")(torch.empty(1, 3, 72, 88, device="meta"))
    assert features["res5"].shape == (1, 64, 3, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [1, 1], "num_heads": [1, 2]}, "depths must have 4 stages"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings must be false"),
    ],
)
def test_unsupported_architectures_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SwinVisionTower(SwinConfig(**{**TINY, **changes}))
