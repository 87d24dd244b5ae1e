"""Validation samples where there is no validation file: images held out of the training data."""

from hashlib import blake2b

from psalm.data.dataset import TaskData
from psalm.data.errors import DataError

SHARE = 0.1
"""Of the images that are segmented, about; but at least one."""


def hold_out(data: TaskData) -> tuple[TaskData, TaskData]:
    """(training, validation) samples: no image that is segmented in validation is in any training sample.

    An image's name alone decides whether it is held out, so that one file of a mixture does not train on what another
    holds out, and runs with other seeds are scored on the same images. Pairs of images whose prompt image is held out,
    but whose target is not, are in no part.

    Raises:
        DataError: no sample is left for training.
    """
    images = [data.image_names(index) for index in range(len(data))]
    segmented = {of_sample[0] for of_sample in images}
    first = min(segmented, key=_place)
    held = {name for name in segmented if _place(name) < SHARE} | {first}
    validation = [index for index, of_sample in enumerate(images) if of_sample[0] in held]
    training = [index for index, of_sample in enumerate(images) if not any(_is_held(n, held) for n in of_sample)]
    if not training:
        raise DataError(
            f"{data.annotation_files[0]} has too few images ({len(segmented)} are segmented) to hold some out for "
            "validation; give validation data"
        )
    return data.select(training), data.select(validation)


def _place(name: str) -> float:
    """A number in [0, 1) that is as good as random, but always the same for a name."""
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "little") / 2**56


def _is_held(name: str, held: set[str]) -> bool:
    """Whether an image is scored in this data's validation, or would be in that of other data."""
    return name in held or _place(name) < SHARE
