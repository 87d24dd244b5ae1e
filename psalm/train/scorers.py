"""What a model answers to the questions of a task: post-processed, counted, and put into the official result formats.

Letters: Q queries, H W size of the image as read from disk, K regions.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from psalm.constants import CROSS_IMAGE, INSTANCE, PANOPTIC, REFERRING, REGION, SEMANTIC
from psalm.data.coco_instances import InstanceData
from psalm.data.cross_image import CrossImageData
from psalm.data.dataset import JoinedData, TaskData
from psalm.data.masks import encode_mask
from psalm.data.questions import Asked
from psalm.data.refer_coco import ReferringData
from psalm.evaluation import CrossImageIoU, InstanceAP, PanopticQuality, ReferringIoU, RegionIoU, SemanticIoU
from psalm.model.mask_decoder.prediction import Prediction
from psalm.model.postprocess import (
    ABSENT_THRESHOLD,
    SegmentPrediction,
    best_mask,
    generalised_mask,
    instance,
    panoptic,
    region_masks,
    semantic_labels,
)

Answer = TypeVar("Answer")
Result = dict[str, Any]
"""One entry of a COCO results file."""


class Metric(Protocol):
    """What all metrics of ``psalm.evaluation`` have in common, besides ``update``."""

    def state(self) -> Any:
        """What was counted so far."""
        ...

    def add_state(self, state: Any) -> None:
        """Adds what another rank has counted."""
        ...

    def compute(self) -> dict[str, float]:
        """Figures in percent, by name."""
        ...


class Scorer(ABC, Generic[Answer]):
    """Answers and counts the questions of one task."""

    metric: Metric

    def __init__(self, data: TaskData) -> None:
        self.data = data

    @abstractmethod
    def answer(self, asked: Asked, prediction: Prediction, row: int, masks: Tensor) -> Answer:
        """What the model says to a question.

        Args:
            asked: the question.
            prediction: of the batch that holds it.
            row: its place in the batch.
            masks: mask logits float32 [Q, H, W], at the image's own size.
        """

    @abstractmethod
    def count(self, asked: Asked, answer: Answer) -> None:
        """Adds an answer to the metric."""

    @abstractmethod
    def results(self, asked: Asked, answer: Answer) -> list[Result]:
        """The answer as entries of the official result format."""

    def per_class(self) -> dict[str, dict[str, float]]:
        """Class -> metric -> percent, of the classes that occur in what was counted; empty for tasks without classes.

        The first metric is the one that the task's main metric is the mean of.
        """
        return {}


@dataclass(frozen=True)
class PanopticAnswer:
    """A panoptic map."""

    segment_map: np.ndarray
    """int32 [H, W], segment ids; 0 is void."""
    segments: list[SegmentPrediction]


class PanopticScorer(Scorer[PanopticAnswer]):
    """Panoptic quality; results are the ``annotations`` of COCO panoptic JSON, their PNGs are written apart."""

    metric: PanopticQuality

    def __init__(self, data: TaskData) -> None:
        super().__init__(data)
        self.isthing = [info.isthing for info in data.classes]
        self.metric = PanopticQuality(self.isthing)

    def answer(self, asked: Asked, prediction: Prediction, row: int, masks: Tensor) -> PanopticAnswer:
        """See ``Scorer``."""
        segment_map, segments = panoptic(_given(prediction.class_logits)[row], masks, self.isthing)
        return PanopticAnswer(segment_map.cpu().numpy(), segments)

    def count(self, asked: Asked, answer: PanopticAnswer) -> None:
        """See ``Scorer``."""
        self.metric.update(
            answer.segment_map,
            {segment.id: segment.category for segment in answer.segments},
            asked.record.segment_map,
            {segment.id: (segment.category, segment.iscrowd) for segment in asked.record.segments},
        )

    def results(self, asked: Asked, answer: PanopticAnswer) -> list[Result]:
        """See ``Scorer``."""
        segments = [
            {"id": segment.id, "category_id": self.data.classes[segment.category].id} for segment in answer.segments
        ]
        file_name = str(PurePosixPath(asked.record.file_name).with_suffix(".png"))
        return [{"image_id": asked.record.image_id, "file_name": file_name, "segments_info": segments}]

    def per_class(self) -> dict[str, dict[str, float]]:
        """See ``Scorer``."""
        return {self.data.classes[index].name: values for index, values in self.metric.per_category().items()}


class SemanticScorer(Scorer[np.ndarray]):
    """Mean IoU of classes; an answer is the class of every pixel, int64 [H, W]. Results as in COCO-Stuff."""

    metric: SemanticIoU

    def __init__(self, data: TaskData) -> None:
        super().__init__(data)
        self.metric = SemanticIoU(len(data.classes))

    def answer(self, asked: Asked, prediction: Prediction, row: int, masks: Tensor) -> np.ndarray:
        """See ``Scorer``."""
        return semantic_labels(_given(prediction.class_logits)[row], masks).cpu().numpy()

    def count(self, asked: Asked, answer: np.ndarray) -> None:
        """See ``Scorer``."""
        self.metric.update(answer, asked.record.label_map)

    def results(self, asked: Asked, answer: np.ndarray) -> list[Result]:
        """See ``Scorer``."""
        return [
            {
                "image_id": asked.record.image_id,
                "category_id": self.data.classes[category].id,
                "segmentation": encode_mask(answer == category),
            }
            for category in np.unique(answer).tolist()
        ]

    def per_class(self) -> dict[str, dict[str, float]]:
        """See ``Scorer``."""
        return {self.data.classes[index].name: values for index, values in self.metric.per_category().items()}


@dataclass(frozen=True)
class InstanceAnswer:
    """Detected objects."""

    categories: np.ndarray
    """int64 [T], indices into the data set's classes."""
    scores: np.ndarray
    """float [T]."""
    masks: np.ndarray
    """bool [T, H, W]."""


