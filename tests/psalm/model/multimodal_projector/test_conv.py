import pytest
import torch

from psalm.model.multimodal_projector.conv import SwinConvProjector


@pytest.mark.golden("projector")
def test_golden_projector(golden):
    projector = SwinConvProjector(**golden.config).eval()
    projector.load_state_dict(golden.under("weights."), strict=True)
    with torch.no_grad():
        golden.close(projector(golden.tensors["input.res5"]), "output.tokens")


def test_one_token_per_two_by_two_pixels_rounded_up():
    assert SwinConvProjector(input_dim=4, out_dim=6, planes=5)(torch.randn(2, 4, 5, 8)).shape == (2, 12, 6)
