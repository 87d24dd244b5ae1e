"""Quality of a model on the questions of a task, over all ranks, at the images' original sizes.

Letters: S padded side, H W original size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from psalm.data.questions import Asked, Evaluation
from psalm.data.samples import Example
from psalm.model.postprocess import resize_masks
from psalm.train.scorers import Scorer

Collate = Callable[[Sequence[Example]], dict[str, Any]]

LABELS = ("mask_labels", "class_labels", "region_labels")
"""What of a batch the model must not see when it is scored."""


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
def answer_batches(
    model: nn.Module, batches: Iterable[Any], prepare: Callable[[Any], Any], scorer: Scorer[Any]
) -> Iterator[list[tuple[Asked, Any]]]:
    """Runs the model over (batch, questions) and brings what it says to the images' original sizes.

    The model is put into evaluation mode, and afterwards into the mode it was in.
    """
    training = model.training
    model.eval()
    try:
        for batch, questions in batches:
            inputs = {name: value for name, value in batch.items() if name not in LABELS}
            prediction = model(**prepare(inputs))["predictions"]
            padded = (batch["pixel_values"].shape[-2], batch["pixel_values"].shape[-1])
            answers = []
            for row, asked in enumerate(questions):
                example = asked.example
                masks = resize_masks(prediction.masks[row], example.image_size, padded, example.original_size)
                answers.append((asked, scorer.answer(asked, prediction, row, masks)))
            yield answers
    finally:
        model.train(training)


def make_loader(
    evaluation: Evaluation, batches: list[list[int]], collate: Collate, num_workers: int = 0
) -> DataLoader[Any]:
    """Yields (batch, questions) for the given batches of items, in order."""
    return DataLoader(evaluation, batch_sampler=batches, collate_fn=_WithQuestions(collate), num_workers=num_workers)


class _WithQuestions:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, questions: Sequence[Asked]) -> tuple[dict[str, Any], list[Asked]]:
        return self.collate([asked.example for asked in questions]), list(questions)


def of_all_ranks(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks; this one's alone where there is one rank."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
