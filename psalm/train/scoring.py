"""Quality of a model on a split, over all ranks, at the images' original sizes.

Letters: B batch, S padded side, H W original size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from psalm.data.examples import PanopticEvaluation, panoptic_example
from psalm.data.samples import Example, PanopticRecord
from psalm.evaluation.panoptic_quality import PanopticQuality
from psalm.model.postprocess import SegmentPrediction, panoptic, resize_masks

Collate = Callable[[Sequence[Example]], dict[str, Any]]


@dataclass(frozen=True)
class ScoredImage:
    """One image with its ground truth and what the model says."""

    record: PanopticRecord
    pred_map: np.ndarray
    """int32 [H, W], segment ids of ``pred_segments``; 0 is void."""
    pred_segments: list[SegmentPrediction]


class Truths(Dataset[tuple[Example, PanopticRecord]]):
    """The images of an evaluation with their ground truth."""

    def __init__(self, evaluation: PanopticEvaluation) -> None:
        self.evaluation = evaluation

    def __len__(self) -> int:
        return len(self.evaluation)

    def __getitem__(self, item: int) -> tuple[Example, PanopticRecord]:
        data = self.evaluation.dataset
        record = data.record(self.evaluation.indices[item])
        return panoptic_example(record, data.classes, self.evaluation.prompts, self.evaluation.size, None), record


@dataclass(frozen=True)
class Share:
    """One rank's batches of items, and which of them count."""

    batches: list[list[int]]
    counts: list[bool]


def shard(count: int, batch_size: int, rank: int, world_size: int) -> Share:
    """Deals the batches of ``count`` items to ranks, one after the other.

    Whole batches are dealt, so that every number of ranks computes the same batches and gets the same bits. Every rank
    gets equally many, because a sharded model's forward passes are joint work: where none is left, the first batch is
    run again and not counted.
    """
    if count < 1:
        raise ValueError("there is nothing to evaluate: the split has no images")
    batches = [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    rounds = -(-len(batches) // world_size)
    dealt = [number * world_size + rank for number in range(rounds)]
    counts = [place < len(batches) for place in dealt]
    return Share([batches[place if real else 0] for place, real in zip(dealt, counts, strict=True)], counts)


@torch.no_grad()
def score_batches(
    model: nn.Module, batches: Iterable[Any], prepare: Callable[[Any], Any], isthing: Sequence[bool]
) -> Iterator[list[ScoredImage]]:
    """Runs the model over (batch, records) and brings its predictions to the images' original sizes.

    The model is put into evaluation mode, and afterwards into the mode it was in.
    """
    training = model.training
    model.eval()
    try:
        for batch, records in batches:
            inputs = {name: value for name, value in batch.items() if name not in ("mask_labels", "class_labels")}
            prediction = model(**prepare(inputs))["predictions"]
            padded = (batch["pixel_values"].shape[-2], batch["pixel_values"].shape[-1])
            images = []
            for i, (record, size) in enumerate(zip(records, batch["image_sizes"].tolist(), strict=True)):
                height, width = record.segment_map.shape
                masks = resize_masks(prediction.masks[i], tuple(size), padded, (height, width))
                pred_map, segments = panoptic(prediction.class_logits[i], masks, isthing)
                images.append(ScoredImage(record, pred_map.cpu().numpy(), segments))
            yield images
    finally:
        model.train(training)


def make_loader(
    evaluation: PanopticEvaluation, batches: list[list[int]], collate: Collate, num_workers: int = 0
) -> DataLoader[Any]:
    """Yields (batch, records) for the given batches of items, in order."""
    return DataLoader(
        Truths(evaluation), batch_sampler=batches, collate_fn=_WithRecords(collate), num_workers=num_workers
    )


class _WithRecords:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, pairs: Sequence[tuple[Example, PanopticRecord]]) -> tuple[dict[str, Any], list[PanopticRecord]]:
        return self.collate([example for example, _ in pairs]), [record for _, record in pairs]


def count_image(quality: PanopticQuality, image: ScoredImage) -> None:
    """Adds one image to the quality's counts."""
    quality.update(
        image.pred_map,
        {segment.id: segment.category for segment in image.pred_segments},
        image.record.segment_map,
        {segment.id: (segment.category, segment.iscrowd) for segment in image.record.segments},
    )


def sum_over_ranks(state: np.ndarray, device: torch.device) -> np.ndarray:
    """The sum of every rank's float64 array; the array itself where there is one rank."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return state
    total: Tensor = torch.from_numpy(state).to(device)
    torch.distributed.all_reduce(total)
    return total.cpu().numpy()
