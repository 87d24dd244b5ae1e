"""COCO-Interactive JSON from COCO instances: every object gets simulated prompts, the same for the same annotation id.

python -m psalm.data.make_interactive --instances annotations/instances_train2017.json --output FILE
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from psalm.data.coco_format import read_image_info, read_json, rows_by_id
from psalm.data.errors import DataError
from psalm.data.masks import encode_mask, segmentation_to_mask
from psalm.data.visual_prompts import prompt_key, simulate_prompts
from psalm.data.writing import Watch, json_list, run_command

Read = TypeVar("Read")


def interactive_records(
    instances: dict[str, Any],
    seed: int = 0,
    source: str | Path = "the instances",
    watch: Watch = iter,
) -> Iterator[dict[str, Any]]:
    """The samples of a COCO-Interactive file, one per image that has objects, in the order of the images.

    Annotations keep all their keys, crowd regions are among them, and those without a pixel are left out.

    Args:
        instances: the content of a COCO instances file: ``images`` and ``annotations``.
        seed: another seed draws other prompts.
        source: what error messages call the instances.
        watch: goes through the images, e.g. showing how far it is.

    Raises:
        DataError: a segmentation cannot be decoded.
    """
    annotations = annotations_by_image(instances)
    number = 0
    for image in watch(instances["images"]):
        shown = []
        for annotation in annotations.get(image["id"], ()):
            mask = read_segmentation(segmentation_to_mask, annotation, image, source)
            if mask.any():
                shown.append(with_prompts(annotation, mask, seed))
        if shown:
            yield {"image": image["file_name"], "image_info": image, "new_img_id": number, "anns": shown}
            number += 1


def annotations_by_image(instances: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Image id -> its annotations, in the order of the file."""
    annotations: dict[int, list[dict[str, Any]]] = {}
    for annotation in instances["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    return annotations


def read_segmentation(
    read: Callable[[Any, int, int], Read], annotation: dict[str, Any], image: dict[str, Any], source: str | Path
) -> Read:
    """What a function makes of an annotation's segmentation, H and W; DataError names the annotation."""
    try:
        return read(annotation["segmentation"], image["height"], image["width"])
    except DataError as error:
        raise DataError(
            f"{source}: the segmentation of annotation {annotation['id']} cannot be used: {error}"
        ) from error


def with_prompts(annotation: dict[str, Any], mask: np.ndarray, seed: int) -> dict[str, Any]:
    """A copy of an annotation with a prompt of each type for its mask bool [H, W]."""
    prompts = simulate_prompts(mask, annotation["id"], seed)
    return {**annotation, **{prompt_key(kind): encode_mask(prompt) for kind, prompt in prompts.items()}}


def read_instances(path: Path) -> dict[str, Any]:
    """The content of a COCO instances file, of which images and annotations have been checked.

    Raises:
        DataError: missing, not JSON, or not COCO instances; names file and place.
    """
    file = read_json(path, "COCO instances JSON")
    images = rows_by_id(file, "images")
    for image_id, row in images.items():
        read_image_info(file, file.content["images"][row], "images", row)
        if image_id < 0:
            file.fail(f"must be at least 0, but is {image_id}", "images", row, "id")
    for row, annotation in enumerate(file.field(file.content, "annotations", list)):
        place = ("annotations", row)
        if file.field(annotation, "id", int, *place) < 0:
            file.fail(f"must be at least 0, but is {annotation['id']}", *place, "id")
        if file.field(annotation, "image_id", int, *place) not in images:
            file.fail(f"names image {annotation['image_id']}, which is not among images", *place)
        file.field(annotation, "category_id", int, *place)
        file.field(annotation, "segmentation", (list, dict), *place)
        if "iscrowd" in annotation:
            file.flag(annotation, "iscrowd", *place)
    return file.content


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m psalm.data.make_interactive", description=__doc__.splitlines()[0])
    add_arguments(parser)
    options = parser.parse_args(argv)

    def work(watch: Watch) -> str:
        images = regions = 0
        with json_list(options.output, options.overwrite) as append:
            instances = read_instances(options.instances)
            for record in interactive_records(instances, options.seed, options.instances, watch):
                append(record)
                images += 1
                regions += len(record["anns"])
            if not images:
                raise DataError(f"{options.instances} has no annotation with a pixel: there is nothing to point at")
        empty = len(instances["annotations"]) - regions
        return (
            f"wrote {images} images with {regions} annotations to {options.output}; "
            f"{empty} with an empty mask are left out"
        )

    return run_command(work)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that makes a file from COCO instances."""
    parser.add_argument("--instances", type=Path, required=True, help="COCO instances JSON to read")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other prompts (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there already")


if __name__ == "__main__":
    sys.exit(main())
