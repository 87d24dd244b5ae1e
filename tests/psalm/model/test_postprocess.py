"""Post-processing: parity with the original, and the panoptic merge against a loop over pixels."""

import math

import pytest
import torch
import torch.nn.functional as F

from psalm.model import postprocess

ISTHING = (True, True, False, False)


def by_score(scores, *others):
    order = scores.argsort(descending=True)
    return [scores[order], *(other[order] for other in others)]


@pytest.mark.golden("postprocess")
def test_golden_postprocess(golden):
    class_logits, masks = golden.tensors["input.class_name_logits"], golden.tensors["input.mask_logits"]
    isthing = [bool(thing) for thing in golden.config["is_thing_list"]]
    thresholds = golden.config["object_mask_threshold"], golden.config["overlap_threshold"]
    top_k = golden.config["test_topk_per_image"]

    for case, logits in (
        ("panoptic", class_logits),
        ("panoptic_empty", golden.tensors["input.class_name_logits_empty"]),
    ):
        segment_map, segments = postprocess.panoptic(logits, masks, isthing, *thresholds)
        golden.close(segment_map, f"output.{case}.panoptic_seg")
        rows = torch.tensor([(s.id, s.isthing, s.category) for s in segments], dtype=torch.int64).reshape(-1, 3)
        golden.close(rows, f"output.{case}.segments_info")

    golden.close(postprocess.semantic(class_logits, masks), "output.semantic.sem_seg")

    for case, things in (("instance", None), ("instance_panoptic_on", isthing)):
        found = postprocess.instance(class_logits, masks, top_k, things)
        stored = golden.under(f"output.{case}.")
        actual = by_score(found.scores, found.categories, found.masks.float())
        expected = by_score(stored["scores"], stored["pred_classes"], stored["pred_masks"])
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)

    found = postprocess.referring(golden.tensors["input.SEG_logits"], masks, top_k)
    stored = golden.under("output.SEG.")
    expected = by_score(stored["scores"], stored["pred_masks"])
    torch.testing.assert_close(by_score(found.scores, found.masks.float()), expected, atol=1e-4, rtol=1e-4)

    found = postprocess.region(golden.tensors["input.region_logits"], masks)
    golden.close(found.scores.T, "output.region.scores")
    golden.close(found.masks.float(), "output.region.pred_masks")


def naive_panoptic(class_logits, mask_logits, object_threshold, overlap_threshold):
    """Pixel by pixel: which queries compete, who wins, who keeps enough."""
    queries = []
    for logits, mask in zip(class_logits, mask_logits, strict=True):
        total = sum(math.exp(v) for v in logits.tolist())
        score, label = max((math.exp(v) / total, c) for c, v in enumerate(logits.tolist()))
        if label < len(ISTHING) and score > object_threshold:
            queries.append((score, label, [[1 / (1 + math.exp(-v)) for v in row] for row in mask.tolist()]))
    height, width = mask_logits.shape[1:]
    winner = {
        (r, c): max(range(len(queries)), key=lambda k: queries[k][0] * queries[k][2][r][c])
        for r in range(height)
        for c in range(width)
        if queries
    }
    result, segments, stuff = torch.zeros(height, width, dtype=torch.int32), [], {}
    for k, (_, label, mask) in enumerate(queries):
        own = {(r, c) for r in range(height) for c in range(width) if mask[r][c] >= 0.5}
        won = {place for place, winning in winner.items() if winning == k}
        if not own & won or len(won) / len(own) < overlap_threshold:
            continue
        segment = stuff.get(label)
        if segment is None:
            segments.append((segment := len(segments) + 1, ISTHING[label], label))
            if not ISTHING[label]:
                stuff[label] = segment
        for r, c in own & won:
            result[r, c] = segment
    return result, segments


def test_panoptic_merge_equals_a_loop_over_pixels():
    generator = torch.Generator().manual_seed(0)
    dropped = merged = 0
    for _ in range(30):
        class_logits = 3 * torch.randn(8, 5, generator=generator)
        mask_logits = F.interpolate(4 * torch.randn(1, 8, 3, 3, generator=generator), size=(9, 11), mode="bilinear")[0]
        segment_map, segments = postprocess.panoptic(class_logits, mask_logits, ISTHING, 0.5, 0.4)
        expected_map, expected = naive_panoptic(class_logits, mask_logits, 0.5, 0.4)
        assert segment_map.dtype == torch.int32
        assert torch.equal(segment_map, expected_map)
        assert [(s.id, s.isthing, s.category) for s in segments] == expected
        assert set(segment_map.unique().tolist()) - {0} == {s.id for s in segments}
        scores, labels = class_logits.softmax(-1).max(-1)
        kept = labels[(labels < 4) & (scores > 0.5)].tolist()
        dropped += len(kept) > len(segments)
        merged += any(kept.count(s.category) > 1 for s in segments if not s.isthing)
    assert dropped > 5
    assert merged > 5


def test_merged_stuff_has_the_highest_score():
    class_logits = torch.full((2, 5), -9.0)
    class_logits[:, 2] = torch.tensor([4.0, 6.0])
    class_logits[:, 0] = 1.0
    mask_logits = torch.full((2, 2, 4), -5.0)
    mask_logits[0, :, :2] = mask_logits[1, :, 2:] = 5.0
    segment_map, (segment,) = postprocess.panoptic(class_logits, mask_logits, ISTHING)
    assert (segment_map == 1).all()
    assert segment.score == pytest.approx(class_logits.softmax(-1)[1, 2].item())


