"""The whole model at a few thousand parameters: what it computes, what it trains, what it saves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from psalm.constants import CLS_TOKEN_INDEX, IMAGE_TOKEN_INDEX, SEG_TOKEN_INDEX
from psalm.model.configuration import PsalmConfig
from psalm.model.language_model.llava_phi import PsalmForSegmentation, set_trainable, startup_lines

S, C = 64, 3
PROMPTS = [
    [5, 6, IMAGE_TOKEN_INDEX, 7, *[CLS_TOKEN_INDEX, 8] * C, SEG_TOKEN_INDEX, 9],
    [5, 6, 6, 6, 7, IMAGE_TOKEN_INDEX, 7, 7, *[CLS_TOKEN_INDEX, 8] * C, 9, SEG_TOKEN_INDEX, 9, 9],
]
NAMES = [[[11, 2], [12, 13, 2], [14, 2]], [[15, 16, 17, 18, 2], [11, 2], [14, 2]]]


def make_model(seed: int = 0, **settings: Any) -> PsalmForSegmentation:
    torch.manual_seed(seed)
    config = PsalmConfig(
        **{
            "text_config": {
                "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 2, "pad_token_id": 1,
            },
            "vision_config": {
                "image_size": S, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2,
            },
            "mm_conv_planes": 16, "mm_hidden_dim": 16, "mm_n_heads": 4, "mm_n_points": 2,
            "num_queries": 5, "conv_dim": 32, "mask_dim": 16, "hidden_dim": 32, "num_heads": 4, "encoder_layers": 1,
            "encoder_feedforward_dim": 32, "decoder_layers": 3, "decoder_feedforward_dim": 32, "num_points": 64,
            **settings,
        }
    )  # fmt: skip
    return PsalmForSegmentation(config)


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [1] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return ids, mask


def make_batch(samples: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    """Sample 0 has a short prompt and short names, sample 1 long ones; only what they need is padded."""
    input_ids, attention_mask = padded([PROMPTS[sample] for sample in samples])
    class_ids, class_mask = padded([name for sample in samples for name in NAMES[sample]])
    masks = torch.zeros(2, 2, S, S, dtype=torch.bool)
    masks[0, 0, :30, :20] = masks[0, 1, 30:, 10:60] = masks[1, 0, :40, 40:] = masks[1, 1, 45:, :30] = True
    images = torch.randn(2, 3, S, S, generator=torch.Generator().manual_seed(1))
    for sample in range(2):
        for mask in masks[sample]:
            images[sample, :, mask] += torch.randn(3, 1, generator=torch.Generator().manual_seed(int(mask.sum())))
    chosen = list(samples)
    return {
        "task": "panoptic",
        "pixel_values": images[chosen],
        "image_sizes": torch.tensor([[S, S], [48, S]])[chosen],
        "original_sizes": torch.tensor([[S, S], [480, 640]])[chosen],
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "class_ids": class_ids.view(len(samples), C, -1),
        "class_mask": class_mask.view(len(samples), C, -1),
        "mask_labels": [masks[sample] for sample in samples],
        "class_labels": [torch.tensor([[0, 1], [1, 0]][sample]) for sample in samples],
        "random_keys": torch.tensor([7, 8])[chosen],
    }


def without_labels(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in {"mask_labels", "class_labels"}}


def test_returns_losses_by_name_and_the_final_prediction() -> None:
    output = make_model()(**make_batch())
    assert set(output.losses) == {"loss_mask", "loss_dice", "loss_class_name_class"}
    assert torch.equal(output.loss, torch.stack([*output.losses.values()]).sum())
    assert output.loss.dtype == torch.float32
    assert output.predictions.masks.shape == (2, 5, S // 4, S // 4)
    assert output.predictions.class_logits.shape == (2, 5, C)


def test_without_labels_there_is_no_loss() -> None:
    output = make_model()(**without_labels(make_batch()))
    assert output.loss is None
    assert output.losses is None


@pytest.mark.parametrize("projector", ["deformable", "swin_conv"])
def test_a_batch_equals_its_samples_one_by_one(projector: str) -> None:
    model = make_model(mm_projector_type=projector).eval()
    with torch.no_grad():
        together = model(**without_labels(make_batch())).predictions
        for sample in (0, 1):
            alone = model(**without_labels(make_batch((sample,)))).predictions
            torch.testing.assert_close(together.masks[sample], alone.masks[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(together.class_logits[sample], alone.class_logits[0], atol=1e-4, rtol=1e-4)


def test_a_longer_padding_changes_nothing() -> None:
    model, batch = make_model().eval(), without_labels(make_batch())
    longest = int(
        (batch["attention_mask"] & (batch["input_ids"] >= 0)).sum(1).add(batch["class_mask"].sum((1, 2))).max()
    )
    with torch.no_grad():
        exact = model(**batch).predictions.masks
        assert torch.equal(model(**batch, prompt_length=longest).predictions.masks, exact)
        roomy = model(**batch, prompt_length=longest + 9).predictions.masks
    torch.testing.assert_close(roomy, exact, atol=1e-4, rtol=1e-4)


class Syncs(TorchDispatchMode):
    """Records operators whose result a GPU would have to be waited for."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.NAMES:
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_prediction_waits_for_no_device() -> None:
    model, batch = make_model().eval(), without_labels(make_batch())
    with torch.no_grad(), Syncs() as syncs:
        model(**batch, prompt_length=24)
    assert syncs.seen == []
    with torch.no_grad(), Syncs() as syncs:
        model(**batch)
    assert syncs.seen == ["_local_scalar_dense"]  # the length of the longest sequence


