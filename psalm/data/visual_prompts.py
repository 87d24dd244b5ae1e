"""Visual prompts: points, boxes, scribbles and masks that point at an object, read from files or simulated.

Letters: H W height and width of the image, h w of a window around the object.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt

from psalm.data.errors import DataError
from psalm.data.masks import segmentation_to_mask

PROMPT_TYPES = ("point", "box", "scribble", "mask")
KEY_SUFFIX = "_visual_prompt_mask"
WIDENING = {"point": 10, "scribble": 5}
"""Radius, in pixels of the image as read from disk, of the disc that each pixel of a prompt becomes, as in PSALM."""

DEEPEST_SHARE = 0.1
"""A simulated point is one of this share of the object's pixels, those that are farthest from its outline."""
INNER_SHARE = 0.5
"""The same for the points that a simulated scribble passes through."""
BOX_SHIFT = 0.1
"""Each side of a simulated box is moved by at most this share of the box's extent."""
MASK_SHIFT = 2
"""Pixels by which a simulated mask is grown or shrunk at most."""
BROAD_AREA = 900
"""Pixels of an object above which its scribble is 3 pixels wide instead of one."""
SCRIBBLE_DRAWS = 10
"""Scribbles drawn before one that leaves the object is cut where it does."""


def prompt_key(kind: str) -> str:
    """The key of a type's RLE in annotation files, e.g. ``box_visual_prompt_mask``.

    Raises:
        ValueError: no such type.
    """
    if kind not in PROMPT_TYPES:
        raise ValueError(f"a visual prompt must be one of {', '.join(PROMPT_TYPES)}, but got {kind!r}")
    return kind + KEY_SUFFIX


def parse_prompt_types(text: str) -> tuple[str, ...]:
    """The types that a user names, each once and in the given order, e.g. ``box_visual_prompt_mask||point``.

    Args:
        text: names with or without ``_visual_prompt_mask``, separated by ``||`` or a comma.

    Raises:
        ValueError: an unknown name, or none at all.
    """
    names = [name.strip() for name in text.replace("||", ",").split(",")]
    kinds = tuple(dict.fromkeys(name.removesuffix(KEY_SUFFIX) for name in names if name))
    unknown = [kind for kind in kinds if kind not in PROMPT_TYPES]
    if unknown or not kinds:
        allowed = "||".join(map(prompt_key, PROMPT_TYPES))
        raise ValueError(f"visual prompts must be some of {allowed}, but got {(unknown or [text])[0]!r}")
    return kinds


def prompt_mask(kind: str, rle: dict[str, Any], height: int, width: int) -> np.ndarray:
    """A prompt as the model is to see it: bool [H, W], points and scribbles widened to discs.

    Args:
        kind: one of ``PROMPT_TYPES``.
        rle: what the file has for it, compressed or not.
        height: H of the image.
        width: W of the image.

    Raises:
        ValueError: no such type.
        DataError: no RLE, a broken one, or one of another size than the image.
    """
    key = prompt_key(kind)
    if not isinstance(rle, dict):
        raise DataError(f"{key} must be an RLE (object), but got {rle!r:.60}")
    mask = segmentation_to_mask(rle, height, width)
    return _widen(mask, WIDENING[kind]) if kind in WIDENING else mask


