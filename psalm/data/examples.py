"""Samples become examples: pixels resized and normalised, masks at input size, and what is asked put into ids.

Each task asks in its own way; in evaluation one sample may be asked several questions (each expression about an image,
each type of prompt), in training one of them is drawn.

Letters: S padded side, C classes incl. background, N masks of an image, K regions of an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from psalm.constants import CROSS_IMAGE, INSTANCE, PANOPTIC, REFERRING, REGION, SEMANTIC
from psalm.data.dataset import Question, TaskData
from psalm.data.masks import id_counts
from psalm.data.prompts import PromptBuilder
from psalm.data.random import draw_key, generator
from psalm.data.samples import (
    CrossImageRecord,
    Example,
    InstanceRecord,
    PanopticRecord,
    ReferringRecord,
    RegionRecord,
    SemanticRecord,
)
from psalm.data.transforms import fitted_size, resize_and_pad, resize_and_pad_map
from psalm.data.visual_prompts import PROMPT_TYPES, prompt_mask

ReferExpressions = Literal["each", "joined"]
"""How expressions that mean the same are asked: one at a time, or all in one instruction as PSALM was trained."""

Targets = Callable[[Any, int], tuple[np.ndarray, list[int]]]
"""A record and S -> masks bool [N, S, S] at input size, none of them empty, and their categories [N]."""


class TaskExamples(ABC):
    """The samples of one task as examples, for training and for evaluation.

    Args:
        data: the samples.
        prompts: turns prompts and names into ids.
        size: S, the padded side.
    """

    def __init__(self, data: TaskData, prompts: PromptBuilder, size: int) -> None:
        self.data = data
        self.prompts = prompts
        self.size = size

    def __len__(self) -> int:
        return len(self.data)

    @property
    def task(self) -> str:
        """The task's name."""
        return self.data.task

    @property
    def skip_bad_images(self) -> bool:
        """Whether bad images are passed over."""
        return self.data.skip_bad_images

    def example(self, index: int, random_key: int) -> Example:
        """Sample ``index`` for training, with the draws that ``random_key`` determines."""
        return self.training(self.data.record(index), random_key)

    def questions(self, index: int) -> Sequence[Question]:
        """What evaluation asks of a sample."""
        return (None,)

    def narrowed(self, record: Any, question: Question) -> Any:
        """What of a record a question is about."""
        return record

    @abstractmethod
    def training(self, record: Any, random_key: int) -> Example:
        """A record as an example, every draw made from ``random_key``."""

    @abstractmethod
    def evaluation(self, record: Any, question: Question) -> Example:
        """A record and a question as an example; its key depends on nothing but them."""

    def _example(self, image: np.ndarray, sample_id: int, random_key: int, masks: np.ndarray, **asked: Any) -> Example:
        """An image uint8 [H, W, 3] that is segmented, its masks bool [N, S, S], and what is asked about it."""
        pixel_values, image_size = resize_and_pad(image, self.size)
        return Example(
            task=self.task,
            sample_id=sample_id,
            pixel_values=pixel_values,
            image_size=image_size,
            original_size=(image.shape[0], image.shape[1]),
            masks=torch.from_numpy(masks),
            random_key=random_key,
            **asked,
        )


class ClassExamples(TaskExamples):
    """Tasks that list classes: every example names all of them, in training in a random order.

    Args:
        targets: see ``Targets``.
    """

    def __init__(
        self,
        data: TaskData,
        prompts: PromptBuilder,
        size: int,
        targets: Targets,
    ) -> None:
        super().__init__(data, prompts, size)
        self.targets = targets

    def training(self, record: Any, random_key: int) -> Example:
        """See ``TaskExamples``."""
        order = torch.randperm(len(self.data.classes), generator=generator(random_key, "class_order"))
        return self._build(record, order, random_key)

    def evaluation(self, record: Any, question: Question) -> Example:
        """See ``TaskExamples``; classes keep the data set's order."""
        return self._build(record, torch.arange(len(self.data.classes)), draw_key(0, 0, record.image_id))

    def _build(self, record: Any, order: Tensor, random_key: int) -> Example:
        classes = self.data.classes
        position = torch.empty_like(order)
        position[order] = torch.arange(len(classes))
        masks, categories = self.targets(record, self.size)
        return self._example(
            record.image,
            record.image_id,
            random_key,
            masks,
            input_ids=self.prompts.input_ids(self.task, classes=len(classes) + 1),
            prompt_ids=self.prompts.class_ids([classes[index].name for index in order.tolist()]),
            class_order=order,
            labels=position[torch.tensor(categories, dtype=torch.int64)],
        )


