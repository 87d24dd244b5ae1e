import pytest
import torch
import torch.nn.functional as F
from torch import nn

from psalm.model.mask_decoder.predictor import (
    Attention,
    MaskedAttentionPredictor,
    attention_region,
    detectron2_to_predictor,
)

SCALES = ((2, 3), (4, 6), (8, 12))
SIZES = {"in_channels": 16, "hidden_dim": 16, "num_queries": 5, "num_heads": 4, "feedforward_dim": 8, "mask_dim": 6}


def tiny_predictor(**changes) -> MaskedAttentionPredictor:
    torch.manual_seed(0)
    return MaskedAttentionPredictor(**{**SIZES, "num_layers": 4, **changes})


def tiny_inputs(batch: int = 2, channels: int = 16):
    generator = torch.Generator().manual_seed(1)
    multi_scale = [torch.randn(batch, channels, *size, generator=generator) for size in SCALES]
    mask_features = torch.randn(batch, 6, 16, 24, generator=generator)
    queries = torch.randn(batch, 5, 16, generator=generator)
    return multi_scale, mask_features, queries


@pytest.mark.golden("predictor")
def test_golden_predictor(golden):
    config = golden.config
    predictor = MaskedAttentionPredictor(
        in_channels=config["in_channels"],
        hidden_dim=config["hidden_dim"],
        num_queries=config["num_queries"],
        num_heads=config["nheads"],
        feedforward_dim=config["dim_feedforward"],
        num_layers=config["dec_layers"],
        mask_dim=config["mask_dim"],
    ).eval()
    weights = golden.under("weights.sem_seg_head.predictor.") | golden.under("weights_psalm.predictor.")
    predictor.load_state_dict(detectron2_to_predictor(weights, config["num_queries"]), strict=True)
    inputs = golden.under("input.")
    multi_scale = [inputs[f"multi_scale_features.{level}"] for level in range(3)]
    images = range(inputs["mask_features"].shape[0])
    cases = {
        "class_name": {"class_embeddings": inputs["class_name.class_name_embedding"]},
        "SEG": {"seg_embeddings": inputs["SEG.SEG_embedding"]},
        "region": {"region_embeddings": [inputs[f"region.region_embedding.{image}"] for image in images]},
    }
    for case, embeddings in cases.items():
        with torch.no_grad():
            predictions = predictor(multi_scale, inputs["mask_features"], inputs[f"{case}.seg_query"], **embeddings)
        assert len(predictions) == config["dec_layers"] + 1
        for index, prediction in enumerate(predictions):
            stem = f"output.{case}" if index == config["dec_layers"] else f"output.{case}.aux{index}"
            golden.close(prediction.masks, f"{stem}.pred_masks")
            assert (prediction.class_logits is None) == (case != "class_name")
            assert (prediction.seg_logits is None) == (case != "SEG")
            assert (prediction.region_logits is None) == (case != "region")
            if prediction.class_logits is not None:
                golden.close(prediction.class_logits, f"{stem}.pred_class_name_logits")
            if prediction.seg_logits is not None:
                golden.close(prediction.seg_logits, f"{stem}.pred_SEG_logits")
            for image, logits in enumerate(prediction.region_logits or ()):
                golden.close(logits, f"{stem}.pred_region_logits.{image}")


def test_attention_equals_torch_s():
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    allowed = torch.rand(2, 5, 7) < 0.5
    allowed[:, :, 0] = True
    expected, _ = theirs(query, key, value, attn_mask=~allowed.repeat_interleave(4, dim=0))
    torch.testing.assert_close(ours(query, key, value, allowed), expected)


def test_a_query_with_an_empty_mask_may_attend_everywhere():
    masks = torch.full((1, 2, 8, 8), -1.0)
    masks[0, 1, :4, :4] = 1.0
    allowed = attention_region(masks, (2, 2))
    assert allowed[0].tolist() == [[True] * 4, [True, False, False, False]]


