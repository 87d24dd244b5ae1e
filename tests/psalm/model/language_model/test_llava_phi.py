"""The whole model at a few thousand parameters: what it computes, what it trains, what it saves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from psalm.constants import (
    CLASS_TASKS,
    IMAGE1_TOKEN_INDEX,
    IMAGE_TOKEN_INDEX,
    PROMPT_TOKEN_INDEX,
    REGION_TASKS,
    SEG_TOKEN_INDEX,
    TASKS,
)
from psalm.model.configuration import PsalmConfig
from psalm.model.freezing import set_trainable
from psalm.model.language_model.llava_phi import PsalmForSegmentation, startup_lines
from psalm.model.region_pooling import KeyedRegionDraws, region_points

S, C, Q = 128, 3, 5
IMAGE_TOKENS = 4  # res5 is 4x4, and the projector strides by 2
NAMES = [[[11, 2], [12, 13, 2], [14, 2]], [[15, 16, 17, 18, 2], [11, 2], [14, 2]]]
EXPRESSIONS = [[[19, 2]], [[20, 21, 22, 2]]]
TEXTS = [([5, 6], [7], [9]), ([5, 6, 6, 6, 7], [7, 7], [9, 9])]  # before the image, before <seg>, after it
REGION_BOXES = [[(0, 60, 0, 60)], [(64, 96, 64, 128), (0, 30, 90, 120), (10, 11, 20, 21)]]  # top, bottom, left, right
REGION_LABELS = [[1], [0, -1, 0]]
ANSWER = {
    **dict.fromkeys(CLASS_TASKS, "class"),
    **dict.fromkeys(REGION_TASKS, "region"),
    "referring": "seg",
}
TASK_LOSS = {"class": "loss_class_name_class", "seg": "loss_SEG_class", "region": "loss_region_class"}
LABELS = ("mask_labels", "class_labels", "region_labels")

every_task = pytest.mark.parametrize("task", TASKS)
every_region_task = pytest.mark.parametrize("task", REGION_TASKS)


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
            "num_queries": Q, "conv_dim": 32, "mask_dim": 16, "hidden_dim": 32, "num_heads": 4, "encoder_layers": 1,
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


def asked_tokens(task: str, sample: int) -> list[list[int]]:
    """What stands at each sentinel of what is asked; a region's one token has no id."""
    if task in REGION_TASKS:
        return [[0]] * len(REGION_BOXES[sample])
    return (EXPRESSIONS if task == "referring" else NAMES)[sample]


def prompt(task: str, sample: int) -> list[int]:
    before, between, after = TEXTS[sample]
    ids = [*before, IMAGE_TOKEN_INDEX, *between, *[PROMPT_TOKEN_INDEX[task], 8] * len(asked_tokens(task, sample))]
    return ids + [IMAGE1_TOKEN_INDEX] * (task == "cross_image") + [*between, SEG_TOKEN_INDEX, *after]


