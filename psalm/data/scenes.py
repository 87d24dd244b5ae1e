"""Small pictures with exact ground truth: things on textured ground, drawn from a seed.

Classes differ in more than their outline: circles by their surface (striped, dotted), squares too (plain, checkered),
triangles by colour (red, blue); the four stuff classes by texture and colour. Every object keeps its attributes
(shape, pattern, colour, place), so that expressions, prompts and pairs can be made from a scene.

Letters: H W height and width of the image.
"""

from dataclasses import dataclass

import numpy as np

from psalm.data.textures import GROUNDS, ground, surface


@dataclass(frozen=True)
class ThingClass:
    """A kind of object: what is fixed about it; the rest is drawn."""

    name: str
    shape: str
    pattern: str
    colours: tuple[str, ...]


COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 48, 44),
    "blue": (44, 82, 200),
    "yellow": (240, 200, 40),
    "purple": (140, 62, 170),
    "orange": (240, 130, 30),
    "white": (240, 238, 232),
}

THING_CLASSES = (
    ThingClass("striped circle", "circle", "striped", ("red", "yellow", "purple", "white")),
    ThingClass("dotted circle", "circle", "dotted", ("red", "yellow", "purple", "white")),
    ThingClass("plain square", "square", "plain", ("yellow", "purple", "orange", "white")),
    ThingClass("checkered square", "square", "checkered", ("yellow", "purple", "orange", "white")),
    ThingClass("red triangle", "triangle", "plain", ("red",)),
    ThingClass("blue triangle", "triangle", "plain", ("blue",)),
)
STUFF_CLASSES = tuple(GROUNDS)

SIZES = ((96, 128), (128, 128), (128, 96))
"""(height, width) of the images, in pixels."""
RADIUS = (13.0, 21.0)
"""Half of an object's extent, in pixels."""
VISIBLE_SHARE = 0.65
"""No object is covered by more than the rest of this share."""
MIN_GROUND_SHARE = 0.12
"""A stuff class that covers less of the picture is not drawn."""
MAX_TRIES = 120


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene; later ones lie on top of earlier ones."""

    class_index: int
    """Index into ``THING_CLASSES``."""
    shape: str
    pattern: str
    colour: str
    centre: tuple[float, float]
    """(x, y) in pixels."""
    radius: float
    angle: float
    """Rotation in radians."""


@dataclass(frozen=True)
class Scene:
    """A picture with its ground truth."""

    image: np.ndarray
    """uint8 [H, W, 3], RGB."""
    objects: tuple[SceneObject, ...]
    object_map: np.ndarray
    """int32 [H, W]: index into ``objects`` of the object seen at a pixel, -1 where ground is seen."""
    stuff_map: np.ndarray
    """int32 [H, W]: index into ``STUFF_CLASSES`` of the ground, also below objects."""


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draws one scene: one to three grounds and three to six objects that overlap moderately."""
    height, width = SIZES[rng.integers(len(SIZES))]
    stuff_map = _lay_ground(rng, height, width)
    objects, distances = _place_objects(rng, height, width)
    object_map = np.full((height, width), -1, dtype=np.int32)
    canvas = _paint_ground(rng, stuff_map)
    for index, (thing, distance) in enumerate(zip(objects, distances, strict=True)):
        object_map[distance < 0] = index
        _paint_object(rng, canvas, thing, distance)
    canvas += rng.normal(0.0, 3.0, canvas.shape)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Scene(image, objects, object_map, stuff_map)