def panoptic_targets(record: PanopticRecord, size: int) -> tuple[np.ndarray, list[int]]:
    """One mask per segment; no crowd, and none of which resizing leaves no pixel."""
    resized = resize_and_pad_map(record.segment_map, size)
    left = id_counts(resized).keys()
    targets = [segment for segment in record.segments if not segment.iscrowd and segment.id in left]
    ids = np.array([segment.id for segment in targets], dtype=resized.dtype)
    return resized == ids[:, None, None], [segment.category for segment in targets]


def semantic_targets(record: SemanticRecord, size: int) -> tuple[np.ndarray, list[int]]:
    """One mask per class that is there."""
    resized = resize_and_pad_map(record.label_map + 1, size)  # 0 is void, as is the padding
    present = np.array(sorted(id_counts(resized).keys() - {0}), dtype=resized.dtype)
    return resized == present[:, None, None], (present - 1).tolist()


def instance_targets(record: InstanceRecord, size: int) -> tuple[np.ndarray, list[int]]:
    """One mask per object; none of which resizing leaves no pixel."""
    masks = resize_and_pad_map(record.masks, size)
    kept = masks.any(axis=(1, 2))
    return masks[kept], record.categories[kept].tolist()


class ReferringExamples(TaskExamples):
    """One expression, or all that mean the same, per example."""

    def __init__(self, data: TaskData, prompts: PromptBuilder, size: int, expressions: ReferExpressions) -> None:
        super().__init__(data, prompts, size)
        self.expressions = expressions

    def questions(self, index: int) -> Sequence[Question]:
        """Each expression, or all at once."""
        if self.expressions == "joined":
            return (None,)
        return self.data.questions(index)

    def training(self, record: ReferringRecord, random_key: int) -> Example:
        """See ``TaskExamples``; where each is asked alone, one is drawn."""
        question = None
        if self.expressions == "each":
            drawn = torch.randint(len(record.expressions), (1,), generator=generator(random_key, "expression"))
            question = int(drawn)
        return self._build(record, question, random_key)

    def evaluation(self, record: ReferringRecord, question: Question) -> Example:
        """See ``TaskExamples``."""
        assert question is None or isinstance(question, int)
        return self._build(record, question, draw_key(0, question or 0, record.sample_id))

    def _build(self, record: ReferringRecord, question: int | None, random_key: int) -> Example:
        asked = record.expressions if question is None else (record.expressions[question],)
        masks = resize_and_pad_map(record.masks, self.size)
        return self._example(
            record.image,
            record.sample_id,
            random_key,
            masks[masks.any(axis=(1, 2))],
            input_ids=self.prompts.input_ids(self.task),
            prompt_ids=[self.prompts.expression_ids(asked)],
        )


class RegionExamples(TaskExamples):
    """All regions of an image at once; in training each is shown by one of its prompts, in evaluation by one type."""

    def questions(self, index: int) -> Sequence[Question]:
        """The types of prompt that the sample has."""
        return self.data.questions(index)

    def narrowed(self, record: RegionRecord, question: Question) -> RegionRecord:
        """The regions that have a prompt of that type."""
        kept = [region for region, prompts in enumerate(record.prompts) if question in prompts]
        return replace(
            record,
            annotation_ids=tuple(record.annotation_ids[region] for region in kept),
            masks=record.masks[kept],
            prompts=tuple(record.prompts[region] for region in kept),
        )

    def training(self, record: RegionRecord, random_key: int) -> Example:
        """See ``TaskExamples``."""
        return self._build(record, draw_prompt_types(record, random_key), random_key)

    def evaluation(self, record: RegionRecord, question: Question) -> Example:
        """See ``TaskExamples``; the record must be narrowed to the question."""
        assert isinstance(question, str)
        key = draw_key(0, PROMPT_TYPES.index(question), record.image_id)
        return self._build(record, [question] * len(record.prompts), key)

    def _build(self, record: RegionRecord, kinds: Sequence[str], random_key: int) -> Example:
        regions = region_prompts(record, kinds, self.size)
        masks = resize_and_pad_map(record.masks, self.size)
        masks, answers = _without_empty(masks, np.arange(len(masks)))
        return self._example(
            record.image,
            record.image_id,
            random_key,
            masks,
            input_ids=self.prompts.input_ids(self.task, regions=len(regions)),
            region_masks=torch.from_numpy(regions),
            region_labels=torch.from_numpy(answers),
        )


