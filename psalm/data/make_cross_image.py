"""Cross-image JSON from COCO instances: pairs of images that share categories, with simulated prompts on the first.

python -m psalm.data.make_cross_image --instances annotations/instances_train2017.json --output FILE
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from psalm.data.errors import DataError
from psalm.data.make_interactive import (
    add_arguments,
    annotations_by_image,
    read_instances,
    read_segmentation,
    with_prompts,
)
from psalm.data.masks import segmentation_area, segmentation_to_mask
from psalm.data.writing import Watch, json_list, run_command


def cross_image_records(
    instances: dict[str, Any],
    pairs_per_image: int = 2,
    regions_per_category: int = 2,
    min_area: int = 64,
    absent_share: float = 0.0,
    seed: int = 0,
    source: str | Path = "the instances",
    watch: Watch = iter,
) -> Iterator[dict[str, Any]]:
    """The pairs of a cross-image file: every image in turn is the prompt image for others that share a category.

    Prompts are on the largest objects of all shared categories; the target has all its annotations of these, crowd
    regions among them. Annotations without a pixel are left out.

    Args:
        instances: the content of a COCO instances file: ``images`` and ``annotations``.
        pairs_per_image: target images per prompt image; fewer where no more share a category with it.
        regions_per_category: prompted objects per category at most.
        min_area: pixels that an object must have to be prompted.
        absent_share: share of the pairs in which one category more is prompted, of which the target has nothing; less
            where too few prompt images have such a category.
        seed: another seed draws other pairs and prompts.
        source: what error messages call the instances.
        watch: goes through the prompt images, e.g. showing how far it is.

    Raises:
        ValueError: a number is out of its range.
        DataError: a segmentation cannot be decoded.
    """
    counts = {"pairs_per_image": pairs_per_image, "regions_per_category": regions_per_category, "min_area": min_area}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but got {value}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, but got {seed}")
    if not 0 <= absent_share <= 1:
        raise ValueError(f"absent_share must be from 0 to 1, but got {absent_share}")
    scenes = _Scenes(instances, source)
    return _records(scenes, watch(instances["images"]), absent_share=absent_share, seed=seed, **counts)


class _Scenes:
    """The images of COCO instances and what is in them."""

    def __init__(self, instances: dict[str, Any], source: str | Path) -> None:
        self.images = {image["id"]: image for image in instances["images"]}
        self.annotations = annotations_by_image(instances)
        self.source = source
        self.images_with: dict[int, list[int]] = {}
        """Category id -> ids of the images that have an object of it, no crowd; in the order of the file."""
        for image_id, annotations in self.annotations.items():
            for category in {each["category_id"] for each in annotations if not each.get("iscrowd")}:
                self.images_with.setdefault(category, []).append(image_id)

    def annotated_areas(self, image_id: int) -> list[tuple[int, dict[str, Any]]]:
        """The annotations of an image that have a pixel, after the number of their pixels."""
        areas = [
            (read_segmentation(segmentation_area, annotation, self.images[image_id], self.source), annotation)
            for annotation in self.annotations.get(image_id, ())
        ]
        return [(area, annotation) for area, annotation in areas if area]

    def prompted(self, image_id: int, count: int, min_area: int, seed: int) -> dict[int, list[dict[str, Any]]]:
        """Category id -> its largest objects in an image, with prompts; categories by id."""
        objects: dict[int, list[dict[str, Any]]] = {}
        for area, annotation in sorted(self.annotated_areas(image_id), key=lambda each: (-each[0], each[1]["id"])):
            of_category = objects.setdefault(annotation["category_id"], [])
            if area >= min_area and not annotation.get("iscrowd") and len(of_category) < count:
                mask = read_segmentation(segmentation_to_mask, annotation, self.images[image_id], self.source)
                of_category.append(with_prompts(annotation, mask, seed))
        return {category: objects[category] for category in sorted(objects) if objects[category]}

    def targets(self, rng: np.random.Generator, image_id: int, categories: list[int], count: int) -> list[int]:
        """Other images that have at least one of the categories, all of which have their turn; random, all distinct.

        Of each category twice as many images are drawn as are needed: one may be the image itself, and all the others
        but one may be taken already.
        """
        draws = []
        for category in rng.permutation(categories).tolist():
            images = self.images_with[category]
            picked = rng.choice(len(images), size=min(len(images), 2 * count), replace=False)
            draws.append([images[index] for index in picked.tolist()])
        in_turns = dict.fromkeys(chain.from_iterable(zip_longest(*draws)))
        return [target for target in in_turns if target not in (None, image_id)][:count]


def _records(
    scenes: _Scenes,
    images: Iterable[dict[str, Any]],
    pairs_per_image: int,
    regions_per_category: int,
    min_area: int,
    absent_share: float,
    seed: int,
) -> Iterator[dict[str, Any]]:
    number = with_absent = 0
    for image in images:
        rng = np.random.default_rng([seed, image["id"]])
        prompted = scenes.prompted(image["id"], regions_per_category, min_area, seed)
        for target_id in scenes.targets(rng, image["id"], list(prompted), pairs_per_image):
            there = [annotation for _, annotation in scenes.annotated_areas(target_id)]
            present = {each["category_id"] for each in there if not each.get("iscrowd")}
            shared = [category for category in prompted if category in present]
            if not shared:  # what the two share has no pixel in the target
                continue
            absent = sorted(prompted.keys() - {each["category_id"] for each in there})
            asked = shared
            if absent and with_absent < absent_share * (number + 1):
                asked = sorted([*shared, absent[rng.integers(len(absent))]])
                with_absent += 1
            yield {
                "new_img_id": number,
                "category_ids": asked,
                "image_info": _info(image),
                "annotations": [each for category in asked for each in prompted[category]],
                "image1_info": _info(scenes.images[target_id]),
                "annotations1": [each for each in there if each["category_id"] in shared],
            }
            number += 1


def _info(image: dict[str, Any]) -> dict[str, Any]:
    return {**image, "image": image["file_name"], "img_id": image["id"]}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m psalm.data.make_cross_image", description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--pairs-per-image", type=int, default=2, help="targets per prompt image (default: 2)")
    parser.add_argument("--regions-per-category", type=int, default=2, help="prompted objects of each (default: 2)")
    parser.add_argument("--min-area", type=int, default=64, help="pixels of a prompted object (default: 64)")
    parser.add_argument(
        "--absent-share",
        type=float,
        default=0.0,
        help="share of the pairs that also prompt a category that the target does not have (default: 0)",
    )
    options = parser.parse_args(argv)

    def work(watch: Watch) -> str:
        pairs = prompts = absent = 0
        with json_list(options.output, options.overwrite) as append:
            records = cross_image_records(
                read_instances(options.instances),
                options.pairs_per_image,
                options.regions_per_category,
                options.min_area,
                options.absent_share,
                options.seed,
                options.instances,
                watch,
            )
            for record in records:
                append(record)
                pairs += 1
                prompts += len(record["annotations"])
                absent += {each["category_id"] for each in record["annotations1"]} < set(record["category_ids"])
            if not pairs:
                raise DataError(
                    f"{options.instances} has no two images that share a category: there is no pair to make"
                )
        return f"wrote {pairs} pairs with {prompts} prompts to {options.output}; {absent} ask for an absent category"

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
