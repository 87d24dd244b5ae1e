"""The built-in data set: written by the package itself, in official COCO panoptic layout, the same bytes per seed.

Layout below the returned root: ``annotations/panoptic_{split}2017.json`` with its PNGs in a folder of that name,
``annotations/instances_{split}2017.json`` (things only, RLE), ``annotations/attributes_{split}2017.json`` (what each
object looks like and where it lies), ``{split}2017/*.jpg``. In the formats that PSALM reads, made from these:
``refer_{split}_psalm.json`` (expressions), ``coco_interactive_{split}_psalm.json`` (visual prompts) and
``coco_cross_{split}.json`` (pairs of images).
"""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from psalm.data.errors import DataError
from psalm.data.expressions import refer_records
from psalm.data.images import write_segment_map
from psalm.data.make_cross_image import cross_image_records
from psalm.data.make_interactive import interactive_records
from psalm.data.masks import encode_mask
from psalm.data.scenes import STUFF_CLASSES, THING_CLASSES, Scene, draw_scene

logger = logging.getLogger(__name__)

BUILTIN = "builtin"
"""The name that stands for this data set where a path is asked for."""
FORMAT = 2
"""Raised whenever the same seed gives other bytes, so that an old cache is not taken for the new data."""
SEED = 0
TRAIN_IMAGES = 256
VAL_IMAGES = 48
CACHE_VARIABLE = "PSALM_CACHE"
"""Environment variable that names the cache folder."""

FIRST_STUFF_ID = 101
"""Category ids have a gap between things and stuff, as COCO's have."""
PAIRS_PER_IMAGE = 1
ABSENT_SHARE = 0.1
"""Of the pairs: a category is asked for that the target image does not have."""
SPLITS = {"train": 1, "val": 2}
"""Each split draws from a stream of its own and numbers its images from its own hundred thousand."""

CATEGORIES: list[dict[str, Any]] = [
    {"id": 1 + i, "isthing": 1, "name": kind.name, "supercategory": kind.shape} for i, kind in enumerate(THING_CLASSES)
] + [
    {"id": FIRST_STUFF_ID + i, "isthing": 0, "name": name, "supercategory": "ground"}
    for i, name in enumerate(STUFF_CLASSES)
]


def default_cache() -> Path:
    """The folder for what the package makes once and keeps: $PSALM_CACHE, or ``~/.cache/psalm-deformable``."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "psalm-deformable")


def resolve_root(root: str | Path) -> Path:
    """A data root as the user wrote it -> a folder: ``builtin`` makes the built-in data set, others are paths."""
    return ensure_builtin() if str(root) == BUILTIN else Path(root).expanduser()


def ensure_builtin(
    cache_dir: Path | None = None, seed: int = SEED, train_images: int = TRAIN_IMAGES, val_images: int = VAL_IMAGES
) -> Path:
    """Writes the built-in data set unless it is there already, and returns its root.

    Image i of a split depends on (seed, split, i) only, so a larger set begins with the smaller one's images. Processes
    may call this at once: each writes into a folder of its own, and the first to rename it wins.

    Raises:
        ValueError: a negative seed or a count below 1.
        DataError: the cache folder cannot be written.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, but got {seed}")
    counts = {"train": train_images, "val": val_images}
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f"{split}_images must be at least 1, but got {count}")
    cache = default_cache() if cache_dir is None else cache_dir
    root = cache / f"builtin-v{FORMAT}-seed{seed}-{train_images}x{val_images}"
    if root.is_dir():
        return root
    try:
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=cache))
    except OSError as error:
        raise DataError(
            f"the cache folder {cache} cannot be written ({error.strerror}): set {CACHE_VARIABLE} to another folder"
        ) from error
    try:
        for split, count in counts.items():
            _write_split(draft, split, count, seed)
        draft.chmod(0o755)
        _publish(draft, root)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def _publish(draft: Path, root: Path) -> None:
    """Renames the finished draft; where another process was faster, its equal copy is kept."""
    try:
        draft.rename(root)
    except OSError:
        if not root.is_dir():
            raise
        logger.debug("%s was written by another process meanwhile", root)