class CrossImageExamples(TaskExamples):
    """Regions of one image, to be found in another; every region is shown by one of its prompts, drawn by its key."""

    def training(self, record: CrossImageRecord, random_key: int) -> Example:
        """See ``TaskExamples``."""
        return self._build(record, random_key)

    def evaluation(self, record: CrossImageRecord, question: Question) -> Example:
        """See ``TaskExamples``."""
        return self._build(record, draw_key(0, 0, record.sample_id))

    def _build(self, record: CrossImageRecord, random_key: int) -> Example:
        prompt_pixels, _ = resize_and_pad(record.prompt.image, self.size)
        regions = region_prompts(record.prompt, draw_prompt_types(record.prompt, random_key), self.size)
        masks, answers = _without_empty(resize_and_pad_map(record.masks, self.size), record.answers)
        return self._example(
            record.image,
            record.sample_id,
            random_key,
            masks,
            input_ids=self.prompts.input_ids(self.task, regions=len(regions)),
            region_masks=torch.from_numpy(regions),
            region_labels=torch.from_numpy(answers),
            prompt_pixel_values=prompt_pixels,
        )


def draw_prompt_types(record: RegionRecord, random_key: int) -> list[str]:
    """One of the types that each region has."""
    source = generator(random_key, "prompt_types")
    draws = torch.rand(len(record.prompts), generator=source).tolist()
    return [list(prompts)[int(draw * len(prompts))] for prompts, draw in zip(record.prompts, draws, strict=True)]


def region_prompts(record: RegionRecord, kinds: Sequence[str], size: int) -> np.ndarray:
    """The prompts of these types at input size, bool [K, S, S].

    Of one that resizing leaves nothing of, the pixel in the middle (in reading order) is kept: where its centre falls.
    """
    height, width = record.image.shape[:2]
    regions = np.zeros((len(kinds), size, size), dtype=bool)
    for region, (kind, prompts) in enumerate(zip(kinds, record.prompts, strict=True)):
        prompt = prompt_mask(kind, prompts[kind], height, width)
        regions[region] = resize_and_pad_map(prompt, size)
        if not regions[region].any():
            pixels = np.argwhere(prompt)
            scale = np.array(fitted_size(height, width, size)) / (height, width)
            y, x = ((pixels[len(pixels) // 2] + 0.5) * scale).astype(int)
            regions[region, y, x] = True
    return regions


def _without_empty(masks: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks [N, S, S] that have a pixel, and which of them answers each region (int64 [K], -1: none any more)."""
    kept = masks.any(axis=(1, 2))
    new_number = np.append(np.where(kept, kept.cumsum() - 1, -1), -1)  # the last one answers for -1
    return masks[kept], new_number[answers]


def create_examples(
    data: TaskData, prompts: PromptBuilder, size: int, refer_expressions: ReferExpressions = "each"
) -> TaskExamples:
    """The examples of whatever task the data are of."""
    targets: dict[str, Targets] = {PANOPTIC: panoptic_targets, SEMANTIC: semantic_targets, INSTANCE: instance_targets}
    if data.task in targets:
        return ClassExamples(data, prompts, size, targets[data.task])
    if data.task == REFERRING:
        return ReferringExamples(data, prompts, size, refer_expressions)
    return {REGION: RegionExamples, CROSS_IMAGE: CrossImageExamples}[data.task](data, prompts, size)
