"""Visual prompts from files and simulated ones, against plain loops."""

import numpy as np
import pytest

from psalm.data.errors import DataError
from psalm.data.masks import encode_mask
from psalm.data.visual_prompts import PROMPT_TYPES, parse_prompt_types, prompt_key, prompt_mask, simulate_prompts


def blob(seed: int, height: int, width: int) -> np.ndarray:
    """Some overlapping rectangles: concave, often in several parts, often at the border."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(rng.integers(1, 5)):
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, height // 2), x : x + rng.integers(1, width // 2)] = True
    return mask


def ring() -> np.ndarray:
    y, x = np.mgrid[:60, :70]
    distance = np.hypot(y - 30, x - 33)
    return (distance < 25) & (distance > 21)


def single_pixel() -> np.ndarray:
    mask = np.zeros((9, 7), dtype=bool)
    mask[8, 0] = True
    return mask


OBJECTS = [
    *(blob(seed, 40 + seed, 55 - seed) for seed in range(12)),
    ring(),
    single_pixel(),
    np.ones((5, 4), dtype=bool),
    np.ones((1, 30), dtype=bool),
]


def pixels(mask: np.ndarray) -> list[tuple[int, int]]:
    return [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]


def within(mask: np.ndarray, radius: float) -> np.ndarray:
    """Every pixel that has one of the mask's at most ``radius`` away."""
    near = np.zeros_like(mask)
    members = pixels(mask)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            near[y, x] = any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in members)
    return near


def depths(mask: np.ndarray) -> np.ndarray:
    """Distance of every pixel of the mask to the nearest one outside; beyond the image is outside."""
    outside = np.argwhere(~np.pad(mask, 1))
    found = np.zeros(mask.shape)
    for y, x in pixels(mask):
        found[y, x] = np.sqrt(((outside - (y + 1, x + 1)) ** 2).sum(axis=1).min())
    return found


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("box_visual_prompt_mask||point_visual_prompt_mask", ("box", "point")),
        ("scribble, mask", ("scribble", "mask")),
        ("point_visual_prompt_mask||box||point||", ("point", "box")),
    ],
)
def test_types_as_a_user_names_them(text, kinds):
    assert parse_prompt_types(text) == kinds


@pytest.mark.parametrize(("text", "named"), [("box||circle", "'circle'"), ("", "''"), ("||", r"'\|\|'")])
def test_unknown_types_are_refused(text, named):
    allowed = r"point_visual_prompt_mask\|\|box_.*\|\|scribble_.*\|\|mask_visual_prompt_mask"
    with pytest.raises(ValueError, match=f"visual prompts must be some of {allowed}, but got {named}"):
        parse_prompt_types(text)


def test_keys_are_those_of_the_files():
    assert prompt_key("scribble") == "scribble_visual_prompt_mask"
    with pytest.raises(ValueError, match="must be one of point, box, scribble, mask, but got 'boxes'"):
        prompt_key("boxes")


@pytest.mark.parametrize(("kind", "radius"), [("point", 10), ("scribble", 5)])
@pytest.mark.parametrize("corner", [False, True])
def test_points_and_scribbles_become_discs(kind, radius, corner):
    mask = np.zeros((45, 37), dtype=bool)
    mask[(0, 44) if corner else (17, 30), (36, 0) if corner else (9, 20)] = True
    assert np.array_equal(prompt_mask(kind, encode_mask(mask), 45, 37), within(mask, radius))


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_boxes_and_masks_stay_as_they_are(kind):
    mask = blob(3, 20, 30)
    assert np.array_equal(prompt_mask(kind, encode_mask(mask), 20, 30), mask)


@pytest.mark.parametrize("kind", PROMPT_TYPES)
def test_an_empty_prompt_stays_empty(kind):
    assert not prompt_mask(kind, encode_mask(np.zeros((20, 30), dtype=bool)), 20, 30).any()


def test_uncompressed_prompts():
    expected = np.zeros((3, 2), dtype=bool)
    expected[1:, 0] = True
    assert np.array_equal(prompt_mask("box", {"size": [3, 2], "counts": [1, 2, 3]}, 3, 2), expected)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ([[0, 0, 3, 0, 3, 3]], r"point_visual_prompt_mask must be an RLE \(object\), but got \[\["),
        ({"size": [4, 3], "counts": [12]}, r"size \[4, 3\] does not fit .* \[3, 4\]"),
        ({"size": [3, 4], "counts": "9zz"}, "the counts of an RLE must be compressed run lengths, but got '9zz'"),
        ({"size": [3, 4], "counts": "999"}, "the runs of an RLE cover 27 pixels, but its image has 12"),
    ],
)
def test_broken_prompts_are_refused(rle, message):
    with pytest.raises(DataError, match=message):
        prompt_mask("point", rle, 3, 4)


