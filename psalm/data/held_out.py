"""Validation samples where there is no validation file: images held out of the training data."""

import torch

from psalm.data.dataset import TaskData
from psalm.data.errors import DataError
from psalm.data.random import draw_key, generator

SHARE = 0.1
"""Of the images that are segmented, rounded, but at least one."""
SEED = 0
"""Of its own: runs with other seeds are scored on the same images."""


def hold_out(data: TaskData) -> tuple[TaskData, TaskData]:
    """(training, validation) samples that share no image.

    A sample belongs to validation if the image that is segmented is held out, and to training if it has no image of a
    validation sample; a pair of images that is neither is in no part.

    Raises:
        DataError: no sample is left for training.
    """
    images = [data.image_names(index) for index in range(len(data))]
    segmented = sorted({of_sample[0] for of_sample in images})
    order = torch.randperm(len(segmented), generator=generator(draw_key(SEED, 0, 0), "held_out")).tolist()
    held = {segmented[place] for place in order[: max(round(SHARE * len(segmented)), 1)]}
    validation = [index for index, of_sample in enumerate(images) if of_sample[0] in held]
    seen = {name for index in validation for name in images[index]}
    training = [index for index, of_sample in enumerate(images) if seen.isdisjoint(of_sample)]
    if not training:
        count = len({name for of_sample in images for name in of_sample})
        raise DataError(
            f"{data.annotation_files[0]} has too few images ({count}) to hold some out for validation that no training "
            "sample shares; give validation data"
        )
    return data.select(training), data.select(validation)