def test_attention_region_is_where_the_resized_mask_is_at_least_one_half():
    masks = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    resized = F.interpolate(masks, size=(4, 6), mode="bilinear", align_corners=False).sigmoid()
    assert torch.equal(attention_region(masks, (4, 6)), (resized >= 0.5).flatten(2))


def test_empty_masks_give_finite_gradients():
    predictor = tiny_predictor()
    multi_scale, mask_features, queries = tiny_inputs()
    mask_features.zero_().sub_(1)
    nn.init.zeros_(predictor.mask_embed.layers[-1].weight)
    nn.init.ones_(predictor.mask_embed.layers[-1].bias)
    predictions = predictor(multi_scale, mask_features, queries, seg_embeddings=torch.ones(2, 1, 16))
    assert (predictions[-1].masks < 0).all()
    predictions[-1].seg_logits.sum().backward()
    grads = [parameter.grad for parameter in predictor.parameters() if parameter.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)


def test_each_score_uses_its_own_projection_and_every_other_weight_gets_a_gradient():
    projections = ("CLASS_proj", "SEG_proj", "REGION_proj")
    embeddings = (
        {"class_embeddings": torch.ones(2, 3, 16)},
        {"seg_embeddings": torch.ones(2, 1, 16)},
        {"region_embeddings": [torch.ones(2, 16), torch.ones(0, 16)]},
    )
    for used, given in zip(projections, embeddings, strict=True):
        predictor = tiny_predictor()
        predictions = predictor(*tiny_inputs(), **given)
        loss = torch.zeros(())
        for prediction in predictions:
            scores = (prediction.class_logits, prediction.seg_logits, *(prediction.region_logits or ()))
            loss = loss + prediction.masks.sum() + sum(score.sum() for score in scores if score is not None)
        loss.backward()
        without = {name.split(".")[0] for name, weight in predictor.named_parameters() if weight.grad is None}
        assert without == set(projections) - {used}


def test_narrower_features_are_projected():
    predictor = tiny_predictor(in_channels=10)
    multi_scale, mask_features, queries = tiny_inputs(channels=10)
    assert predictor(multi_scale, mask_features, queries)[-1].masks.shape == (2, 5, 16, 24)


def test_bfloat16_stays_close_before_masks_are_thresholded():
    predictor = tiny_predictor(num_layers=1).eval()
    multi_scale, mask_features, queries = tiny_inputs()
    with torch.no_grad():
        expected = predictor(multi_scale, mask_features, queries)[0].masks
        halves = [feature.bfloat16() for feature in multi_scale]
        predictions = predictor.bfloat16()(halves, mask_features.bfloat16(), queries.bfloat16())
    assert predictions[-1].masks.dtype == torch.bfloat16
    torch.testing.assert_close(predictions[0].masks.float(), expected, rtol=0.1, atol=0.1)


def test_nothing_waits_for_the_device():
    # Tensors without data cannot be read back: whatever would wait for a GPU raises here.
    multi_scale, mask_features, queries = tiny_inputs()
    multi_scale = [feature.to("meta") for feature in multi_scale]
    predictor = tiny_predictor().to("meta").train()
    predictions = predictor(
        multi_scale, mask_features.to("meta"), queries.to("meta"), class_embeddings=torch.ones(2, 3, 16, device="meta")
    )
    assert predictions[-1].class_logits.shape == (2, 5, 3)


def test_unused_weights_of_a_checkpoint_are_left_out_and_queries_cut():
    state = dict(tiny_predictor().state_dict())
    theirs = state | {"query_embed.weight": torch.randn(8, 16), "static_query.weight": torch.randn(8, 16)}
    ours = detectron2_to_predictor(theirs, num_queries=5)
    assert ours.keys() == state.keys()
    assert torch.equal(ours["query_embed.weight"], theirs["query_embed.weight"][:5])


def test_a_checkpoint_with_too_few_queries_is_refused():
    with pytest.raises(ValueError, match="has 5 queries, but num_queries is 6"):
        detectron2_to_predictor(tiny_predictor().state_dict(), num_queries=6)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="hidden_dim 16 is not divisible by num_heads 3"):
        tiny_predictor(num_heads=3)