def simulate_prompts(mask: np.ndarray, annotation_id: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What a user might draw to point at an object, the same for the same (seed, annotation_id).

    - point: one pixel well inside;
    - box: the tight box with each side moved by up to a tenth of its extent, clipped to the image;
    - scribble: a smooth curve through three inner points that stays inside, 1 pixel wide, 3 on large objects;
    - mask: the object grown or shrunk by up to 2 pixels.

    Args:
        mask: bool [H, W], the object.
        annotation_id: its id, not negative.
        seed: another seed draws other prompts; not negative.

    Returns:
        Type -> bool [H, W], each with at least one pixel. Points and scribbles are not widened.

    Raises:
        ValueError: the mask is empty, or a number is negative.
    """
    if annotation_id < 0 or seed < 0:
        raise ValueError(f"annotation id and seed must be at least 0, but got {annotation_id} and {seed}")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError(f"prompts need an object, but the mask of annotation {annotation_id} is empty")
    rng = np.random.default_rng([seed, annotation_id])
    box = (int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
    window = _window(box, MASK_SHIFT, mask.shape)
    inside = mask[window]
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    drawn = {
        "point": _point(rng, inside, depth),
        "scribble": _scribble(rng, inside, depth),
        "mask": _shifted(rng, inside, depth),
    }
    prompts = {"box": _shaken_box(rng, box, mask.shape)}
    for kind, pixels in drawn.items():
        prompts[kind] = np.zeros(mask.shape, dtype=bool)
        prompts[kind][window] = pixels
    return {kind: prompts[kind] for kind in PROMPT_TYPES}


def _widen(mask: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel within ``radius`` (Euclidean, inclusive) of a pixel of the mask bool [H, W]."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return mask
    # Distances are needed in a small window only; over the whole image they would take a hundred times as long.
    window = _window((rows[0], rows[-1] + 1, columns[0], columns[-1] + 1), radius, mask.shape)
    widened = np.zeros_like(mask)
    widened[window] = distance_transform_edt(~mask[window]) <= radius
    return widened


def _window(box: Sequence[int], margin: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """A box (top, bottom, left, right; ends excluded) and a margin around it, as far as the image [H, W] reaches."""
    top, bottom, left, right = box
    return (
        slice(max(top - margin, 0), min(bottom + margin, shape[0])),
        slice(max(left - margin, 0), min(right + margin, shape[1])),
    )


def _deepest(inside: np.ndarray, depth: np.ndarray, share: float) -> np.ndarray:
    """int [n, 2], (row, column): this share of the object's pixels, at least one, and all that are just as deep."""
    depths = np.sort(depth[inside])
    return np.argwhere(inside & (depth >= depths[-max(int(share * len(depths)), 1)]))


def _point(rng: np.random.Generator, inside: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """One of the deepest pixels; bool [h, w]."""
    candidates = _deepest(inside, depth, DEEPEST_SHARE)
    drawn = np.zeros_like(inside)
    drawn[tuple(candidates[rng.integers(len(candidates))])] = True
    return drawn


def _shaken_box(rng: np.random.Generator, box: tuple[int, int, int, int], shape: tuple[int, ...]) -> np.ndarray:
    """The box with its sides moved, bool [H, W].

    Opposite sides approach each other by at most a fifth of their distance, so that pixels are always left.
    """
    top, bottom, left, right = box
    extent = np.array([bottom - top, bottom - top, right - left, right - left])
    moved = np.array(box) + np.rint(rng.uniform(-BOX_SHIFT, BOX_SHIFT, size=4) * extent).astype(int)
    drawn = np.zeros(shape, dtype=bool)
    drawn[_window(moved.tolist(), 0, shape)] = True
    return drawn


def _scribble(rng: np.random.Generator, inside: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """A curve inside the object, bool [h, w].

    Its three points are drawn one from each third of the inner pixels along the object's longer side, which keeps the
    curve long and without sharp turns. Of the curves drawn, the first that stays inside is taken, else the longest
    piece that does: in a ring, say, or in an object of several parts.
    """
    inner = _deepest(inside, depth, INNER_SHARE)
    inner = inner[np.argsort(inner[:, int(np.argmax(np.ptp(inner, axis=0)))], kind="stable")]
    longest = inner[:0]
    for _ in range(SCRIBBLE_DRAWS):
        thirds = ((np.arange(3) + rng.random(3)) / 3 * len(inner)).astype(int)
        curve = _curve(inner[thirds])
        piece = _longest_inside(curve, inside)
        if len(piece) == len(curve):
            longest = curve
            break
        longest = max(longest, piece, key=len)
    drawn = np.zeros_like(inside)
    drawn[tuple(longest.T)] = True
    if np.count_nonzero(inside) > BROAD_AREA:
        drawn = binary_dilation(drawn, np.ones((3, 3), dtype=bool)) & inside
    return drawn


def _curve(points: np.ndarray) -> np.ndarray:
    """The parabola through three points int [3, 2], at even steps of its parameter, as pixels int [n, 2].

    Along neither axis is it faster than 4 extents of the points, so that a step is at most half a pixel.
    """
    steps = 8 * int(np.ptp(points, axis=0).max())
    t = np.linspace(0.0, 1.0, steps + 1)[:, None]
    start, middle, end = points
    curve = start * (2 * t - 1) * (t - 1) + middle * 4 * t * (1 - t) + end * t * (2 * t - 1)
    return np.rint(curve).astype(int)


def _longest_inside(curve: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The longest run of the pixels int [n, 2] that lies in the object bool [h, w], perhaps all of them."""
    in_window = ((curve >= 0) & (curve < inside.shape)).all(axis=1)
    kept = in_window & inside[tuple(curve.clip(0, np.array(inside.shape) - 1).T)]
    edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - starts))
    return curve[starts[longest] : ends[longest]]


def _shifted(rng: np.random.Generator, inside: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The object grown or shrunk, bool [h, w]; as it is where shrinking would leave nothing."""
    shift = rng.integers(1, MASK_SHIFT, endpoint=True)
    shifted = distance_transform_edt(~inside) <= shift if rng.random() < 0.5 else depth > shift
    return shifted if shifted.any() else inside
