"""Examples of one task -> one batch of padded tensors.

Letters: B batch, S padded side, L sequence length, C classes incl. background, K tokens of a class name,
N segments of an image.
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

    The batch holds: ``task`` str; ``pixel_values`` float32 [B, 3, S, S]; ``image_sizes`` and ``original_sizes``
    int64 [B, 2] as (height, width); ``sample_ids`` and ``random_keys`` int64 [B]; ``input_ids`` int64 [B, L] padded
    with ``pad_token_id``, ``attention_mask`` bool [B, L]; ``class_ids`` int64 [B, C, K] padded alike, ``class_mask``
    bool [B, C, K]; ``prompt_length`` int, the longest prompt's text and class name tokens; ``class_order``
    int64 [B, C-1]; ``mask_labels`` B tensors bool [N, S, S] and ``class_labels`` B tensors int64 [N].
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
        classes = {len(example.class_ids) for example in examples}
        if len(classes) != 1:
            raise ValueError(f"examples of a batch must list equally many classes, but got {sorted(classes)}")
        input_ids, attention_mask = self._pad([example.input_ids for example in examples])
        names = [name for example in examples for name in example.class_ids]
        class_ids, class_mask = self._pad(names) if names else (torch.zeros(0, 0).long(), torch.zeros(0, 0).bool())
        shape_BCK = (len(examples), classes.pop(), class_ids.shape[1])
        class_mask = class_mask.reshape(shape_BCK)
        text = (attention_mask & (input_ids >= 0)).sum(1)
        return {
            "task": tasks.pop(),
            "pixel_values": torch.stack([example.pixel_values for example in examples]),
            "image_sizes": torch.tensor([example.image_size for example in examples]),
            "original_sizes": torch.tensor([example.original_size for example in examples]),
            "sample_ids": torch.tensor([example.sample_id for example in examples]),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "class_ids": class_ids.reshape(shape_BCK),
            "class_mask": class_mask,
            "prompt_length": int((text + class_mask.sum((1, 2))).max()),
            "class_order": torch.stack([example.class_order for example in examples]),
            "mask_labels": [example.masks for example in examples],
            "class_labels": [example.labels for example in examples],
            "random_keys": torch.tensor([example.random_key for example in examples]),
        }

    def _pad(self, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Rows of different lengths -> (int64 [rows, longest], bool mask of what is not padding)."""
        padded = pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        return padded, torch.arange(padded.shape[1]) < lengths[:, None]
