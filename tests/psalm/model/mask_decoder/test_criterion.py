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


def answers_of(count):
    """Region labels of an image with so many masks: two regions share the first mask, one has none."""
    return torch.tensor([*range(count), -1, min(0, count - 1)])


def batch(task, counts=(3, 1), layers=2, seed=0):
    """The criterion's arguments for a batch of one task: predictions with gradients, labels and random keys."""
    generator = torch.Generator().manual_seed(seed)

    def logits(*shape):
        return (2 * torch.randn(*shape, generator=generator)).requires_grad_()

    predictions = [
        Prediction(
            masks=logits(len(counts), Q, 8, 8),
            class_logits=logits(len(counts), Q, C) if task == "class" else None,
            seg_logits=logits(len(counts), Q, 1) if task == "seg" else None,
            region_logits=[logits(len(answers_of(n)), Q) for n in counts] if task == "region" else None,
        )
        for _ in range(layers)
    ]
    return {
        "predictions": predictions,
        "mask_labels": [torch.rand(n, 16, 16, generator=generator) > 0.5 for n in counts],
        "class_labels": [torch.randint(0, C - 1, (n,), generator=generator) for n in counts],
        "random_keys": torch.arange(len(counts)) + 100,
        "region_labels": [answers_of(n) for n in counts] if task == "region" else None,
    }


def only(inputs, image):
    """The batch's one image on its own."""

    def cut(values):
        return None if values is None else values[image : image + 1]

    predictions = [
        Prediction(**{field.name: cut(getattr(prediction, field.name)) for field in fields(prediction)})
        for prediction in inputs["predictions"]
    ]
    return {name: cut(values) for name, values in inputs.items()} | {"predictions": predictions}


def regions_of(inputs):
    return sum(len(labels) for labels in inputs["region_labels"] or ())


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
    whole = CRITERION(**inputs)
    totals = {"num_masks": float(sum(counts)), "num_regions": float(regions_of(inputs)), "num_images": 2}
    parts = [CRITERION(**only(inputs, image), **totals) for image in range(2)]
    assert set(whole) == {"loss_mask", "loss_dice", TASK_LOSS[task]}
    summed = {name: parts[0][name] + parts[1][name] for name in whole}
    torch.testing.assert_close(summed, whole)
    predictions = inputs["predictions"]
    torch.testing.assert_close(gradients(summed, predictions), gradients(whole, predictions))


@pytest.mark.parametrize("task", TASKS)
def test_micro_batches_are_averaged_to_the_loss_of_the_whole_step(task):
    inputs = batch(task, counts=(5, 2))
    means = {  # as an all-reduce leaves them
        "num_masks": torch.tensor([7]) / 2,
        "num_regions": torch.tensor([regions_of(inputs)]) / 2,
    }
    parts = [CRITERION(**only(inputs, image), **means) for image in range(2)]
    averaged = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    torch.testing.assert_close(averaged, CRITERION(**inputs))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_masks", [None, 0.0, torch.tensor(0)])