@pytest.mark.parametrize("mask", OBJECTS)
def test_every_simulated_prompt_has_a_pixel(mask):
    for annotation_id in range(20):
        prompts = simulate_prompts(mask, annotation_id)
        assert tuple(prompts) == PROMPT_TYPES
        for prompt in prompts.values():
            assert prompt.dtype == bool
            assert prompt.shape == mask.shape
            assert prompt.any()


@pytest.mark.parametrize("mask", OBJECTS)
def test_points_lie_deep_inside(mask):
    depth = depths(mask)
    deeper_share = [(depth > depth[simulate_prompts(mask, i)["point"]]).sum() / mask.sum() for i in range(10)]
    assert all(simulate_prompts(mask, i)["point"].sum() == 1 for i in range(10))
    assert all(depth[simulate_prompts(mask, i)["point"]] > 0 for i in range(10))
    assert max(deeper_share) <= 0.1


@pytest.mark.parametrize("mask", OBJECTS)
def test_boxes_are_tight_up_to_a_tenth(mask):
    def sides(box: np.ndarray) -> np.ndarray:
        rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
        assert box.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        return np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1])

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    tight = np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1])
    height, width = tight[1] - tight[0], tight[3] - tight[2]
    for annotation_id in range(20):
        shift = sides(simulate_prompts(mask, annotation_id)["box"]) - tight
        assert (np.abs(shift) <= np.rint(0.1 * np.array([height, height, width, width]))).all()


def test_boxes_vary_on_every_side():
    mask = np.zeros((100, 120), dtype=bool)
    mask[20:80, 30:90] = True
    boxes = [np.argwhere(simulate_prompts(mask, i)["box"]) for i in range(30)]
    corners = np.array([[*box.min(axis=0), *box.max(axis=0)] for box in boxes])
    assert (corners.min(axis=0) < [20, 30, 79, 89]).all()
    assert (corners.max(axis=0) > [20, 30, 79, 89]).all()


def touching(mask: np.ndarray) -> int:
    """How many parts a mask has, neighbours across corners belonging together."""
    left, parts = set(pixels(mask)), 0
    while left:
        parts += 1
        edge = [left.pop()]
        while edge:
            y, x = edge.pop()
            near = {(y + v, x + u) for v in (-1, 0, 1) for u in (-1, 0, 1)} & left
            left -= near
            edge += near
    return parts


@pytest.mark.parametrize("mask", OBJECTS)
def test_scribbles_are_one_curve_inside(mask):
    for annotation_id in range(10):
        scribble = simulate_prompts(mask, annotation_id)["scribble"]
        assert not (scribble & ~mask).any()
        assert touching(scribble) == 1


def test_scribbles_are_long_and_broader_on_large_objects():
    small, large = np.zeros((200, 200), dtype=bool), np.zeros((200, 200), dtype=bool)
    small[50:60, 50:140] = True
    large[50:61, 50:140] = True
    for annotation_id in range(10):
        thin, broad = (simulate_prompts(mask, annotation_id)["scribble"] for mask in (small, large))
        assert np.ptp(np.flatnonzero(thin.any(axis=0))) >= 25
        assert thin.sum(axis=0).max() <= 4
        assert (broad[:, 60:130].sum(axis=0)[broad[:, 60:130].any(axis=0)] >= 3).all()


@pytest.mark.parametrize("mask", OBJECTS)
def test_masks_are_grown_or_shrunk_by_up_to_two_pixels(mask):
    grown, kept = within(mask, 2), depths(mask) > 2
    for annotation_id in range(10):
        prompt = simulate_prompts(mask, annotation_id)["mask"]
        assert not (prompt & ~grown).any()
        assert not (kept & ~prompt).any()


def test_masks_grow_and_shrink():
    mask = blob(4, 60, 60)
    sizes = [int(simulate_prompts(mask, i)["mask"].sum()) - int(mask.sum()) for i in range(20)]
    assert len(set(sizes)) == 4
    assert min(sizes) < 0 < max(sizes)


def test_prompts_depend_on_id_and_seed_only():
    mask = blob(5, 80, 90)
    first, again = simulate_prompts(mask, 800014223800, seed=2), simulate_prompts(mask, 800014223800, seed=2)
    other_id, other_seed = simulate_prompts(mask, 800014223801, seed=2), simulate_prompts(mask, 800014223800, seed=3)
    assert all(np.array_equal(first[kind], again[kind]) for kind in PROMPT_TYPES)
    for other in (other_id, other_seed):
        assert any(not np.array_equal(first[kind], other[kind]) for kind in PROMPT_TYPES)


def test_no_object_no_prompts():
    with pytest.raises(ValueError, match="the mask of annotation 7 is empty"):
        simulate_prompts(np.zeros((4, 4), dtype=bool), 7)


@pytest.mark.parametrize(("annotation_id", "seed"), [(-1, 0), (1, -2)])
def test_negative_numbers_are_refused(annotation_id, seed):
    with pytest.raises(ValueError, match=f"must be at least 0, but got {annotation_id} and {seed}"):
        simulate_prompts(np.ones((2, 2), dtype=bool), annotation_id, seed)
