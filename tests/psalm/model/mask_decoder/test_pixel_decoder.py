import pytest
import torch

from psalm.model.mask_decoder.pixel_decoder import (
    PixelDecoder,
    detectron2_to_pixel_decoder,
    pixel_centres,
    pixel_decoder_to_detectron2,
)

LEVELS = ("res2", "res3", "res4", "res5")


def tiny_decoder(seed: int = 0) -> PixelDecoder:
    torch.manual_seed(seed)
    return PixelDecoder((4, 6, 8, 10), conv_dim=32, mask_dim=12, num_heads=4, feedforward_dim=16, num_layers=2)


def tiny_features(batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = ((4, 16, 24), (6, 8, 12), (8, 4, 6), (10, 2, 3))
    return {name: torch.randn(batch, *size, generator=generator) for name, size in zip(LEVELS, sizes, strict=True)}


@pytest.mark.golden("pixel_decoder")
def test_golden_pixel_decoder(golden):
    config = golden.config
    decoder = PixelDecoder(
        in_channels=config["channels"],
        conv_dim=config["conv_dim"],
        mask_dim=config["mask_dim"],
        num_heads=config["nheads"],
        feedforward_dim=config["ffn"],
        num_layers=config["layers"],
        num_points=config["n_points"],
    ).eval()
    weights = golden.under("weights.sem_seg_head.pixel_decoder.")
    without_biases = decoder.load_state_dict(detectron2_to_pixel_decoder(weights), strict=False)
    assert without_biases.unexpected_keys == []
    assert without_biases.missing_keys == ["adapter_1.0.bias", "layer_1.0.bias"]
    features = golden.under("input.")
    with torch.no_grad():
        mask_features, multi_scale = decoder(features)
    golden.close(mask_features, "output.mask_features")
    golden.close(multi_scale[0], "output.encoder_features")
    for index, feature in enumerate(multi_scale):
        golden.close(feature, f"output.multi_scale_features.{index}")

    biases = golden.under("weights_psalm.pixel_decoder.")
    decoder.load_state_dict({**decoder.state_dict(), **biases}, strict=True)
    with torch.no_grad():
        mask_features, _ = decoder(features)
    golden.close(mask_features, "output_with_conv_bias.mask_features")


def test_names_survive_the_round_trip_to_detectron2_with_the_biases_that_only_psalm_has():
    decoder = tiny_decoder()
    torch.nn.init.normal_(decoder.adapter_1[0].bias)
    theirs = pixel_decoder_to_detectron2(decoder.state_dict())
    assert {"adapter_1.weight", "adapter_1.norm.weight", "layer_1.norm.bias", "adapter_1.bias"} <= theirs.keys()
    ours = detectron2_to_pixel_decoder(theirs)
    assert ours.keys() == decoder.state_dict().keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in decoder.state_dict().items())


def test_convolution_biases_that_detectron2_lacks_start_at_zero():
    decoder = tiny_decoder()
    assert not decoder.adapter_1[0].bias.any()
    assert not decoder.layer_1[0].bias.any()


def test_psalm_names_pass_unchanged():
    state = tiny_decoder().state_dict()
    assert detectron2_to_pixel_decoder(state).keys() == state.keys()


def test_pixel_centres_run_row_by_row_in_x_y():
    centres = pixel_centres((2, 4), torch.zeros(()))
    assert centres[1].tolist() == [0.375, 0.25]
    assert centres[4].tolist() == [0.125, 0.75]


def test_images_of_a_batch_do_not_see_each_other():
    decoder, features = tiny_decoder().eval(), tiny_features()
    both, multi_scale = decoder(features)
    alone, alone_multi_scale = decoder({name: feature[1:] for name, feature in features.items()})
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(multi_scale[0][1:], alone_multi_scale[0], rtol=1e-4, atol=1e-5)


def test_every_weight_gets_a_gradient():
    decoder = tiny_decoder()
    mask_features, multi_scale = decoder(tiny_features())
    (mask_features.square().sum() + sum(feature.square().sum() for feature in multi_scale)).backward()
    assert [name for name, parameter in decoder.named_parameters() if parameter.grad is None] == []


def test_bfloat16_stays_close():
    decoder, features = tiny_decoder().eval(), tiny_features()
    with torch.no_grad():
        expected, _ = decoder(features)
        actual, _ = decoder.bfloat16()({name: feature.bfloat16() for name, feature in features.items()})
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.15)


def test_nothing_waits_for_the_device():
    # Tensors without data cannot be read back: whatever would wait for a GPU raises here.
    features = {name: feature.to("meta") for name, feature in tiny_features().items()}
    mask_features, _ = tiny_decoder().to("meta").train()(features)
    assert mask_features.shape == (2, 12, 16, 24)


@pytest.mark.parametrize(
    ("channels", "conv_dim", "num_heads", "message"),
    [
        ((4, 6, 8, 10), 48, 4, "conv_dim must be a multiple of 32 .* got 48"),
        ((4, 6, 8, 10), 64, 5, "64 is not divisible by n_heads 5"),
        ((4, 6, 8), 64, 4, "res2, res3, res4, res5"),
    ],
)
def test_impossible_sizes_are_refused(channels, conv_dim, num_heads, message):
    with pytest.raises(ValueError, match=message):
        PixelDecoder(channels, conv_dim, mask_dim=8, num_heads=num_heads, feedforward_dim=8, num_layers=1)