def boxes(rows: list[tuple[int, int, int, int]]) -> Tensor:
    masks = torch.zeros(len(rows), S, S, dtype=torch.bool)
    for mask, (top, bottom, left, right) in zip(masks, rows, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def images(seed: int) -> Tensor:
    """Two images [2, 3, S, S] of noise; a quarter of each has a colour of its own."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 3, S, S, generator=generator)
    for image, mask in zip(noise, boxes([(0, 60, 0, 60), (64, 128, 64, 128)]), strict=True):
        image[:, mask] += 2 * torch.randn(3, 1, generator=generator)
    return noise


def make_batch(task: str = "panoptic", samples: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    """Sample 0 has a short prompt that asks for little, sample 1 a long one; only what they need is padded."""
    masks = [boxes([(0, 60, 0, 40), (60, 128, 20, 120)]), boxes([(0, 80, 80, 128), (70, 96, 0, 60)])]
    chosen = list(samples)
    input_ids, attention_mask = padded([prompt(task, sample) for sample in samples])
    batch = {
        "task": task,
        "pixel_values": images(1)[chosen],
        "image_sizes": torch.tensor([[S, S], [96, S]])[chosen],
        "original_sizes": torch.tensor([[S, S], [480, 640]])[chosen],
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "mask_labels": [masks[sample] for sample in samples],
        "random_keys": torch.tensor([7, 8])[chosen],
    }
    if task in REGION_TASKS:
        batch["region_masks"] = [boxes(REGION_BOXES[sample]) for sample in samples]
        batch["region_labels"] = [torch.tensor(REGION_LABELS[sample]) for sample in samples]
    else:
        prompt_ids, prompt_mask = padded([ids for sample in samples for ids in asked_tokens(task, sample)])
        batch["prompt_ids"] = prompt_ids.unflatten(0, (len(samples), -1))
        batch["prompt_mask"] = prompt_mask.unflatten(0, (len(samples), -1))
    if task in CLASS_TASKS:
        batch["class_labels"] = [torch.tensor([[0, 1], [1, 0]][sample]) for sample in samples]
    if task == "cross_image":
        batch["prompt_pixel_values"] = images(2)[chosen]
    return batch


def without_labels(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in LABELS}


def scores(output: Any, sample: int) -> Tensor:
    """Scores of a sample's queries for what its task asks, whatever it is."""
    predictions = output.predictions
    (given,) = (
        x for x in (predictions.class_logits, predictions.seg_logits, predictions.region_logits) if x is not None
    )
    return given[sample]


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@every_task
def test_returns_losses_by_name_and_the_final_prediction(task: str) -> None:
    output = make_model()(**make_batch(task))
    assert set(output.losses) == {"loss_mask", "loss_dice", TASK_LOSS[ANSWER[task]]}
    assert torch.equal(output.loss, torch.stack([*output.losses.values()]).sum())
    assert output.loss.dtype == torch.float32
    predictions = output.predictions
    assert predictions.masks.shape == (2, Q, S // 4, S // 4)
    kinds = {kind for kind in ("class", "seg", "region") if getattr(predictions, f"{kind}_logits") is not None}
    assert kinds == {ANSWER[task]}
    shapes = {"class": [(Q, C), (Q, C)], "seg": [(Q, 1), (Q, 1)], "region": [(1, Q), (3, Q)]}
    assert [tuple(scores(output, sample).shape) for sample in (0, 1)] == shapes[ANSWER[task]]


@every_task
def test_twice_the_step_s_totals_are_half_the_losses(task: str) -> None:
    model, batch = make_model(), make_batch(task)
    regions = sum(len(labels) for labels in batch.get("region_labels", []))
    halves = model(**batch, num_masks=2 * 4, num_regions=torch.tensor(2 * regions), num_images=2 * 2).losses
    torch.testing.assert_close({name: 2 * half for name, half in halves.items()}, model(**batch).losses)


def test_without_labels_there_is_no_loss() -> None:
    output = make_model()(**without_labels(make_batch()))
    assert output.loss is None
    assert output.losses is None


@every_task
@pytest.mark.parametrize("projector", ["deformable", "swin_conv"])
def test_a_batch_equals_its_samples_one_by_one(task: str, projector: str) -> None:
    model = make_model(mm_projector_type=projector).eval()
    with torch.no_grad():
        together = model(**without_labels(make_batch(task)))
        for sample in (0, 1):
            alone = model(**without_labels(make_batch(task, (sample,))))
            close(together.predictions.masks[sample], alone.predictions.masks[0])
            close(scores(together, sample), scores(alone, 0))


def longest_prompt(batch: Mapping[str, Any]) -> int:
    """The batch's ``prompt_length``."""
    text = (batch["attention_mask"] & (batch["input_ids"] >= 0)).sum(1)
    if batch["task"] in REGION_TASKS:
        return int((text + torch.tensor([len(masks) for masks in batch["region_masks"]])).max())
    return int((text + batch["prompt_mask"].sum((1, 2))).max())


@every_task
def test_a_longer_padding_changes_nothing(task: str) -> None:
    model, batch = make_model().eval(), without_labels(make_batch(task))
    with torch.no_grad():
        exact = model(**batch)
        assert torch.equal(
            model(**batch, prompt_length=longest_prompt(batch)).predictions.masks, exact.predictions.masks
        )
        for name, columns in (("input_ids", 4), ("attention_mask", 4), ("prompt_ids", 2), ("prompt_mask", 2)):
            if name in batch:
                batch[name] = F.pad(batch[name], (0, columns))
        roomy = model(**batch, prompt_length=longest_prompt(batch) + 9)
    close(roomy.predictions.masks, exact.predictions.masks)
    close([scores(roomy, sample) for sample in (0, 1)], [scores(exact, sample) for sample in (0, 1)])


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


@every_task
def test_a_prediction_waits_for_no_device(task: str) -> None:
    """But for the sizes of the regions, which are lists and so unseen here."""
    model, batch = make_model().eval(), without_labels(make_batch(task))
    prompt_length = longest_prompt(batch)
    with torch.no_grad(), Syncs() as syncs:
        model(**batch, prompt_length=prompt_length)
    assert syncs.seen == []
    with torch.no_grad(), Syncs() as syncs:
        model(**batch)
    assert syncs.seen == ["_local_scalar_dense"]  # the length of the longest sequence


class Seen:
    """What the parts of a model are given and return while it predicts for a batch."""

    def __init__(self, model: PsalmForSegmentation, batch: dict[str, Any]) -> None:
        parts = {"llm": model.model, "pixel_decoder": model.pixel_decoder, "predictor": model.predictor}
        self.given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.returned: dict[str, Any] = {}
        handles = [part.register_forward_hook(self._hook(name), with_kwargs=True) for name, part in parts.items()]
        with torch.no_grad():
            model(**batch)
        for handle in handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.given[name], self.returned[name] = (args, kwargs), output

        return keep

    @property
    def sequence(self) -> Tensor:
        """The embeddings [B, T, D] that the LLM reads."""
        return self.given["llm"][1]["inputs_embeds"]


@every_task
@pytest.mark.parametrize("projector", ["deformable", "swin_conv"])
def test_the_sequence_is_as_long_as_its_parts(task: str, projector: str) -> None:
    text = 5 + 2 + 2 + 2  # of the longer sample
    tokens = {"class": 5 + 2 + 2, "seg": 4, "region": 3}[ANSWER[task]]
    asked = {"class": C, "seg": 1, "region": 3}[ANSWER[task]]
    length = (
        text + asked + tokens + IMAGE_TOKENS * (1 + (task == "cross_image")) + Q + asked * (projector == "deformable")
    )
    model, batch = make_model(mm_projector_type=projector).eval(), without_labels(make_batch(task))
    assert Seen(model, batch).sequence.shape == (2, length, 32)
    assert Seen(model, {**batch, "prompt_length": longest_prompt(batch)}).sequence.shape == (2, length, 32)


class Naive:
    """One sample's sequence, token by token, and where in it the asked things and the seg queries stand."""

    def __init__(self, model: PsalmForSegmentation, batch: dict[str, Any]) -> None:
        self.model, self.batch, llm = model, batch, model.model
        self.target = model.encode_image(batch["pixel_values"])
        pointed = model.encode_image(batch["prompt_pixel_values"]) if "prompt_pixel_values" in batch else self.target
        baseline, pointed_baseline = (list(llm.mm_projector(maps["res5"])[0]) for maps in (self.target, pointed))
        asked = self.asked(torch.stack(pointed_baseline))
        aligned = [self.aligned(torch.stack(tokens).mean(0)) for tokens in asked]

        self.sequence: list[Tensor] = []
        self.asked_at: list[list[int]] = []
        self.queries_at: list[int] = []
        for index in batch["input_ids"][0].tolist():
            start = len(self.sequence)
            if index >= 0:
                self.sequence.append(llm.embed_tokens.weight[index])
            elif index == IMAGE_TOKEN_INDEX and batch["task"] == "cross_image":
                self.sequence += pointed_baseline
            elif index in (IMAGE_TOKEN_INDEX, IMAGE1_TOKEN_INDEX):
                self.sequence += baseline + aligned
            elif index == SEG_TOKEN_INDEX:
                self.sequence += list(model.seg_query)
                self.queries_at = list(range(start, len(self.sequence)))
            else:
                assert index == PROMPT_TOKEN_INDEX[batch["task"]]
                self.sequence += asked[len(self.asked_at)]
                self.asked_at.append(list(range(start, len(self.sequence))))

    def asked(self, pointed_baseline: Tensor) -> list[list[Tensor]]:
        """The tokens of each thing that is asked for."""
        if self.batch["task"] not in REGION_TASKS:
            rows = zip(self.batch["prompt_ids"][0], self.batch["prompt_mask"][0], strict=True)
            return [[self.model.model.embed_tokens.weight[i] for i in ids[mask]] for ids, mask in rows]
        draws = KeyedRegionDraws(self.batch["random_keys"].tolist())
        points = region_points(self.batch["region_masks"], 256, draws)
        feature_map = pointed_baseline.T.reshape(1, -1, 2, 2)
        sampled = F.grid_sample(feature_map, 2 * points[None] - 1, align_corners=True)[0]  # [D, R, P]
        return [[feature] for feature in sampled.mean(-1).T]

    def aligned(self, query: Tensor) -> Tensor:
        """The deformable token of one query, alone."""
        mask, other = torch.ones(1, 1, dtype=torch.bool), self.batch["task"] == "cross_image"
        projector, sizes = self.model.model.mm_projector_deformable, self.batch["image_sizes"]
        return projector(query[None, None], mask, self.target, sizes, from_other_image=other)[0, 0]


@every_task
def test_the_llm_reads_the_sequence_of_its_task_and_the_decoder_what_stands_in_it(task: str) -> None:
    model = make_model().eval()
    torch.nn.init.normal_(model.model.mm_projector_deformable.attention.sampling_offsets.weight)
    seen = Seen(model, without_labels(make_batch(task)))
    args, given = seen.given["predictor"]
    name, projector = {
        "class": ("class_embeddings", model.class_name_projector),
        "seg": ("seg_embeddings", model.SEG_token_projector),
        "region": ("region_embeddings", model.region_projector),
    }[ANSWER[task]]
    assert {key for key, value in given.items() if value is not None} == {name}
    for sample in (0, 1):
        with torch.no_grad():
            naive = Naive(model, make_batch(task, (sample,)))
            close(seen.sequence[sample, : len(naive.sequence)], torch.stack(naive.sequence))
            assert not seen.sequence[sample, len(naive.sequence) :].any()
            hidden = seen.returned["llm"].last_hidden_state[sample]
            close(args[2][sample], model.seg_query_projector(hidden[naive.queries_at]))
            states = torch.stack([hidden[places].mean(0) for places in naive.asked_at])
            close(given[name][sample], projector(states))
            for level, features in naive.target.items():
                close(seen.given["pixel_decoder"][0][0][level][sample], features[0])


@every_task
def test_deformable_tokens_have_an_effect_and_can_be_zeroed(task: str) -> None:
    model, batch = make_model().eval(), without_labels(make_batch(task))
    before = model(**batch).predictions.masks
    torch.nn.init.normal_(model.model.mm_projector_deformable.output_proj.weight)
    changed = model(**batch).predictions.masks
    assert not torch.allclose(before, changed, atol=1e-5)
    model.zero_deformable_tokens = True
    zeroed = model(**batch).predictions.masks
    torch.nn.init.normal_(model.model.mm_projector_deformable.output_proj.weight)
    assert torch.equal(zeroed, model(**batch).predictions.masks)


@every_task
def test_queries_look_first_at_the_centre_or_where_another_image_proposes(task: str) -> None:
    batch = without_labels(make_batch(task))
    auto, center, proposal = (
        Seen(make_model(mm_reference_points=points).eval(), batch).sequence for points in ("auto", "center", "proposal")
    )
    assert not torch.equal(center, proposal)
    assert torch.equal(auto, proposal if task == "cross_image" else center)


def test_the_order_of_names_is_seen() -> None:
    model, batch = make_model().eval(), without_labels(make_batch(samples=(0,)))
    first = model(**batch).predictions.class_logits
    batch["prompt_ids"], batch["prompt_mask"] = batch["prompt_ids"][:, [1, 0, 2]], batch["prompt_mask"][:, [1, 0, 2]]
    assert not torch.allclose(first, model(**batch).predictions.class_logits[..., [1, 0, 2]], atol=1e-6)


def differs(model: PsalmForSegmentation, batch: dict[str, Any], change: dict[str, Any], sample: int = 1) -> bool:
    with torch.no_grad():
        before, after = model(**batch), model(**{**batch, **change})
    return not torch.allclose(scores(before, sample), scores(after, sample), atol=1e-5)


def test_another_expression_is_another_answer() -> None:
    batch = without_labels(make_batch("referring"))
    assert differs(make_model().eval(), batch, {"prompt_ids": batch["prompt_ids"].where(batch["prompt_ids"] != 21, 23)})


@every_region_task
@pytest.mark.parametrize("projector", ["deformable", "swin_conv"])
def test_a_region_in_another_place_is_another_answer(task: str, projector: str) -> None:
    batch = without_labels(make_batch(task))
    moved = [batch["region_masks"][0], boxes([(64, 96, 0, 64), *REGION_BOXES[1][1:]])]
    assert differs(make_model(mm_projector_type=projector).eval(), batch, {"region_masks": moved})


@pytest.mark.parametrize("name", ["pixel_values", "prompt_pixel_values"])
def test_both_images_matter(name: str) -> None:
    batch = without_labels(make_batch("cross_image"))
    assert differs(make_model().eval(), batch, {name: images(3)})


def test_in_one_image_regions_and_their_prompt_image_are_the_same() -> None:
    model, batch = make_model().eval(), without_labels(make_batch("region"))
    assert not differs(model, batch, {"prompt_pixel_values": images(3)})


@every_region_task
def test_an_image_without_regions_has_no_scores(task: str) -> None:
    batch = make_batch(task)
    batch["region_masks"][0], batch["region_labels"][0] = batch["region_masks"][0][:0], batch["region_labels"][0][:0]
    batch["input_ids"][0][batch["input_ids"][0] == PROMPT_TOKEN_INDEX[task]] = 8
    output = make_model()(**batch)
    assert scores(output, 0).shape == (0, Q)
    assert output.loss.isfinite()


def test_the_projector_sees_both_images_in_one_batch() -> None:
    """Its batch norms would otherwise have statistics of their own for either."""
    model, sizes = make_model(), []
    model.model.mm_projector.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    model.model.vision_tower.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    model(**make_batch("cross_image"))
    assert sizes == [4, 4]


@every_task
def test_the_vision_tower_runs_once_without_a_graph(task: str) -> None:
    model = make_model().train()
    calls: list[bool] = []
    model.model.vision_tower.register_forward_hook(lambda _, __, output: calls.append(output["res5"].requires_grad))
    model(**make_batch(task)).loss.backward()
    assert calls == [False]
    assert not model.model.vision_tower.training


OWN_PARTS = {
    "class": ("class_name_projector.", "predictor.CLASS_proj."),
    "seg": ("SEG_token_projector.", "predictor.SEG_proj."),
    "region": ("region_projector.", "predictor.REGION_proj."),
}


@every_task
def test_gradients_reach_every_part_that_the_task_trains_and_no_other(task: str) -> None:
    model = make_model().train()
    model(**make_batch(task)).loss.backward()
    others = tuple(part for kind, parts in OWN_PARTS.items() if kind != ANSWER[task] for part in parts)
    for name, parameter in model.named_parameters():
        if name.startswith(("model.vision_tower.", *others)):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    parts = (
        "model.embed_tokens",
        "model.layers.0",
        "model.mm_projector",
        "model.mm_projector_deformable",
        "seg_query_p",
    )
    for part in (*parts, *OWN_PARTS[ANSWER[task]]):
        gradients = [p.grad for name, p in model.named_parameters() if name.startswith(part)]
        assert any(gradient is not None and gradient.any() for gradient in gradients), part


@pytest.mark.parametrize("task", [*REGION_TASKS, "referring"])
def test_where_nothing_is_meant_only_the_scores_are_trained(task: str) -> None:
    model, batch = make_model().train(), make_batch(task)
    batch["mask_labels"] = [masks[:0] for masks in batch["mask_labels"]]
    if task in REGION_TASKS:
        batch["region_labels"] = [torch.full_like(labels, -1) for labels in batch["region_labels"]]
    output = model(**batch)
    output.loss.backward()
    assert output.losses["loss_mask"] == output.losses["loss_dice"] == 0
    assert output.loss.isfinite()
    assert output.loss > 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


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
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
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


@every_task
def test_runs_in_bfloat16(task: str) -> None:
    model = make_model().to(torch.bfloat16).train()
    output = model(**make_batch(task))
    output.loss.backward()
    assert output.loss.isfinite()
    assert model.seg_query.grad is not None
    assert model.seg_query.grad.isfinite().all()


@every_task
def test_runs_under_autocast(task: str) -> None:
    model = make_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**make_batch(task))
    output.loss.backward()
    assert output.loss.isfinite()


@every_task
def test_a_few_steps_lower_the_loss(task: str) -> None:
    model, batch = make_model().train(), make_batch(task)
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
    tasks = "panoptic, semantic, instance, referring, region, cross_image"
    with pytest.raises(ValueError, match=f"^task must be one of {tasks}, but got 'depth'$"):
        model(**{**batch, "task": "depth"})
    with pytest.raises(ValueError, match="losses need random_keys"):
        model(**{**batch, "random_keys": None})


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("semantic", "prompt_ids"),
        ("referring", "prompt_mask"),
        ("region", "region_masks"),
        ("region", "random_keys"),
        ("cross_image", "random_keys"),
        ("cross_image", "prompt_pixel_values"),
    ],
)
def test_refuses_a_task_that_lacks_an_input_in_evaluation_too(task: str, name: str) -> None:
    batch = without_labels(make_batch(task))
    del batch[name]
    with pytest.raises(ValueError, match=f"^task {task} needs {name}, but got none$"):
        make_model().eval()(**batch)


def test_startup_lines_say_what_the_guide_promises() -> None:
    model = make_model(mm_hidden_dim=64, mm_n_heads=8, mm_n_points=4)
    assert startup_lines(model) == (
        "✓ mm_projector 类型: MultiScaleDeformableCrossAttentionAlignment\n"
        "  - Deformable参数: n_levels=4, n_heads=8, n_points=4\n"
        "✓ mm_projector type: MultiScaleDeformableCrossAttentionAlignment\n"
        "  - Deformable parameters: n_levels=4, n_heads=8, n_points=4"
    )
    assert "SwinConvProjector" in startup_lines(make_model(mm_projector_type="swin_conv"))