def test_batch_without_masks_has_finite_losses_and_gradients(task, num_masks):
    inputs = batch(task, counts=(0, 0))
    losses = CRITERION(**inputs, num_masks=num_masks)
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    assert math.isfinite(losses[TASK_LOSS[task]].item())
    assert losses[TASK_LOSS[task]] > 0
    for gradient in gradients(losses, inputs["predictions"]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("num_regions", [None, 0.0, torch.tensor(0)])
def test_batch_without_regions_has_no_region_loss(num_regions):
    inputs = batch("region", counts=(1, 2))
    inputs["predictions"] = [replace(p, region_logits=[r[:0] for r in p.region_logits]) for p in inputs["predictions"]]
    inputs["region_labels"] = [labels[:0] for labels in inputs["region_labels"]]
    assert CRITERION(**inputs, num_regions=num_regions)["loss_region_class"] == 0


def test_mask_and_class_losses_equal_their_definitions():
    criterion = PsalmCriterion(**SETTINGS | {"importance_sample_ratio": 0.0})
    inputs = batch("class", layers=1)
    (prediction,), labels = inputs["predictions"], inputs["class_labels"]
    targets, points = Targets.of(inputs["mask_labels"], labels), KeyedPoints(inputs["random_keys"].tolist())
    (assigned,) = criterion.matcher([prediction], targets, points)
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
    losses = criterion(**inputs)
    assert losses["loss_mask"].item() == pytest.approx(5 * mask_loss / 4, rel=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(5 * dice_loss / 4, rel=1e-5)
    assert losses["loss_class_name_class"].item() == pytest.approx(2 * weighted / weight, rel=1e-5)


def test_positives_and_negatives_of_seg_loss_balance():
    inputs = batch("seg", counts=(2, 1), layers=1)
    flat = [replace(inputs["predictions"][0], seg_logits=torch.zeros(2, Q, 1))]
    loss = CRITERION(**{**inputs, "predictions": flat})["loss_SEG_class"].item()
    n, k = 2 * Q, 3
    assert loss == pytest.approx(2 * math.log(2) * (k * (n - k) / k + (n - k)) / n)


@pytest.mark.parametrize("counts", [(3, 0, 1), (Q + 2, 1)])
def test_region_loss_equals_its_definition(counts):
    """Region by region and query by query; with more masks than queries some masks have no query."""
    inputs = batch("region", counts, layers=1)
    (prediction,) = inputs["predictions"]
    targets, points = Targets.of(inputs["mask_labels"], None), KeyedPoints(inputs["random_keys"].tolist())
    (assigned,) = CRITERION.matcher([prediction], targets, points)
    pairs = torch.stack([assigned.image, assigned.target, assigned.query], 1).tolist()
    query_of = {(image, target): query for image, target, query in pairs}
    total = positives = regions = 0
    for image, (logits, labels) in enumerate(zip(prediction.region_logits, inputs["region_labels"], strict=True)):
        for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
            regions += 1
            for query, logit in enumerate(row):
                positive = query_of.get((image, label)) == query
                positives += positive
                total += (Q - 1) * math.log1p(math.exp(-logit)) if positive else math.log1p(math.exp(logit))
    assert 0 < positives < regions
    assert CRITERION(**inputs)["loss_region_class"].item() == pytest.approx(2 * total / (regions * Q), rel=1e-5)


def test_without_region_labels_each_region_is_answered_by_its_own_mask():
    inputs = batch("region", counts=(3, 1))
    inputs["predictions"] = [
        replace(p, region_logits=[logits[:-2] for logits in p.region_logits]) for p in inputs["predictions"]
    ]
    explicit = CRITERION(**{**inputs, "region_labels": [torch.arange(3), torch.arange(1)]})
    assert CRITERION(**{**inputs, "region_labels": None}) == explicit


@pytest.mark.parametrize("task", TASKS)
def test_half_precision_is_computed_in_float32(task):
    inputs = batch(task)

    def cast(value, dtype):
        if value is None:
            return None
        return [v.to(dtype) for v in value] if isinstance(value, list) else value.to(dtype)

    def as_type(dtype):
        names = [field.name for field in fields(Prediction)]
        predictions = [
            Prediction(**{n: cast(cast(getattr(p, n), torch.bfloat16), dtype) for n in names})
            for p in inputs["predictions"]
        ]
        return {**inputs, "predictions": predictions}

    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = CRITERION(**as_type(torch.bfloat16))
    assert all(loss.dtype == torch.float32 for loss in half.values())
    torch.testing.assert_close(half, CRITERION(**as_type(torch.float32)), atol=0, rtol=0)


def test_diverged_prediction_shows_in_the_loss():
    inputs = batch("class", counts=(Q, 1))
    with torch.no_grad():
        inputs["predictions"][0].masks[0, 0] = float("nan")
    assert math.isnan(CRITERION(**inputs)["loss_mask"].item())


def test_losses_depend_on_the_random_keys_alone():
    inputs = batch("class")
    first = CRITERION(**inputs)
    torch.manual_seed(1)
    assert CRITERION(**inputs) == first
    assert CRITERION(**{**inputs, "random_keys": inputs["random_keys"] + 1})["loss_mask"] != first["loss_mask"]


def test_more_masks_than_queries():
    losses = CRITERION(**batch("class", counts=(Q + 2, 1)))
    assert all(loss.isfinite() for loss in losses.values())


def test_regions_must_fit_their_labels():
    inputs = batch("region", counts=(2, 1))
    rule = r"each region needs one label, but images have \(4, 3\) regions and"
    with pytest.raises(ValueError, match=rf"{rule} \(3, 3\) region labels"):
        CRITERION(**{**inputs, "region_labels": [labels[:3] for labels in inputs["region_labels"]]})
    with pytest.raises(ValueError, match=rf"{rule} \(2, 1\) .*\(or masks, where no region_labels are given\)"):
        CRITERION(**{**inputs, "region_labels": None})


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
