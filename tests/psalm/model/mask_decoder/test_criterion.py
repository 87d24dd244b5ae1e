"""Losses: parity with the original, and what a split of the batch may not change."""

import math
from dataclasses import fields, replace

import pytest
import torch

from psalm.model.mask_decoder.criterion import PsalmCriterion
from psalm.model.mask_decoder.matcher import Targets
from psalm.model.mask_decoder.points import KeyedPoints, sample_maps, sample_masks
from psalm.model.mask_decoder.prediction import Prediction

SETTINGS = {
    "class_weight": 2.0,
    "mask_weight": 5.0,
    "dice_weight": 5.0,
    "no_object_weight": 0.1,
    "num_points": 24,
    "oversample_ratio": 3.0,
    "importance_sample_ratio": 0.75,
}
CRITERION = PsalmCriterion(**SETTINGS)
TASK_LOSS = {"class": "loss_class_name_class", "seg": "loss_SEG_class", "region": "loss_region_class"}
TASKS = tuple(TASK_LOSS)
Q, C = 6, 5


class Replay:
    """Hands out the points that the original drew."""

    def __init__(self, golden, case, stages):
        self.draws = {}
        for name, _, purpose in golden.meta["cases"][case]["rand"]:
            stage, what = purpose.split(": ")
            kind = "matching" if "matcher" in what else "candidates" if "candidates" in what else "uniform"
            self.draws.setdefault((kind, stages.index(stage)), []).append(golden.tensors[name])

    def __call__(self, purpose, layer, counts, num_points):
        if num_points == 0:
            return torch.zeros(sum(counts), 0, 2)
        points = torch.cat(self.draws[purpose, layer])
        assert points.shape == (sum(counts), num_points, 2)
        return points


def golden_prediction(golden, case, stage):
    stored = {k: v.clone().requires_grad_() for k, v in golden.under(f"input.{case}.{stage}.").items()}
    regions = [stored[k] for k in sorted(stored, key=lambda k: (len(k), k)) if k.startswith("pred_region_logits.")]
    prediction = Prediction(
        masks=stored["pred_masks"],
        class_logits=stored.get("pred_class_name_logits"),
        seg_logits=stored.get("pred_SEG_logits"),
        region_logits=regions or None,
    )
    return prediction, stored


@pytest.mark.golden("criterion")
def test_golden_criterion(golden):
    config = golden.config
    weights = config["loss_weights"]
    criterion = PsalmCriterion(
        class_weight=weights["loss_class_name_class"],
        mask_weight=weights["loss_mask"],
        dice_weight=weights["loss_dice"],
        no_object_weight=0.1,
        **{name: config[name] for name in ("num_points", "oversample_ratio", "importance_sample_ratio")},
    )
    assert criterion.weights == weights
    stages = [f"aux{i}" for i in range(config["naux"])] + ["main"]
    for case in golden.meta["cases"]:
        loaded = [golden_prediction(golden, case, stage) for stage in stages]
        predictions = [prediction for prediction, _ in loaded]
        images = range(config["B"])
        targets = Targets.of(
            [golden.tensors[f"input.{case}.targets.{b}.masks"] for b in images],
            [golden.tensors[f"input.{case}.targets.{b}.labels"] for b in images],
        )
        replay = Replay(golden, case, stages)
        for stage, assignment in zip(stages, criterion.matcher(predictions, targets, replay), strict=True):
            for b in images:
                here = assignment.image == b
                expected = golden.tensors[f"output.{case}.indices.{stage}.{b}"]
                assert torch.equal(torch.stack([assignment.query[here], assignment.target[here]]), expected)

        layers = criterion.layer_losses(predictions, targets, replay)
        stored_names = set(golden.under(f"output.{case}.loss."))
        for stage, losses in zip(stages, layers, strict=True):
            suffix = "" if stage == "main" else f"_{stage.removeprefix('aux')}"
            for name, loss in losses.items():
                golden.close(loss, f"output.{case}.loss.{name}{suffix}")
                stored_names.remove(f"{name}{suffix}")
        assert not stored_names
        total = sum(weights[name] * loss for losses in layers for name, loss in losses.items())
        golden.close(total, f"output.{case}.weighted_total")
        total.backward()
        for stage, (_, stored) in zip(stages, loaded, strict=True):
            for name, tensor in stored.items():
                golden.close(tensor.grad, f"output.{case}.grad.{stage}.{name}")


