"""Examples of one task -> one batch of padded tensors.

Letters: B batch, S padded side, L sequence length, C what a prompt asks for in words (classes incl. background, or one
expression), W tokens of it, N masks of an image, K regions of an image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from psalm.data.samples import Example

Batch = dict[str, Any]
"""What the model's ``forward`` takes as keyword arguments; see ``Collator`` for the keys."""


class Collator:
    """Pads the examples of one task to one batch.

    Every batch holds: ``task`` str; ``pixel_values`` float32 [B, 3, S, S]; ``image_sizes`` and ``original_sizes``
    int64 [B, 2] as (height, width); ``sample_ids`` and ``random_keys`` int64 [B]; ``input_ids`` int64 [B, L] padded
    with ``pad_token_id``, ``attention_mask`` bool [B, L]; ``prompt_length`` int, the most text and prompt tokens of one
    example (a region is one token); ``mask_labels`` B tensors bool [N, S, S].

    Tasks that ask in words have besides: ``prompt_ids`` int64 [B, C, W] padded alike, ``prompt_mask`` bool [B, C, W].
    Tasks with classes: ``class_order`` int64 [B, C-1] and ``class_labels`` B tensors int64 [N]. Tasks with regions:
    ``region_masks`` B tensors bool [K, S, S], ``region_labels`` B tensors int64 [K], and where the regions lie on
    another image ``prompt_pixel_values`` float32 [B, 3, S, S].
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Collates at least one example.

        Raises:
            ValueError: examples of different tasks, or with different numbers of classes, in one batch.
        """
        tasks = {example.task for example in examples}
        if len(tasks) != 1:
            raise ValueError(f"a batch holds examples of exactly one task, but got {sorted(tasks)}")
        input_ids, attention_mask = self._pad([example.input_ids for example in examples])
        tokens = (attention_mask & (input_ids >= 0)).sum(1)
        batch: Batch = {
            "task": tasks.pop(),
            "pixel_values": torch.stack([example.pixel_values for example in examples]),
            "image_sizes": torch.tensor([example.image_size for example in examples]),
            "original_sizes": torch.tensor([example.original_size for example in examples]),
            "sample_ids": torch.tensor([example.sample_id for example in examples]),
            "random_keys": torch.tensor([example.random_key for example in examples]),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "mask_labels": [example.masks for example in examples],
        }
        if examples[0].region_masks is None:
            batch |= self._words(examples)
            tokens = tokens + batch["prompt_mask"].sum((1, 2))
        else:
            batch |= _regions(examples)
            tokens = tokens + torch.tensor([len(masks) for masks in batch["region_masks"]])
        if examples[0].class_order is not None:
            batch["class_order"] = torch.stack([_given(example.class_order) for example in examples])
            batch["class_labels"] = [example.labels for example in examples]
        return batch | {"prompt_length": int(tokens.max())}

    def _words(self, examples: Sequence[Example]) -> Batch:
        counts = {len(example.prompt_ids) for example in examples}
        if len(counts) != 1:
            raise ValueError(f"examples of a batch must list equally many classes, but got {sorted(counts)}")
        ids, mask = self._pad([words for example in examples for words in example.prompt_ids])
        shape_BCW = (len(examples), counts.pop(), ids.shape[1])
        return {"prompt_ids": ids.reshape(shape_BCW), "prompt_mask": mask.reshape(shape_BCW)}

    def _pad(self, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Rows of different lengths -> (int64 [rows, longest], bool mask of what is not padding)."""
        padded = pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def _regions(examples: Sequence[Example]) -> Batch:
    batch: Batch = {
        "region_masks": [_given(example.region_masks) for example in examples],
        "region_labels": [_given(example.region_labels) for example in examples],
    }
    if examples[0].prompt_pixel_values is not None:
        batch["prompt_pixel_values"] = torch.stack([_given(example.prompt_pixel_values) for example in examples])
    return batch


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "all examples of a task have the same fields"
    return tensor
