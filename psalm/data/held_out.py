"""Validation samples where there is no validation file: images held out of the training data."""

import torch

from psalm.data.dataset import TaskData
from psalm.data.errors import DataError
from psalm.data.random import draw_key, generator

SHARE = 0.1
"""Of the images, rounded, but at least one."""
SEED = 0
"""Of its own: runs with other seeds are scored on the same images."""


def hold_out(data: TaskData) -> tuple[TaskData, TaskData]:
    """(training, validation) samples that share no image.

    A sample belongs to validation if the image that is segmented is held out, and to training if none of its images
    is; a pair of images that is neither is in no part.

    Raises:
        DataError: there are fewer than two images, or a part would be empty.
    """
    images = [data.image_names(index) for index in range(len(data))]
    names = sorted({name for of_sample in images for name in of_sample})
    order = torch.randperm(len(names), generator=generator(draw_key(SEED, 0, 0), "held_out")).tolist()
    held = {names[place] for place in order[: max(round(SHARE * len(names)), 1)]}
    validation = [index for index, of_sample in enumerate(images) if of_sample[0] in held]
    training = [index for index, of_sample in enumerate(images) if held.isdisjoint(of_sample)]
    if not validation or not training:
        raise DataError(
            f"{data.annotation_files[0]} has too few images ({len(names)}) to hold some out for validation; "
            "give validation data"
        )
    return data.select(training), data.select(validation)