def batch(task, counts=(3, 1), layers=2, seed=0):
    """Predictions with gradients, masks, labels and random keys of a batch of one task."""
    generator = torch.Generator().manual_seed(seed)

    def logits(*shape):
        return (2 * torch.randn(*shape, generator=generator)).requires_grad_()

    predictions = [
        Prediction(
            masks=logits(len(counts), Q, 8, 8),
            class_logits=logits(len(counts), Q, C) if task == "class" else None,
            seg_logits=logits(len(counts), Q, 1) if task == "seg" else None,
            region_logits=[logits(n, Q) for n in counts] if task == "region" else None,
        )
        for _ in range(layers)
    ]
    masks = [torch.rand(n, 16, 16, generator=generator) > 0.5 for n in counts]
    labels = [torch.randint(0, C - 1, (n,), generator=generator) for n in counts]
    return predictions, masks, labels, torch.arange(len(counts)) + 100


def only(inputs, image):
    """The batch's one image on its own."""
    predictions, masks, labels, keys = inputs
    part = slice(image, image + 1)
    cut = []
    for prediction in predictions:
        values = {field.name: getattr(prediction, field.name) for field in fields(prediction)}
        cut.append(Prediction(**{name: None if value is None else value[part] for name, value in values.items()}))
    return cut, masks[part], labels[part], keys[part]


def leaves(predictions):
    for prediction in predictions:
        yield prediction.masks
        yield from (t for t in (prediction.class_logits, prediction.seg_logits) if t is not None)
        yield from prediction.region_logits or ()


def gradients(losses, predictions):
    return torch.autograd.grad(sum(losses.values()), list(leaves(predictions)))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("counts", [(3, 1), (2, 0)])
def test_losses_of_two_images_are_the_sum_of_each_alone(task, counts):
    inputs = batch(task, counts)
    whole = CRITERION(*inputs)
    totals = {"num_masks": float(sum(counts)), "num_images": 2}
    parts = [CRITERION(*only(inputs, image), **totals) for image in range(2)]
    assert set(whole) == {"loss_mask", "loss_dice", TASK_LOSS[task]}
    summed = {name: parts[0][name] + parts[1][name] for name in whole}
    torch.testing.assert_close(summed, whole)
    torch.testing.assert_close(gradients(summed, inputs[0]), gradients(whole, inputs[0]))


@pytest.mark.parametrize("task", TASKS)
def test_micro_batches_are_averaged_to_the_loss_of_the_whole_step(task):
    inputs = batch(task, counts=(5, 2))
    mean = torch.tensor([7]) / 2  # as an all-reduce leaves it
    parts = [CRITERION(*only(inputs, image), num_masks=mean) for image in range(2)]
    averaged = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    torch.testing.assert_close(averaged, CRITERION(*inputs))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_masks", [None, 0.0, torch.tensor(0)])
def test_batch_without_masks_has_finite_losses_and_gradients(task, num_masks):
    inputs = batch(task, counts=(0, 0))
    losses = CRITERION(*inputs, num_masks=num_masks)
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    assert math.isfinite(losses[TASK_LOSS[task]].item())
    for gradient in gradients(losses, inputs[0]):
        assert gradient.isfinite().all()