def test_resize_keeps_a_mask_in_its_place():
    """A mask on the left half of the valid part ends on the left half of the original, whatever the padding."""
    mask_logits = torch.full((1, 16, 16), -8.0)
    mask_logits[:, :, :6] = 8.0  # valid part: rows 0-7, columns 0-11 of 16
    resized = postprocess.resize_masks(mask_logits, (32, 48), (64, 64), (80, 120))
    assert resized.shape == (1, 80, 120)
    inside = resized[0] > 0
    assert inside[:, :59].all()
    assert not inside[:, 61:].any()


def test_resize_refuses_a_valid_part_beyond_the_padding():
    with pytest.raises(ValueError, match=r"image_size \(70, 48\) must lie within padded_size \(64, 64\)"):
        postprocess.resize_masks(torch.zeros(1, 4, 4), (70, 48), (64, 64), (80, 120))


def test_top_k_is_cut_to_what_there_is():
    mask_logits = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert len(postprocess.instance(torch.zeros(3, 5), mask_logits, top_k=100).scores) == 12
    assert len(postprocess.referring(torch.zeros(3, 1), mask_logits).scores) == 3
    assert len(postprocess.referring(torch.zeros(3, 1), mask_logits, top_k=2).scores) == 2


def test_empty_mask_scores_zero():
    mask_logits = torch.full((2, 4, 4), -1.0)
    mask_logits[1, 0, 0] = 2.0
    scores = postprocess.region(torch.zeros(1, 2), mask_logits).scores[0]
    assert scores[0] == 0
    assert scores[1].item() == pytest.approx(0.5 * torch.tensor(2.0).sigmoid().item(), rel=1e-4)


def queries(*rows):
    """Mask logits [Q, 2, 2] of queries that are sure of their pixels."""
    return torch.tensor([[[9.0 if pixel == "x" else -9.0 for pixel in row[i : i + 2]] for i in (0, 2)] for row in rows])


def grid(mask):
    return "".join("x" if pixel else "." for pixel in mask.flatten().tolist())


def test_semantic_labels_are_the_highest_of_the_scores():
    generator = torch.Generator().manual_seed(0)
    class_logits, mask_logits = torch.randn(5, 4, generator=generator), torch.randn(5, 3, 2, generator=generator)
    labels = postprocess.semantic_labels(class_logits, mask_logits)
    for row in range(3):
        for column in range(2):
            scores = [0.0] * 3  # without background
            for query in range(5):
                total = sum(math.exp(v) for v in class_logits[query].tolist())
                inside = 1 / (1 + math.exp(-mask_logits[query, row, column].item()))
                for label in range(3):
                    scores[label] += math.exp(class_logits[query, label].item()) / total * inside
            assert labels[row, column] == max(range(3), key=lambda label: scores[label])


def test_best_mask_is_sure_of_itself_too():
    mask_logits = queries("x...", "xx..", "...x")
    assert grid(postprocess.best_mask(torch.tensor([[0.0], [2.0], [1.0]]), mask_logits)) == "xx.."
    mask_logits[1] /= 20  # 0.88 * 0.61 is less than 0.73 * 1.00
    assert grid(postprocess.best_mask(torch.tensor([[0.0], [2.0], [1.0]]), mask_logits)) == "...x"


@pytest.mark.parametrize(
    ("probabilities", "threshold", "expected"),
    [
        ((0.7, 0.5, 0.9), 0.6, "x..x"),
        ((0.7, 0.5, 0.9), 0.4, "xx.x"),
        ((0.59, 0.1, 0.5), 0.6, "...."),
    ],
)
def test_generalised_mask_is_all_that_are_sure_or_nothing(probabilities, threshold, expected):
    logits = torch.tensor(probabilities)[:, None].logit()
    mask = postprocess.generalised_mask(logits, queries("x...", ".x..", "...x"), threshold)
    assert mask.dtype == torch.bool
    assert grid(mask) == expected


def test_generalised_mask_uses_psalm_s_threshold():
    mask_logits = queries("x...", "...x")
    assert grid(postprocess.generalised_mask(torch.tensor([[0.61], [0.59]]).logit(), mask_logits)) == "x..."


def test_each_region_is_answered_by_its_best_query():
    logits = torch.tensor([[0.1, 0.8, 0.2], [0.3, 0.1, 0.2], [0.1, 0.9, 0.2]]).logit()
    mask_logits = queries("x...", ".x..", "...x")
    threshold = postprocess.ABSENT_THRESHOLD
    assert [*map(grid, postprocess.region_masks(logits, mask_logits))] == [".x..", "x...", ".x.."]
    assert [*map(grid, postprocess.region_masks(logits, mask_logits, threshold))] == [".x..", "....", ".x.."]
    assert postprocess.region_masks(logits[:0], mask_logits, threshold).shape == (0, 2, 2)
    mask_logits[1] /= 20  # 0.8 * 0.61 is more than 0.2, and 0.55 * 0.61 is less than 0.4
    logits = torch.tensor([[0.1, 0.8, 0.2], [0.4, 0.55, 0.2]]).logit()
    assert [*map(grid, postprocess.region_masks(logits, mask_logits))] == [".x..", "x..."]