def sequence_length(model: PsalmForSegmentation, batch: dict[str, Any]) -> int:
    lengths: list[int] = []
    handle = model.model.register_forward_pre_hook(
        lambda _, __, given: lengths.append(given["inputs_embeds"].shape[1]), with_kwargs=True
    )
    model(**batch)
    handle.remove()
    return lengths[0]


def test_the_sequence_is_text_image_deformable_names_and_queries() -> None:
    batch = without_labels(make_batch((0,)))
    text, names, image, queries = 7, 2 + 3 + 2, 1, 5  # res5 is 2x2, one token after the stride-2 projector
    assert sequence_length(make_model(mm_projector_type="swin_conv").eval(), batch) == text + names + image + queries
    assert sequence_length(make_model().eval(), batch) == text + names + image + queries + C


def test_deformable_tokens_have_an_effect_and_can_be_zeroed() -> None:
    model, batch = make_model().eval(), without_labels(make_batch())
    before = model(**batch).predictions.masks
    torch.nn.init.normal_(model.model.mm_projector_deformable.output_proj.weight)
    changed = model(**batch).predictions.masks
    assert not torch.allclose(before, changed, atol=1e-5)
    model.zero_deformable_tokens = True
    zeroed = model(**batch).predictions.masks
    torch.nn.init.normal_(model.model.mm_projector_deformable.output_proj.weight)
    assert torch.equal(zeroed, model(**batch).predictions.masks)


def test_the_order_of_names_is_seen() -> None:
    model, batch = make_model().eval(), without_labels(make_batch((0,)))
    first = model(**batch).predictions.class_logits
    batch["class_ids"], batch["class_mask"] = batch["class_ids"][:, [1, 0, 2]], batch["class_mask"][:, [1, 0, 2]]
    assert not torch.allclose(first, model(**batch).predictions.class_logits[..., [1, 0, 2]], atol=1e-6)


def test_the_vision_tower_runs_once_without_a_graph() -> None:
    model = make_model().train()
    calls: list[bool] = []
    model.model.vision_tower.register_forward_hook(lambda _, __, output: calls.append(output["res5"].requires_grad))
    model(**make_batch()).loss.backward()
    assert calls == [False]
    assert not model.model.vision_tower.training


def test_gradients_reach_every_part_that_is_trained_and_not_the_tower() -> None:
    model = make_model().train()
    model(**make_batch()).loss.backward()
    other_tasks = ("SEG_token_projector", "region_projector", "predictor.SEG_proj", "predictor.REGION_proj")
    for name, parameter in model.named_parameters():
        if name.startswith("model.vision_tower."):
            assert parameter.grad is None, name
        elif not name.startswith(other_tasks):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    for part in ("model.embed_tokens", "model.layers.0", "model.mm_projector", "seg_query_projector"):
        gradients = [p.grad for p in model.get_submodule(part).parameters()]
        assert any(gradient is not None and gradient.any() for gradient in gradients), part


FLAGS: list[tuple[dict[str, bool], dict[str, bool]]] = [
    ({}, {"tower": False, "llm": True, "projectors": True, "decoder": True}),
    ({"train_backbone": True}, {"tower": True, "llm": True, "projectors": True, "decoder": True}),
    ({"freeze_backbone": True}, {"tower": False, "llm": False, "projectors": True, "decoder": True}),
    ({"tune_mm_mlp_adapter": True}, {"tower": False, "llm": False, "projectors": True, "decoder": False}),
    ({"freeze_mm_mlp_adapter": True}, {"tower": False, "llm": True, "projectors": False, "decoder": True}),
]


