"""Surfaces for the built-in pictures: patterns of things, and grounds.

Letters: H W height and width of the image.
"""

from collections.abc import Callable

import numpy as np

Paint = Callable[[np.random.Generator, int, int], np.ndarray]

DARK = 0.28
"""Brightness of a pattern's second colour relative to its first."""


def surface(pattern: str, base: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Paints a thing: float64 [n, 3] from its base colour [3] and the n pixels' coordinates u, v [n] on the thing."""
    dark = PATTERNS[pattern](u, v)
    return np.where(dark[..., None], DARK * base, base)


def _plain(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.zeros(u.shape, dtype=bool)


def _striped(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.mod(v, 7.0) < 3.5


def _dotted(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(np.mod(u, 7.5) - 3.75, np.mod(v, 7.5) - 3.75) < 2.2


def _checkered(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.floor(u / 6.0) + np.floor(v / 6.0)) % 2 == 0


PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": _plain,
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
}


def ground(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    """A whole picture of one ground (a key of ``GROUNDS``); float64 [H, W, 3]."""
    return GROUNDS[name](rng, height, width)


def _grass(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    blades = _smooth(rng.normal(size=(height, width)), 5, 1)
    patches = _smooth(_smooth(rng.normal(size=(height, width)), 9, 9), 9, 9)
    shade = 1.0 + 0.38 * blades + 0.9 * patches
    return shade[..., None] * np.array([76.0, 138.0, 52.0])


def _water(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    phase = rng.uniform(0, 2 * np.pi, size=3)
    wobble = 1.5 * np.sin(x / 9.0 + phase[0]) + 1.0 * np.sin(x / 4.7 + phase[1])
    crest = np.sin((y + wobble) / 1.6 + phase[2])
    return np.array([70.0, 140.0, 172.0]) + crest[..., None] * np.array([20.0, 24.0, 22.0])


def _sand(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    grain = rng.normal(size=(height, width))
    dunes = _smooth(_smooth(rng.normal(size=(height, width)), 1, 11), 5, 11)
    shade = 1.0 + 0.075 * grain + 0.35 * dunes
    return shade[..., None] * np.array([206.0, 182.0, 134.0])


def _brick(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    long, tall = 14, 7
    top, left = rng.integers(0, tall), rng.integers(0, long)
    y, x = np.mgrid[:height, :width] + np.array([top, left])[:, None, None]
    row = y // tall
    shifted = x + (row % 2) * (long // 2)
    tint = rng.uniform(0.82, 1.12, size=(row.max() + 1, shifted.max() // long + 1))
    stone = tint[row, shifted // long][..., None] * np.array([150.0, 84.0, 66.0])
    mortar = (y % tall == 0) | (shifted % long == 0)
    return np.where(mortar[..., None], np.array([196.0, 186.0, 174.0]), stone)


GROUNDS: dict[str, Paint] = {"grass": _grass, "water": _water, "sand": _sand, "brick": _brick}


def _smooth(field: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Box-filters a field [H, W] by odd window sizes, edges repeated."""
    for axis, size in enumerate((rows, columns)):
        padding = [(size // 2 + 1, size // 2) if a == axis else (0, 0) for a in range(2)]
        total = np.cumsum(np.pad(field, padding, mode="edge"), axis=axis)
        length = field.shape[axis]
        field = (total.take(range(size, size + length), axis) - total.take(range(length), axis)) / size
    return field