def _write_split(root: Path, split: str, count: int, seed: int) -> None:
    name = f"{split}2017"
    images = root / name
    maps = root / "annotations" / f"panoptic_{name}"
    images.mkdir(parents=True)
    maps.mkdir(parents=True)
    image_records, panoptic, instances, attributes, expressions = [], [], [], [], []
    for index in range(count):
        rng = np.random.default_rng([seed, SPLITS[split], index])
        scene = draw_scene(rng)
        image_id = SPLITS[split] * 100_000 + index
        stem = f"{image_id:012d}"
        segment_map, segments, ids = _segments(rng, scene)
        Image.fromarray(scene.image).save(images / f"{stem}.jpg", quality=95, subsampling=0)
        write_segment_map(maps / f"{stem}.png", segment_map)
        height, width = segment_map.shape
        image_record = {"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width}
        image_records.append(image_record)
        panoptic.append({"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments})
        things = segments[: len(ids)]
        objects = _attributes(scene, ids)
        annotations = [_instance(image_id, number, segment_map, segment) for number, segment in enumerate(things)]
        instances += annotations
        attributes.append({"image_id": image_id, "objects": objects})
        expressions += refer_records(image_record, objects, annotations)
    shared = {"info": {"description": f"built-in data set, format {FORMAT}, seed {seed}"}, "images": image_records}
    folder = root / "annotations"
    _dump(folder / f"panoptic_{name}.json", {**shared, "annotations": panoptic, "categories": CATEGORIES})
    thing_categories = CATEGORIES[: len(THING_CLASSES)]
    coco_instances = {**shared, "annotations": instances, "categories": thing_categories}
    _dump(folder / f"instances_{name}.json", coco_instances)
    _dump(folder / f"attributes_{name}.json", {**shared, "scenes": attributes})
    _dump(root / f"refer_{split}_psalm.json", expressions)
    _dump(root / f"coco_interactive_{split}_psalm.json", [*interactive_records(coco_instances, seed)])
    pairs = cross_image_records(coco_instances, PAIRS_PER_IMAGE, absent_share=ABSENT_SHARE, seed=seed)
    _dump(root / f"coco_cross_{split}.json", [*pairs])


def _segments(rng: np.random.Generator, scene: Scene) -> tuple[np.ndarray, list[dict[str, Any]], list[int]]:
    """(segment map int32 [H, W], segments_info with things first, the things' ids in the order of the objects)."""
    kinds = np.unique(scene.stuff_map[scene.object_map < 0])
    total = len(scene.objects) + len(kinds)
    ids = [int(i) for i in rng.choice(np.arange(1, 1 << 24, 4099), size=total, replace=False)]
    masks = [scene.object_map == index for index in range(len(scene.objects))]
    masks += [(scene.object_map < 0) & (scene.stuff_map == kind) for kind in kinds]
    categories = [1 + thing.class_index for thing in scene.objects] + [FIRST_STUFF_ID + int(kind) for kind in kinds]
    segment_map = np.zeros(scene.object_map.shape, dtype=np.int32)
    segments = []
    for segment_id, mask, category in zip(ids, masks, categories, strict=True):
        segment_map[mask] = segment_id
        segments.append(
            {
                "id": segment_id,
                "category_id": category,
                "iscrowd": 0,
                "area": int(mask.sum()),
                "bbox": _box(mask),
            }
        )
    return segment_map, segments, ids[: len(scene.objects)]


def _instance(image_id: int, index: int, segment_map: np.ndarray, segment: dict[str, Any]) -> dict[str, Any]:
    """The COCO instance annotation of a thing: what is seen of it, as compressed RLE."""
    return {
        "id": image_id * 100 + index,
        "image_id": image_id,
        "category_id": segment["category_id"],
        "iscrowd": 0,
        "area": segment["area"],
        "bbox": segment["bbox"],
        "segmentation": encode_mask(segment_map == segment["id"]),
    }


def _attributes(scene: Scene, ids: list[int]) -> list[dict[str, Any]]:
    """What the objects look like and where they lie, from the bottom to the top."""
    return [
        {
            "segment_id": segment_id,
            "category_id": 1 + thing.class_index,
            "shape": thing.shape,
            "pattern": thing.pattern,
            "colour": thing.colour,
            "centre": [round(value, 2) for value in thing.centre],
            "radius": round(thing.radius, 2),
        }
        for segment_id, thing in zip(ids, scene.objects, strict=True)
    ]


def _box(mask: np.ndarray) -> list[int]:
    """The tight box [x, y, width, height] of a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))
