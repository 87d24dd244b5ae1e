"""A small tokenizer, a small built-in data set, and data made of records."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from psalm.constants import CROSS_IMAGE, INSTANCE, PANOPTIC, REFERRING, REGION, SEG_TOKEN, SEMANTIC
from psalm.data.builtin import ensure_builtin
from psalm.data.dataset import File, Question, TaskData
from psalm.data.examples import ReferExpressions, TaskExamples, create_examples
from psalm.data.masks import encode_mask
from psalm.data.prompts import PromptBuilder
from psalm.data.samples import (
    ClassInfo,
    CrossImageRecord,
    InstanceRecord,
    PanopticRecord,
    ReferringRecord,
    RegionRecord,
    Segment,
    SemanticRecord,
)
from psalm.data.visual_prompts import PROMPT_TYPES

CLASSES = tuple(
    ClassInfo(name, isthing=index < 2, id=10 * index)
    for index, name in enumerate(["cat", "dog", "large grey horse", "owl"])
)
TASK_OF = {
    PanopticRecord: PANOPTIC,
    SemanticRecord: SEMANTIC,
    InstanceRecord: INSTANCE,
    ReferringRecord: REFERRING,
    RegionRecord: REGION,
    CrossImageRecord: CROSS_IMAGE,
}


class RecordData(TaskData):
    """Samples that are given as records of one task; nothing is read."""

    def __init__(self, records: Sequence[Any]) -> None:
        super().__init__(len(records))
        self.task = TASK_OF[type(records[0])]  # type: ignore[misc]
        self.records = records

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        return CLASSES

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        return (Path("records.json"),)

    def read_row(self, row: int) -> Any:
        return self.records[row]

    def check_row(self, row: int) -> None:
        """Records are right."""

    def files_of_row(self, row: int) -> tuple[File, ...]:
        return (File("image", Path(self.records[row].file_name)),)

    def questions_of_row(self, row: int) -> Sequence[Question]:
        """As the readers of files answer."""
        record = self.records[row]
        if isinstance(record, ReferringRecord):
            return range(len(record.expressions))
        if isinstance(record, RegionRecord):
            return [kind for kind in PROMPT_TYPES if any(kind in prompts for prompts in record.prompts)]
        return (None,)


def byte_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """One token per byte, as the bottom of any byte-level BPE, and special tokens."""
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": list(special)})
    return fast


def noise(seed: int, height: int, width: int) -> np.ndarray:
    """An image, uint8 [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rectangle(height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    """A mask, bool [H, W]."""
    mask = np.zeros((height, width), dtype=bool)
    mask[rows, columns] = True
    return mask


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(SEG_TOKEN)


@pytest.fixture(scope="session")
def prompts(tokenizer: PreTrainedTokenizerFast) -> PromptBuilder:
    return PromptBuilder(tokenizer)


@pytest.fixture(scope="session")
def builtin_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_builtin(tmp_path_factory.mktemp("cache"), seed=3, train_images=10, val_images=4)


@pytest.fixture(scope="session")
def data_of() -> Callable[..., TaskData]:
    """Records of one task -> data; the classes are cat, dog, large grey horse, owl."""
    return lambda *records: RecordData(records)


@pytest.fixture(scope="session")
def examples_of(prompts: PromptBuilder) -> Callable[..., TaskExamples]:
    """Records of one task -> examples with a padded side of ``size``."""

    def make(*records: Any, size: int = 16, refer_expressions: ReferExpressions = "each") -> TaskExamples:
        return create_examples(RecordData(records), prompts, size, refer_expressions)

    return make


@pytest.fixture
def records() -> dict[str, Any]:
    """Task -> a record of 24 x 32 pixels that has something of everything."""
    image, sides = noise(0, 24, 32), (24, 32)
    left, right, below = (
        rectangle(*sides, slice(0, 10), slice(0, 12)),
        rectangle(*sides, slice(4, 14), slice(16, 32)),
        rectangle(*sides, slice(18, 24), slice(0, 32)),
    )
    segment_map = np.zeros(sides, dtype=np.int32)
    label_map = np.full(sides, -1, dtype=np.int32)
    for mask, segment_id, category in ((left, 500, 1), (right, 9, 0), (below, 70_000, 3)):
        segment_map[mask], label_map[mask] = segment_id, category
    segments = (
        Segment(500, 1, isthing=True, iscrowd=False, area=120),
        Segment(9, 0, isthing=True, iscrowd=True, area=160),
        Segment(70_000, 3, isthing=False, iscrowd=False, area=192),
    )
    region = RegionRecord(
        image_id=44,
        file_name="44.jpg",
        image=image,
        annotation_ids=(7, 8, 9),
        masks=np.stack([left, right, below]),
        prompts=(
            {"box": encode_mask(left), "mask": encode_mask(left & (image[..., 0] > 40))},
            {"point": encode_mask(rectangle(*sides, slice(8, 9), slice(20, 21)))},
            {"mask": encode_mask(below), "scribble": encode_mask(rectangle(*sides, slice(20, 21), slice(9, 25)))},
        ),
    )
    target = noise(1, 30, 20)
    cross_image = CrossImageRecord(
        prompt=region,
        image_id=45,
        file_name="45.jpg",
        image=target,
        masks=np.stack([target[..., 0] > 128, target[..., 0] < 90]),
        answers=np.array([1, -1, 0]),
        sample_id=3,
    )
    return {
        PANOPTIC: PanopticRecord(44, "44.jpg", image, segment_map, segments),
        SEMANTIC: SemanticRecord(44, "44.jpg", image, label_map),
        INSTANCE: InstanceRecord(44, "44.jpg", image, np.stack([right, left]), np.array([0, 1])),
        REFERRING: ReferringRecord(
            44, "44.jpg", image, 81, ("left dog", "the dog", "dog beside a cat"), np.stack([left, right])
        ),
        REGION: region,
        CROSS_IMAGE: cross_image,
    }
