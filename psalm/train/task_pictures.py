"""A question and its answer as a picture, task by task: what was asked, the truth, and the prediction beside it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from psalm.constants import CROSS_IMAGE, INSTANCE, PANOPTIC, REFERRING, REGION, SEMANTIC
from psalm.data.dataset import TaskData
from psalm.data.examples import draw_prompt_types
from psalm.data.questions import Asked
from psalm.data.samples import RegionRecord
from psalm.data.visual_prompts import prompt_mask
from psalm.train.pictures import RGB, VOID_COLOR, Picture, class_color, stacked, tinted
from psalm.train.scorers import InstanceAnswer, PanopticAnswer, truths_of_regions

SHOWN_SCORE = 0.5
"""Detections below it are not drawn."""


def picture_of(asked: Asked, answer: Any, data: TaskData) -> Picture:
    """Draws whatever task the question is of."""
    return _DRAWERS[data.task](asked, answer, data)


def _panoptic(asked: Asked, answer: PanopticAnswer, data: TaskData) -> Picture:
    truth = {segment.id: segment.category for segment in asked.record.segments}
    pred = {segment.id: segment.category for segment in answer.segments}
    return _of_classes(asked, data, (asked.record.segment_map, truth), (answer.segment_map, pred))


def _semantic(asked: Asked, answer: np.ndarray, data: TaskData) -> Picture:
    maps = [(labels, {label: label for label in np.unique(labels).tolist()}) for labels in (_labels(asked), answer)]
    return _of_classes(asked, data, *maps)


def _labels(asked: Asked) -> np.ndarray:
    labels: np.ndarray = asked.record.label_map
    return labels


def _instance(asked: Asked, answer: InstanceAnswer, data: TaskData) -> Picture:
    shown = answer.scores >= SHOWN_SCORE
    maps = [
        (stacked(masks), dict(enumerate(categories.tolist(), start=1)))
        for masks, categories in (
            (asked.record.masks, asked.record.categories),
            (answer.masks[shown], answer.categories[shown]),
        )
    ]
    return _of_classes(asked, data, *maps)


def _of_classes(
    asked: Asked,
    data: TaskData,
    truth: tuple[np.ndarray, dict[int, int]],
    pred: tuple[np.ndarray, dict[int, int]],
) -> Picture:
    """Each of ``truth`` and ``pred`` is a map and the class of each of its ids."""
    pixels = asked.record.image
    panels = {"image": pixels}
    legend: dict[str, RGB] = {"void": VOID_COLOR}
    for title, (segment_map, category_of) in (("truth", truth), ("prediction", pred)):
        color_of = {i: class_color(category) for i, category in category_of.items() if category >= 0}
        panels[title] = tinted(pixels, segment_map, color_of)
        legend |= {data.classes[c].name: class_color(c) for c in category_of.values() if c >= 0}
    return Picture(panels, legend)


def _referring(asked: Asked, answer: np.ndarray, data: TaskData) -> Picture:
    record = asked.record
    masks = {"truth": record.masks.any(axis=0), "prediction": answer}
    panels = {title: tinted(record.image, mask.astype(int), {1: class_color(0)}) for title, mask in masks.items()}
    expressions = record.expressions if asked.question is None else [record.expressions[asked.question]]
    return Picture({"image": record.image, **panels}, {"meant": class_color(0)}, ". ".join(expressions))


def _region(asked: Asked, answer: np.ndarray, data: TaskData) -> Picture:
    record: RegionRecord = asked.record
    kinds = [str(asked.question)] * len(record.prompts)
    panels = {"prompts": _prompts(record, kinds), **_regions(record.image, record.masks, answer)}
    return Picture(panels, {}, f"prompts: {asked.question}")


def _cross_image(asked: Asked, answer: np.ndarray, data: TaskData) -> Picture:
    prompt: RegionRecord = asked.record.prompt
    kinds = draw_prompt_types(prompt, asked.example.random_key)
    panels = _regions(asked.record.image, truths_of_regions(asked), answer)
    return Picture({"prompts": _prompts(prompt, kinds), **panels}, {}, f"prompts: {', '.join(kinds)}")


def _prompts(record: RegionRecord, kinds: list[str]) -> np.ndarray:
    height, width = record.image.shape[:2]
    prompts = [prompt_mask(kind, of[kind], height, width) for kind, of in zip(kinds, record.prompts, strict=True)]
    return _colored(record.image, np.array(prompts))


def _regions(pixels: np.ndarray, truth: np.ndarray, pred: np.ndarray) -> dict[str, np.ndarray]:
    return {"truth": _colored(pixels, truth), "prediction": _colored(pixels, pred)}


def _colored(pixels: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Every mask in the colour of its number."""
    return tinted(pixels, stacked(masks), {number + 1: class_color(number) for number in range(len(masks))})


_DRAWERS: dict[str, Callable[[Asked, Any, TaskData], Picture]] = {
    PANOPTIC: _panoptic,
    SEMANTIC: _semantic,
    INSTANCE: _instance,
    REFERRING: _referring,
    REGION: _region,
    CROSS_IMAGE: _cross_image,
}