@pytest.mark.parametrize(("flags", "expected"), FLAGS)
def test_flags_freeze_what_they_say(flags: dict[str, bool], expected: dict[str, bool]) -> None:
    model = make_model().train()
    set_trainable(model, **flags)

    def part(name: str) -> str:
        if name.startswith("model.vision_tower."):
            return "tower"
        if name.startswith("model.mm_projector"):
            return "projectors"
        return "llm" if name.startswith("model.") else "decoder"

    trained: dict[str, set[bool]] = {}
    for name, parameter in model.named_parameters():
        trained.setdefault(part(name), set()).add(parameter.requires_grad)
    assert trained == {name: {value} for name, value in expected.items()}
    assert model.model.vision_tower.training == expected["tower"]


@pytest.mark.parametrize("other", ["train_backbone", "freeze_mm_mlp_adapter"])
def test_training_the_projectors_alone_contradicts(other: str) -> None:
    with pytest.raises(ValueError, match=f"nothing else, but {other} is set too"):
        set_trainable(make_model(), tune_mm_mlp_adapter=True, **{other: True})


def test_a_trained_tower_gets_gradients() -> None:
    model = make_model().train()
    set_trainable(model, train_backbone=True)
    model(**make_batch()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.vision_tower.parameters())


def test_the_same_seed_gives_the_same_model() -> None:
    first, same, other = (make_model(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["seg_query"], other["seg_query"])


def test_parts_keep_their_own_initial_weights() -> None:
    attention = make_model().model.mm_projector_deformable.attention
    rose = attention.sampling_offsets.bias.view(4, 4, 2, 2)  # heads, levels, points, (x, y)
    assert rose[:, :, 1].abs().amax() == 2  # the second point lies two pixels away
    assert not attention.sampling_offsets.weight.any()


@pytest.mark.parametrize("projector", ["deformable", "swin_conv"])
def test_saved_and_loaded_it_is_the_same_to_the_bit(tmp_path: Path, projector: str) -> None:
    model = make_model(mm_projector_type=projector)
    model.train()(**make_batch())  # moves the buffers of the batch norms
    model.eval().save_pretrained(tmp_path)
    again = PsalmForSegmentation.from_pretrained(tmp_path)
    saved, loaded = dict(model.named_buffers()), dict(again.named_buffers())
    saved.update(model.named_parameters())
    loaded.update(again.named_parameters())
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in again.named_parameters()
    }
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    expected, actual = model(**make_batch()), again(**make_batch())
    assert torch.equal(actual.predictions.masks, expected.predictions.masks)
    assert torch.equal(actual.loss, expected.loss)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    make_model(mm_projector_type="swin_conv").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ weights: model\.mm_projector_deformable\."):
        PsalmForSegmentation.from_pretrained(tmp_path, config=make_model().config)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            assert model.model.layers[0].gradient_checkpointing
        model(**make_batch()).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-5)


def test_runs_in_bfloat16() -> None:
    model = make_model().to(torch.bfloat16).train()
    output = model(**make_batch())
    output.loss.backward()
    assert output.loss.isfinite()
    assert model.seg_query.grad is not None
    assert model.seg_query.grad.isfinite().all()


def test_runs_under_autocast() -> None:
    model = make_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**make_batch())
    output.loss.backward()
    assert output.loss.isfinite()


def test_a_few_steps_lower_the_loss() -> None:
    model, batch = make_model().train(), make_batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(15):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]


def test_refuses_an_unknown_task_and_losses_without_keys() -> None:
    model, batch = make_model(), make_batch()
    with pytest.raises(ValueError, match="task must be one of panoptic, but got 'depth'"):
        model(**{**batch, "task": "depth"})
    with pytest.raises(ValueError, match="losses need random_keys"):
        model(**{**batch, "random_keys": None})


def test_startup_lines_say_what_the_guide_promises() -> None:
    model = make_model(mm_hidden_dim=64, mm_n_heads=8, mm_n_points=4)
    assert startup_lines(model) == (
        "✓ mm_projector 类型: MultiScaleDeformableCrossAttentionAlignment\n"
        "  - Deformable参数: n_levels=4, n_heads=8, n_points=4\n"
        "✓ mm_projector type: MultiScaleDeformableCrossAttentionAlignment\n"
        "  - Deformable parameters: n_levels=4, n_heads=8, n_points=4"
    )
    assert "SwinConvProjector" in startup_lines(make_model(mm_projector_type="swin_conv"))