class InstanceScorer(Scorer[InstanceAnswer]):
    """Average precision."""

    metric: InstanceAP

    def __init__(self, data: TaskData) -> None:
        super().__init__(data)
        assert isinstance(data, InstanceData)
        self.metric = InstanceAP(data.ground_truth())
        self.category_ids = np.array([info.id for info in data.classes])

    def answer(self, asked: Asked, prediction: Prediction, row: int, masks: Tensor) -> InstanceAnswer:
        """See ``Scorer``; masks without a pixel are no detections."""
        found = instance(_given(prediction.class_logits)[row], masks)
        seen = found.masks.flatten(1).any(1)
        return InstanceAnswer(*(part[seen].cpu().numpy() for part in (found.categories, found.scores, found.masks)))

    def count(self, asked: Asked, answer: InstanceAnswer) -> None:
        """See ``Scorer``."""
        ids = self.category_ids[answer.categories]
        self.metric.update(asked.record.image_id, ids, answer.scores, answer.masks)

    def results(self, asked: Asked, answer: InstanceAnswer) -> list[Result]:
        """See ``Scorer``."""
        ids = self.category_ids[answer.categories].tolist()
        return [
            {
                "image_id": asked.record.image_id,
                "category_id": category,
                "score": score,
                "segmentation": encode_mask(mask),
            }
            for category, score, mask in zip(ids, answer.scores.tolist(), answer.masks, strict=True)
        ]

    def per_class(self) -> dict[str, dict[str, float]]:
        """See ``Scorer``."""
        name_of = {info.id: info.name for info in self.data.classes}
        return {name_of[category]: values for category, values in self.metric.per_category().items()}


