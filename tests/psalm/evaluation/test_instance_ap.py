"""Instance AP against pycocotools run directly on the files' contents, and against cases counted by hand."""

import copy
import json
import pickle

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from psalm.evaluation import InstanceAP

GROUPS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
SIZE = 160, 140


def rle(mask):
    """Compressed RLE with str counts, as in a JSON file."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def runs(mask):
    """Uncompressed RLE, as crowds have."""
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def corners(rng, largest=130):
    extent = rng.integers(6, rng.choice([30, 60, largest]), size=2)
    top, left = (int(rng.integers(0, full - e)) for full, e in zip(SIZE, extent, strict=True))
    return top, left, top + int(extent[0]), left + int(extent[1])


def filled(top, left, bottom, right):
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def random_data(seed=0, images=8):
    """Ground truth of categories 3, 7 and 9 in all notations with crowds, and detections near and far from it."""
    rng = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": [{"id": c, "name": str(c)} for c in (7, 3, 9)]}
    updates = []
    for image_id in (rng.permutation(100)[:images] + 1).tolist():
        truth["images"].append({"id": image_id, "height": SIZE[0], "width": SIZE[1]})
        masks, categories, scores = [], [], []
        for _ in range(6):
            box = top, left, bottom, right = corners(rng)
            category, crowd = int(rng.choice([3, 7])), bool(rng.random() < 0.2)
            polygon = [[left, top, right, top, right, bottom, left, bottom]]
            segmentation = runs(filled(*box)) if crowd else polygon if rng.random() < 0.5 else rle(filled(*box))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "segmentation": segmentation,
                    "area": (bottom - top) * (right - left),
                    "iscrowd": int(crowd),
                }
            )
            for _ in range(rng.integers(0, 3)):
                masks.append(np.roll(filled(*box), int(rng.integers(0, 6)), axis=int(rng.integers(0, 2))))
                categories.append(category)
                scores.append(rng.integers(1, 6) / 6)
        for _ in range(3):
            masks.append(filled(*corners(rng)))
            categories.append(int(rng.choice([3, 7, 9])))
            scores.append(rng.integers(1, 6) / 6)
        updates.append((image_id, np.array(categories), np.array(scores, dtype=np.float32), np.stack(masks)))
    return truth, updates


def direct(truth, updates):
    """The official tool on the whole ground truth."""
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    coco.createIndex()
    results = [
        {"image_id": image_id, "category_id": category, "segmentation": rle(mask), "score": score}
        for image_id, categories, scores, masks in sorted(updates, key=lambda update: update[0])
        for category, score, mask in zip(categories.tolist(), scores.tolist(), masks, strict=True)
    ]
    evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "segm")
    evaluation.params.imgIds = sorted(update[0] for update in updates)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = zip(GROUPS, evaluation.stats[:6].tolist(), strict=True)
    return {name: 100 * value for name, value in figures if value != -1}, results


def counted(truth, updates):
    metric = InstanceAP(truth)
    for update in updates:
        metric.update(*update)
    return metric


def nothing(image_id):
    return image_id, np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros((0, *SIZE), dtype=bool)


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_on_random_data(seed):
    truth, updates = random_data(seed)
    updates[2] = nothing(updates[2][0])
    expected, results = direct(truth, updates)
    assert any(annotation["iscrowd"] for annotation in truth["annotations"])
    assert expected.keys() == set(GROUPS)
    assert all(1 < value < 99 for value in expected.values()), "the random data must exercise every group"
    metric = counted(truth, updates)
    assert metric.compute() == pytest.approx(expected, abs=1e-9)
    assert metric.results() == results


def test_ap_of_a_category_is_that_of_ground_truth_and_detections_without_the_others():
    truth, updates = random_data(0)
    found = counted(truth, updates).per_category()
    assert len(found) > 1
    for category, figures in found.items():
        of_category = {
            **truth,
            "categories": [each for each in truth["categories"] if each["id"] == category],
            "annotations": [each for each in truth["annotations"] if each["category_id"] == category],
        }
        kept = [
            (
                image_id,
                categories[categories == category],
                scores[categories == category],
                masks[categories == category],
            )
            for image_id, categories, scores, masks in updates
        ]
        assert figures == {"ap": pytest.approx(direct(of_category, kept)[0]["ap"], abs=1e-9)}


def test_figures_follow_what_is_counted():
    truth, updates = random_data(0)
    metric = counted(truth, updates[:-1])
    metric.compute()
    metric.update(*updates[-1])
    assert metric.compute() == counted(truth, updates).compute()


def test_only_counted_images_are_evaluated():
    truth, updates = random_data()
    expected, _ = direct(truth, updates[:3])
    assert counted(truth, updates[:3]).compute() == pytest.approx(expected, abs=1e-9)


def square_truth(sides, ids=None):
    """Image 1 with squares of category 5, side by side from the left."""
    annotations = [
        {
            "id": number if ids is None else ids[number],
            "image_id": 1,
            "category_id": 5,
            "segmentation": rle(filled(0, 70 * number, side, 70 * number + side)),
            "area": side**2,
            "iscrowd": 0,
        }
        for number, side in enumerate(sides)
    ]
    image = {"id": 1, "height": SIZE[0], "width": SIZE[1]}
    return {"images": [image], "categories": [{"id": 5}], "annotations": annotations}


def detected(*masks):
    return 1, np.full(len(masks), 5), np.linspace(0.9, 0.8, len(masks)), np.stack(masks)


def test_one_of_two_objects_found_with_iou_of_four_fifths():
    metric = counted(square_truth([20, 60]), [detected(filled(0, 70, 48, 130))])
    half = 100 * 51 / 101  # precision 1 at the 51 recall thresholds from 0 to 0.5
    found_at = 7 / 10  # IoU thresholds 0.5, 0.55, ..., 0.8
    assert metric.compute() == pytest.approx(
        {"ap": half * found_at, "ap50": half, "ap75": half, "ap_small": 0, "ap_medium": 100 * found_at}, abs=1e-9
    )


def test_annotation_whose_id_is_zero_can_be_found():
    assert counted(square_truth([20], ids=[0]), [detected(filled(0, 0, 20, 20))]).compute()["ap"] == pytest.approx(100)


def test_image_without_detections_counts_as_missed():
    assert counted(square_truth([20]), [nothing(1)]).compute() == {"ap": 0, "ap50": 0, "ap75": 0, "ap_small": 0}


def test_no_ground_truth_is_no_figure():
    assert counted(square_truth([]), [detected(filled(0, 0, 9, 9))]).compute() == {}
    assert counted(square_truth([20]), []).compute() == {}


def test_states_of_two_ranks_give_the_same_bits_as_one_in_any_order():
    truth, updates = random_data()
    merged = InstanceAP(truth)
    for rank in (counted(truth, updates[1::2]), counted(truth, updates[::2])):
        merged.add_state(pickle.loads(pickle.dumps(rank.state())))
    alone = counted(truth, updates)
    assert merged.compute() == alone.compute() == counted(truth, reversed(updates)).compute()
    assert merged.results() == alone.results()


def test_ground_truth_stays_as_it_was_and_nothing_is_printed(capsys):
    truth, updates = random_data(images=2)
    before = copy.deepcopy(truth)
    metric = counted(truth, updates)
    assert metric.compute() == metric.compute()
    assert truth == before
    assert capsys.readouterr() == ("", "")


def test_results_are_json():
    truth, updates = random_data(images=1)
    metric = InstanceAP(truth)
    metric.update(np.int64(updates[0][0]), *updates[0][1:])
    assert json.loads(json.dumps(metric.results())) == metric.results()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 8}, "image 8 is not among the 1 images of the ground truth"),
        (
            {"masks": np.ones((2, *SIZE))},
            r"masks of image 1 must be bool \[2, 160, 140\], but got float64 \[2, 160, 140\]",
        ),
        (
            {"masks": np.ones((2, 4, 4), bool)},
            r"masks of image 1 must be bool \[2, 160, 140\], but got bool \[2, 4, 4\]",
        ),
        ({"scores": np.ones(2, int)}, r"scores of image 1 must be floating \[2\], but got int64 \[2\]"),
        ({"scores": np.array([0.5, np.nan])}, r"scores of image 1 must be finite, but got \[0.5, nan\]"),
        ({"category_ids": np.full(3, 5)}, r"category_ids of image 1 must be integer \[2\], but got int64 \[3\]"),
        ({"category_ids": np.array([5, 0])}, r"category_ids of image 1 must be ids of the ground .* but got \[0\]"),
    ],
)
def test_wrong_detections_are_refused(change, message):
    metric = InstanceAP(square_truth([20]))
    given = {"image_id": 1, "category_ids": np.full(2, 5), "scores": np.ones(2), "masks": np.ones((2, *SIZE), bool)}
    with pytest.raises(ValueError, match=message):
        metric.update(**given | change)
    assert metric.state() == {}


def test_image_counts_once():
    metric = counted(square_truth([20]), [nothing(1)])
    with pytest.raises(ValueError, match="image 1 was counted already: every image counts once"):
        metric.update(*nothing(1))
    with pytest.raises(ValueError, match="image 1 was counted already"):
        metric.add_state(metric.state())


def test_ground_truth_that_pycocotools_cannot_read_is_refused_at_once():
    truth = square_truth([20, 20])
    del truth["annotations"][1]["iscrowd"]
    with pytest.raises(ValueError, match=r"^annotations\[1\] has no key 'iscrowd': COCO instances format is expected"):
        InstanceAP(truth)
    with pytest.raises(ValueError, match="the ground truth has no key 'categories': COCO"):
        InstanceAP({"images": [], "annotations": []})
    truth = square_truth([20])
    truth["annotations"][0]["segmentation"] = []
    with pytest.raises(
        ValueError, match=r"^annotations\[0\].segmentation is empty: pycocotools needs polygons or an RLE"
    ):
        InstanceAP(truth)