def _lay_ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Splits the picture by wavy lines and gives each part a stuff class of its own; int32 [H, W]."""
    kinds = rng.permutation(len(STUFF_CLASSES))[: rng.choice([1, 2, 3], p=[0.15, 0.55, 0.3])]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    stuff_map = np.full((height, width), kinds[0], dtype=np.int32)
    for kind in kinds[1:]:
        angle = rng.uniform(0, 2 * np.pi)
        along = -np.sin(angle) * (x - width / 2) + np.cos(angle) * (y - height / 2)
        across = np.cos(angle) * (x - width / 2) + np.sin(angle) * (y - height / 2)
        wave = rng.uniform(2, 5) * np.sin(along / rng.uniform(8, 16) + rng.uniform(0, 2 * np.pi))
        part = across + wave > rng.uniform(-0.05, 0.2) * min(height, width)
        candidate = np.where(part, kind, stuff_map).astype(np.int32)
        shares = np.bincount(candidate.ravel(), minlength=len(STUFF_CLASSES)) / candidate.size
        if all(share == 0 or share >= MIN_GROUND_SHARE for share in shares):
            stuff_map = candidate
    return stuff_map


def _place_objects(
    rng: np.random.Generator, height: int, width: int
) -> tuple[tuple[SceneObject, ...], list[np.ndarray]]:
    """Objects and their signed distances float64 [H, W] (negative inside), each with enough of it left to see."""
    wanted = int(rng.integers(3, 7))
    objects: list[SceneObject] = []
    distances: list[np.ndarray] = []
    for _ in range(MAX_TRIES):
        if len(objects) == wanted:
            break
        thing = _draw_object(rng, height, width)
        distance = signed_distance(thing, height, width)
        if _all_visible([*distances, distance]):
            objects.append(thing)
            distances.append(distance)
    return tuple(objects), distances


def _draw_object(rng: np.random.Generator, height: int, width: int) -> SceneObject:
    class_index = int(rng.integers(len(THING_CLASSES)))
    kind = THING_CLASSES[class_index]
    radius = float(rng.uniform(*RADIUS))
    margin = 0.8 * radius
    return SceneObject(
        class_index=class_index,
        shape=kind.shape,
        pattern=kind.pattern,
        colour=kind.colours[rng.integers(len(kind.colours))],
        centre=(float(rng.uniform(margin, width - margin)), float(rng.uniform(margin, height - margin))),
        radius=radius,
        angle=float(rng.uniform(-0.4, 0.4)),
    )


def _all_visible(distances: list[np.ndarray]) -> bool:
    """Whether every object keeps ``VISIBLE_SHARE`` of its pixels when later ones are laid on top."""
    covered = np.zeros(distances[0].shape, dtype=bool)
    for distance in reversed(distances):
        inside = distance < 0
        if (inside & ~covered).sum() < VISIBLE_SHARE * inside.sum():
            return False
        covered |= inside
    return True


def signed_distance(thing: SceneObject, height: int, width: int) -> np.ndarray:
    """Distance in pixels of every pixel centre to the object's outline, negative inside; float64 [H, W]."""
    u, v = _own_frame(thing, height, width)
    if thing.shape == "circle":
        return np.hypot(u, v) - thing.radius
    if thing.shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.86 * thing.radius
    if thing.shape == "triangle":  # apex up, centre of mass in the origin
        slope = np.sqrt(3) / 2
        return np.maximum(slope * np.abs(u) - v / 2, v) - 0.62 * thing.radius
    raise ValueError(f"unknown shape {thing.shape!r}")


def _own_frame(thing: SceneObject, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in the object's own, rotated coordinates, in pixels from its centre."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    x, y = x - thing.centre[0], y - thing.centre[1]
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    return cos * x + sin * y, cos * y - sin * x


def _paint_ground(rng: np.random.Generator, stuff_map: np.ndarray) -> np.ndarray:
    """The textured ground; float64 [H, W, 3]."""
    canvas = np.zeros((*stuff_map.shape, 3))
    for index in np.unique(stuff_map):
        texture = ground(rng, STUFF_CLASSES[index], *stuff_map.shape)
        canvas = np.where((stuff_map == index)[..., None], texture, canvas)
    return canvas


def _paint_object(rng: np.random.Generator, canvas: np.ndarray, thing: SceneObject, distance: np.ndarray) -> None:
    """Lays the object's surface on the canvas, with a soft dark outline and light from above left."""
    near = distance < 0.5
    u, v = (axis[near] for axis in _own_frame(thing, *distance.shape))
    base = np.array(COLOURS[thing.colour], dtype=np.float64) * rng.uniform(0.9, 1.05)
    light = 1.0 - 0.1 * (u + v) / thing.radius
    outline = np.where(distance[near] > -1.3, 0.45, 1.0)
    alpha = np.clip(0.5 - distance[near], 0.0, 1.0)[:, None]
    canvas[near] = alpha * surface(thing.pattern, base, u, v) * (light * outline)[:, None] + (1 - alpha) * canvas[near]