class ReferringScorer(Scorer[np.ndarray]):
    """IoU of expressions; an answer is a mask, bool [H, W].

    Where every expression means one object, it is the best query's mask. Where some mean none or several (gRefCOCO), it
    is the union of all that score above PSALM's threshold, and may be empty.
    """

    metric: ReferringIoU

    def __init__(self, data: TaskData) -> None:
        super().__init__(data)
        parts = data.parts if isinstance(data, JoinedData) else (data,)
        self.generalised = any(part.generalised for part in parts if isinstance(part, ReferringData))
        self.metric = ReferringIoU()

    def answer(self, asked: Asked, prediction: Prediction, row: int, masks: Tensor) -> np.ndarray:
        """See ``Scorer``."""
        choose = generalised_mask if self.generalised else best_mask
        return choose(_given(prediction.seg_logits)[row], masks).cpu().numpy()

    def count(self, asked: Asked, answer: np.ndarray) -> None:
        """See ``Scorer``."""
        self.metric.update(answer, asked.record.masks.any(axis=0))

    def results(self, asked: Asked, answer: np.ndarray) -> list[Result]:
        """See ``Scorer``; ``ref_id`` and the expression's number tell what was asked."""
        entry = {
            "image_id": asked.record.image_id,
            "ref_id": asked.record.sample_id,
            "segmentation": encode_mask(answer),
        }
        return [entry if asked.question is None else {**entry, "sentence": asked.question}]


class RegionScorer(Scorer[np.ndarray]):
    """IoU of regions; an answer is a mask per region, bool [K, H, W]."""

    metric: RegionIoU

    def __init__(self, data: TaskData) -> None:
        super().__init__(data)
        self.metric = RegionIoU()

    def answer(self, asked: Asked, prediction: Prediction, row: int, masks: Tensor) -> np.ndarray:
        """See ``Scorer``."""
        return region_masks(_given(prediction.region_logits)[row], masks).cpu().numpy()

    def count(self, asked: Asked, answer: np.ndarray) -> None:
        """See ``Scorer``."""
        assert isinstance(asked.question, str), "a type of prompt"
        for pred, truth in zip(answer, asked.record.masks, strict=True):
            self.metric.update(asked.question, pred, truth)

    def results(self, asked: Asked, answer: np.ndarray) -> list[Result]:
        """See ``Scorer``."""
        return [
            {
                "image_id": asked.record.image_id,
                "annotation_id": annotation_id,
                "prompt": asked.question,
                "segmentation": encode_mask(mask),
            }
            for annotation_id, mask in zip(asked.record.annotation_ids, answer, strict=True)
        ]


class CrossImageScorer(Scorer[np.ndarray]):
    """IoU and place of what regions of another image mean; an answer is a mask per region, bool [K, H, W].

    Where the data have regions whose category the target image lacks, a region may be answered by nothing.
    """

    metric: CrossImageIoU

    def __init__(self, data: TaskData) -> None:
        super().__init__(data)
        assert isinstance(data, CrossImageData)
        self.threshold = ABSENT_THRESHOLD if data.has_absent else None
        self.metric = CrossImageIoU()

    def answer(self, asked: Asked, prediction: Prediction, row: int, masks: Tensor) -> np.ndarray:
        """See ``Scorer``."""
        return region_masks(_given(prediction.region_logits)[row], masks, self.threshold).cpu().numpy()

    def count(self, asked: Asked, answer: np.ndarray) -> None:
        """See ``Scorer``."""
        for pred, truth in zip(answer, truths_of_regions(asked), strict=True):
            self.metric.update(pred, truth)

    def results(self, asked: Asked, answer: np.ndarray) -> list[Result]:
        """See ``Scorer``; ``annotation_id`` is the prompted object's, ``image_id`` the target image's."""
        return [
            {
                "image_id": asked.record.image_id,
                "prompt_image_id": asked.record.prompt.image_id,
                "annotation_id": annotation_id,
                "segmentation": encode_mask(mask),
            }
            for annotation_id, mask in zip(asked.record.prompt.annotation_ids, answer, strict=True)
        ]


SCORERS: dict[str, type[Scorer[Any]]] = {
    PANOPTIC: PanopticScorer,
    SEMANTIC: SemanticScorer,
    INSTANCE: InstanceScorer,
    REFERRING: ReferringScorer,
    REGION: RegionScorer,
    CROSS_IMAGE: CrossImageScorer,
}


def truths_of_regions(asked: Asked) -> np.ndarray:
    """What each region of a cross-image sample means in the target, bool [K, H, W]; empty where it has none of it."""
    record = asked.record
    nothing = np.zeros((1, *record.image.shape[:2]), dtype=bool)
    return np.concatenate([record.masks, nothing])[record.answers]


def _given(scores: Any) -> Any:
    assert scores is not None, "the model has answered another task"
    return scores
