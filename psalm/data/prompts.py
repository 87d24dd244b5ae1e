"""The instructions that the published weights were trained with, and how they become token ids.

The wording is an interface: another prompt is another input to the language model. A prompt is split at its sentinels
(``<image>``, ``<seg>``, ...); each piece between them is encoded on its own, without special tokens of the tokenizer,
and each sentinel is one id that the model later replaces by embeddings.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from psalm.constants import (
    BACKGROUND_CLASS,
    CROSS_IMAGE,
    INSTANCE,
    PANOPTIC,
    REFERRING,
    REGION,
    REGION_TASKS,
    SEG_TOKEN,
    SEMANTIC,
    SENTINELS,
    TASKS,
)

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
END_OF_TEXT = "<|endoftext|>"

INSTRUCTIONS: dict[str, str] = {
    PANOPTIC: "This is an image <image>, Please do Panoptic Segmentation.\n"
    "This is all the candidate categories: {classes}.\n",
    SEMANTIC: "This is an image <image>, Please do Semantic Segmentation.\n"
    "This is all the candidate categories: {classes}.\n",
    REFERRING: "This is an image <image>, Please doing Referring Segmentation according to the following instruction:\n"
    "<refer>",
    REGION: "This is an image <image>, Please segment by given regions\nThis is all regions:  {regions}.\n",
    CROSS_IMAGE: "Based on the regions indicated in Image <image>\nThis is all regions:  {regions}.\n"
    "Please doing Semantic Segmentation on this Image <image1>.\n",
}
INSTRUCTIONS[INSTANCE] = INSTRUCTIONS[PANOPTIC]
"""What is asked, per task; instance uses the panoptic wording. No weights are published for ``cross_image``."""

ANSWERS: dict[str, str] = dict.fromkeys(TASKS, "\nSure, the segmentation result is <seg>")
ANSWERS |= dict.fromkeys(REGION_TASKS, "\n[SEG]<seg>")


def prompt_text(task: str, classes: int = 0, regions: int = 0) -> str:
    """The whole prompt of a task, with one ``<cls>`` per class (background counts) or ``<region>`` per region."""
    if task not in INSTRUCTIONS:
        raise ValueError(f"unknown task {task!r}: must be one of {', '.join(TASKS)}")
    instruction = INSTRUCTIONS[task].format(
        classes=", ".join(["<cls>"] * classes), regions=", ".join(["<region>"] * regions)
    )
    system = f"<<SYS>>\n{SYSTEM}\n<</SYS>>"
    return f"[INST] {system}\n\n{instruction} [/INST] {ANSWERS[task]} {END_OF_TEXT}"


class PromptBuilder:
    """Prompts, class names and expressions as token ids of one tokenizer; prompts and names are encoded once.

    Args:
        tokenizer: a transformers tokenizer that knows ``[SEG]`` as one token and has a padding token.

    Raises:
        ValueError: the tokenizer lacks either.
    """

    def __init__(self, tokenizer: Any) -> None:
        seg = tokenizer.encode(SEG_TOKEN, add_special_tokens=False)
        if len(seg) != 1 or seg[0] == tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer must have the token {SEG_TOKEN}: add it and resize the model's embeddings")
        if tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer must have a padding token: set its pad_token, e.g. to its end-of-text token"
            )
        self.tokenizer = tokenizer
        self.seg_token_id: int = seg[0]
        self.pad_token_id: int = tokenizer.pad_token_id
        self._encoded: dict[str, Tensor] = {}

    def input_ids(self, task: str, classes: int = 0, regions: int = 0) -> Tensor:
        """The ids of a task's prompt, int64 [L]; ``classes`` counts background."""
        return self.encode(prompt_text(task, classes, regions))

    def class_ids(self, names: Sequence[str]) -> list[Tensor]:
        """Per name, and last for background, the ids of the name followed by that of ``[SEG]``; int64."""
        closing = torch.tensor([self.seg_token_id])
        return [torch.cat([self.encode(name), closing]) for name in (*names, BACKGROUND_CLASS)]

    def expression_ids(self, expressions: Sequence[str]) -> Tensor:
        """The ids of expressions that mean the same, joined as `` first. second.``, then that of ``[SEG]``; int64."""
        text = "".join(f" {expression}." for expression in expressions)
        return torch.tensor([*self.tokenizer.encode(text, add_special_tokens=False), self.seg_token_id])

    def encode(self, text: str) -> Tensor:
        """Ids of a text that may hold sentinels, int64 [L]."""
        if text not in self._encoded:
            ids: list[int] = []
            for piece in SENTINEL_PATTERN.split(text):
                if piece in SENTINELS:
                    ids.append(SENTINELS[piece])
                elif piece:
                    ids.extend(self.tokenizer.encode(piece, add_special_tokens=False))
            self._encoded[text] = torch.tensor(ids, dtype=torch.int64)
        return self._encoded[text]


SENTINEL_PATTERN = re.compile(f"({'|'.join(map(re.escape, SENTINELS))})")
