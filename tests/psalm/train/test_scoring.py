"""Evaluation counts every image once, at its original size, whatever the number of ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from psalm.data.coco_panoptic import PanopticDataset
from psalm.data.collator import Collator
from psalm.data.examples import PanopticEvaluation
from psalm.data.prompts import PromptBuilder
from psalm.evaluation.panoptic_quality import PanopticQuality
from psalm.model.checkpoints import BUILTIN_FOLDER, load_tokenizer
from psalm.model.mask_decoder.prediction import Prediction
from psalm.train.scoring import count_image, make_loader, score_batches, shard


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


class Oracle(nn.Module):
    """Answers with the truth of the padded image; of the images in ``blind`` it says nothing."""

    def __init__(self, evaluation: PanopticEvaluation, blind: set[int]) -> None:
        super().__init__()
        self.examples = {example.sample_id: example for example in (evaluation[i] for i in range(len(evaluation)))}
        self.blind = blind

    def forward(self, sample_ids: Tensor, pixel_values: Tensor, **_: Any) -> dict[str, Prediction]:
        assert not self.training
        queries, classes = 12, 1 + len(next(iter(self.examples.values())).class_order)
        masks = torch.full((len(sample_ids), queries, *pixel_values.shape[-2:]), -20.0)
        logits = torch.zeros(len(sample_ids), queries, classes)
        logits[..., -1] = 20.0
        for i, sample_id in enumerate(sample_ids.tolist()):
            example = self.examples[sample_id]
            for query, (mask, label) in enumerate(zip(example.masks, example.labels.tolist(), strict=True)):
                masks[i, query][mask] = 20.0
                if sample_id not in self.blind:
                    logits[i, query] = 0.0
                    logits[i, query, label] = 20.0
        return {"predictions": Prediction(masks, logits, None, None)}


@pytest.fixture
def evaluation(small_data: Path) -> PanopticEvaluation:
    prompts = PromptBuilder(load_tokenizer(BUILTIN_FOLDER / "phi"))
    return PanopticEvaluation(PanopticDataset(small_data, "val"), prompts, 128)


def state_of(evaluation: PanopticEvaluation, rank: int, world_size: int, blind: set[int]) -> np.ndarray:
    isthing = [info.isthing for info in evaluation.dataset.classes]
    share = shard(len(evaluation), 2, rank, world_size)
    loader = make_loader(evaluation, share.batches, Collator(0))
    quality = PanopticQuality(isthing)
    model = Oracle(evaluation, blind).train()
    batches = score_batches(model, loader, lambda batch: batch, isthing)
    for counts, images in zip(share.counts, batches, strict=True):
        for image in images if counts else []:
            assert image.pred_map.shape == image.record.image.shape[:2], "at original size"
            count_image(quality, image)
    assert model.training, "the mode is given back"
    return quality.state()


def test_the_truth_scores_nearly_perfect_and_half_of_it_half(evaluation: PanopticEvaluation) -> None:
    quality = PanopticQuality([info.isthing for info in evaluation.dataset.classes])
    quality.add_state(state_of(evaluation, 0, 1, blind=set()))
    scores = quality.compute()
    assert scores["rq"] == 100.0
    assert scores["pq"] > 85.0, "only resizing is lost"

    first = evaluation.dataset.image_ids[0]
    missed = len(evaluation[0].labels)
    state = state_of(evaluation, 0, 1, blind={first})
    assert state[:, 3].sum() == missed, "an image without a prediction is missed as a whole"


def test_two_ranks_count_what_one_counts(evaluation: PanopticEvaluation) -> None:
    blind = {evaluation.dataset.image_ids[2]}
    one = state_of(evaluation, 0, 1, blind)
    two = state_of(evaluation, 0, 2, blind) + state_of(evaluation, 1, 2, blind)
    assert np.array_equal(one, two)
