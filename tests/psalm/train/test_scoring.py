"""Evaluation runs every question once, at its image's original size, whatever the number of ranks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psalm.constants import TASKS
from psalm.data.collator import Collator
from psalm.data.questions import Evaluation
from psalm.train.scorers import SCORERS
from psalm.train.scoring import LABELS, answer_batches, make_loader, of_all_ranks, shard

Make = Callable[..., Evaluation]


@pytest.mark.parametrize("count", [1, 4, 5, 13])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_every_item_counts_once_and_batches_do_not_depend_on_ranks(
    count: int, batch_size: int, world_size: int
) -> None:
    shares = [shard(count, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(share.batches) for share in shares}) == 1, "every rank runs equally many batches"
    counted = [batch for share in shares for batch, counts in zip(share.batches, share.counts, strict=True) if counts]
    assert sorted(item for batch in counted for item in batch) == list(range(count))
    assert sorted(counted) == sorted(shard(count, batch_size, 0, 1).batches)


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        shard(0, 1, 0, 1)


@pytest.mark.parametrize("task", TASKS)
def test_questions_are_answered_in_order_without_the_labels(
    evaluation_of: Make, oracle: Callable[..., nn.Module], task: str
) -> None:
    evaluation = evaluation_of(task, size=64)
    model = oracle(evaluation)
    given: list[set[str]] = []

    def prepare(inputs: dict[str, Any]) -> dict[str, Any]:
        given.append(set(inputs))
        return inputs

    batches = [[0, 1, 2], [3, 4]]
    scorer = SCORERS[task](evaluation.data)
    shapes: list[torch.Size] = []
    answer = scorer.answer

    def keep(asked: Any, prediction: Any, row: int, masks: Tensor) -> Any:
        shapes.append(masks.shape)
        return answer(asked, prediction, row, masks)

    scorer.answer = keep  # type: ignore[method-assign]
    loader = make_loader(evaluation, batches, Collator(0))
    answered = list(answer_batches(model.train(), loader, prepare, scorer))
    assert [[asked.item for asked, _ in batch] for batch in answered] == batches
    assert [shape[1:] for shape in shapes] == [
        asked.record.image.shape[:2] for batch in answered for asked, _ in batch
    ], "at original size"
    assert all(names.isdisjoint(LABELS) for names in given)
    assert model.training, "the mode is given back"


def test_mode_is_given_back_after_an_error(evaluation_of: Make, oracle: Callable[..., nn.Module]) -> None:
    evaluation = evaluation_of("panoptic")
    model = oracle(evaluation).train()

    def fail(inputs: Any) -> Any:
        raise RuntimeError("out of memory")

    answers = answer_batches(
        model, make_loader(evaluation, [[0]], Collator(0)), fail, SCORERS["panoptic"](evaluation.data)
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        next(answers)
    assert model.training


def test_one_rank_has_all_values() -> None:
    value = object()
    assert of_all_ranks(value) == [value]
