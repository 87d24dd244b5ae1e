"""Records become examples: pixels resized and normalised, classes ordered and put into words, masks at input size.

Letters: S padded side, C classes incl. background, N segments of an image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from psalm.data.coco_panoptic import PanopticDataset
from psalm.data.masks import id_counts
from psalm.data.prompts import PromptBuilder
from psalm.data.random import draw_key, generator
from psalm.data.samples import ClassInfo, Example, PanopticRecord
from psalm.data.transforms import resize_and_pad, resize_and_pad_map

PANOPTIC = "panoptic"


def panoptic_example(
    record: PanopticRecord, classes: Sequence[ClassInfo], prompts: PromptBuilder, size: int, random_key: int | None
) -> Example:
    """One image with all its segments as targets.

    Crowd regions and void are no targets, and neither is a segment of which resizing leaves no pixel.

    Args:
        record: the image and its ground truth.
        classes: the data set's classes; segments index into them.
        prompts: turns prompt and names into ids.
        size: S, the padded side.
        random_key: training: determines every draw, the class order among them. None is evaluation: classes keep
            the data set's order, and the key depends on nothing but the image.
    """
    if random_key is None:
        order = torch.arange(len(classes))
        random_key = draw_key(0, 0, record.image_id)
    else:
        order = torch.randperm(len(classes), generator=generator(random_key, "class_order"))
    position = torch.empty_like(order)
    position[order] = torch.arange(len(classes))
    pixel_values, image_size = resize_and_pad(record.image, size)
    resized = resize_and_pad_map(record.segment_map, size)
    left = id_counts(resized).keys()
    targets = [segment for segment in record.segments if not segment.iscrowd and segment.id in left]
    target_ids = np.array([segment.id for segment in targets], dtype=resized.dtype)
    return Example(
        task=PANOPTIC,
        sample_id=record.image_id,
        pixel_values=pixel_values,
        image_size=image_size,
        original_size=(record.image.shape[0], record.image.shape[1]),
        input_ids=prompts.input_ids(PANOPTIC, classes=len(classes) + 1),
        class_ids=prompts.class_ids([classes[index].name for index in order.tolist()]),
        class_order=order,
        masks=torch.from_numpy(resized == target_ids[:, None, None]),
        labels=position[torch.tensor([segment.category for segment in targets], dtype=torch.int64)],
        random_key=random_key,
    )


class PanopticExamples:
    """The training samples of the panoptic task, for ``TrainingSchedule``."""

    def __init__(self, dataset: PanopticDataset, prompts: PromptBuilder, size: int) -> None:
        self.dataset = dataset
        self.prompts = prompts
        self.size = size

    @property
    def skip_bad_images(self) -> bool:
        """Whether bad images are passed over."""
        return self.dataset.skip_bad_images

    def __len__(self) -> int:
        return len(self.dataset)

    def example(self, index: int, random_key: int) -> Example:
        """Sample ``index`` with the draws that ``random_key`` determines."""
        return panoptic_example(self.dataset.record(index), self.dataset.classes, self.prompts, self.size, random_key)


class PanopticEvaluation(Dataset[Example]):
    """Every image once, in order, for evaluation; images that cannot be read are left out if the data set skips them.

    Item i is the data set's sample ``indices[i]``.
    """

    def __init__(self, dataset: PanopticDataset, prompts: PromptBuilder, size: int) -> None:
        self.dataset = dataset
        self.prompts = prompts
        self.size = size
        self.indices = dataset.good_indices()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> Example:
        record = self.dataset.record(self.indices[item])
        return panoptic_example(record, self.dataset.classes, self.prompts, self.size, None)