def test_mask_and_class_losses_equal_their_definitions():
    criterion = PsalmCriterion(**SETTINGS | {"importance_sample_ratio": 0.0})
    predictions, masks, labels, keys = batch("class", layers=1)
    prediction, targets = predictions[0], Targets.of(masks, labels)
    points = KeyedPoints(keys.tolist())
    (assigned,) = criterion.matcher(predictions, targets, points)
    where = points("uniform", 0, [3, 1], 24)
    mask_loss = dice_loss = 0.0
    label_of = {}
    for row, (b, q, n, m) in enumerate(
        zip(*(getattr(assigned, f.name).tolist() for f in fields(assigned)), strict=True)
    ):
        x = sample_maps(prediction.masks[b : b + 1, q : q + 1], where[row : row + 1]).flatten().tolist()
        t = sample_masks(targets.masks, torch.tensor([m]), where[row : row + 1]).flatten().tolist()
        p = [1 / (1 + math.exp(-v)) for v in x]
        mask_loss -= sum(y * math.log(v) + (1 - y) * math.log(1 - v) for v, y in zip(p, t, strict=True)) / 24
        both = sum(v * y for v, y in zip(p, t, strict=True))
        dice_loss += 1 - (2 * both + 1) / (sum(p) + sum(t) + 1)
        label_of[b, q] = int(labels[b][n])
    weighted = weight = 0.0
    for b in range(2):
        for q in range(Q):
            label = label_of.get((b, q), C - 1)
            w = 0.1 if label == C - 1 else 1.0
            weighted -= w * prediction.class_logits[b, q].double().log_softmax(0)[label].item()
            weight += w
    losses = criterion(predictions, masks, labels, keys)
    assert losses["loss_mask"].item() == pytest.approx(5 * mask_loss / 4, rel=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(5 * dice_loss / 4, rel=1e-5)
    assert losses["loss_class_name_class"].item() == pytest.approx(2 * weighted / weight, rel=1e-5)


def test_positives_and_negatives_of_seg_loss_balance():
    predictions, masks, labels, keys = batch("seg", counts=(2, 1), layers=1)
    flat = [replace(predictions[0], seg_logits=torch.zeros(2, Q, 1))]
    loss = CRITERION(flat, masks, labels, keys)["loss_SEG_class"].item()
    n, k = 2 * Q, 3
    assert loss == pytest.approx(2 * math.log(2) * (k * (n - k) / k + (n - k)) / n)


@pytest.mark.parametrize("task", TASKS)
def test_half_precision_is_computed_in_float32(task):
    predictions, *rest = batch(task)

    def cast(value, dtype):
        if value is None:
            return None
        return [v.to(dtype) for v in value] if isinstance(value, list) else value.to(dtype)

    def as_type(dtype):
        names = [field.name for field in fields(Prediction)]
        return [Prediction(**{n: cast(cast(getattr(p, n), torch.bfloat16), dtype) for n in names}) for p in predictions]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = CRITERION(as_type(torch.bfloat16), *rest)
    assert all(loss.dtype == torch.float32 for loss in half.values())
    torch.testing.assert_close(half, CRITERION(as_type(torch.float32), *rest), atol=0, rtol=0)


def test_diverged_prediction_shows_in_the_loss():
    inputs = batch("class", counts=(Q, 1))
    with torch.no_grad():
        inputs[0][0].masks[0, 0] = float("nan")
    assert math.isnan(CRITERION(*inputs)["loss_mask"].item())


def test_losses_depend_on_the_random_keys_alone():
    predictions, masks, labels, keys = batch("class")
    first = CRITERION(predictions, masks, labels, keys)
    torch.manual_seed(1)
    assert CRITERION(predictions, masks, labels, keys) == first
    assert CRITERION(predictions, masks, labels, keys + 1)["loss_mask"] != first["loss_mask"]


def test_more_masks_than_queries():
    losses = CRITERION(*batch("class", counts=(Q + 2, 1)))
    assert all(loss.isfinite() for loss in losses.values())


def test_regions_must_fit_masks():
    predictions, masks, labels, keys = batch("region", counts=(2, 1))
    with pytest.raises(ValueError, match=r"each region needs one mask, but images have \(2, 1\) regions and \(1, 1\)"):
        CRITERION(predictions, [masks[0][:1], masks[1]], [labels[0][:1], labels[1]], keys)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("num_points", 0, "must be at least 1, but got 0"),
        ("oversample_ratio", 0.5, "must be at least 1, but got 0.5"),
        ("importance_sample_ratio", 1.5, r"must be in \[0, 1\], but got 1.5"),
    ],
)
def test_settings_are_checked(name, value, rule):
    with pytest.raises(ValueError, match=f"{name} {rule}"):
        PsalmCriterion(**SETTINGS | {name: value})
