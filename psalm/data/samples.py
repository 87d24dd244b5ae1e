"""What the parts of the data pipeline hand to each other.

Letters: H W height and width as read from disk, S padded side, L sequence length, C classes incl. background (last),
N segments of an image.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class ClassInfo:
    """One category of a data set."""

    name: str
    isthing: bool
    id: int
    """The category id in the files; ids may have gaps."""


@dataclass(frozen=True)
class Segment:
    """One segment of an image: a thing, the area of one stuff class, or a crowd region."""

    id: int
    category: int
    """0-based index into the data set's classes."""
    isthing: bool
    iscrowd: bool
    area: int
    """Pixels in the segment map at original size."""


@dataclass(frozen=True)
class PanopticRecord:
    """One image and its ground truth as read from disk, at original size."""

    image_id: int
    file_name: str
    image: np.ndarray
    """uint8 [H, W, 3], RGB."""
    segment_map: np.ndarray
    """int32 [H, W], segment ids as in the file; 0 is void."""
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Example:
    """One image and one instruction, ready for the model."""

    task: str
    sample_id: int
    """The image's id."""
    pixel_values: Tensor
    """float32 [3, S, S], resized (long side = S), padded right and bottom with grey, normalised."""
    image_size: tuple[int, int]
    """The valid (height, width) in the padded square."""
    original_size: tuple[int, int]
    input_ids: Tensor
    """int64 [L], text ids and sentinels."""
    class_ids: list[Tensor]
    """C tensors, int64: the token ids of the name at each position, then [SEG]."""
    class_order: Tensor
    """int64 [C-1]: the data set's class index shown at each position; background (always last) is not listed."""
    masks: Tensor
    """bool [N, S, S], without crowd and void; N may be 0."""
    labels: Tensor
    """int64 [N]: positions in ``class_order``, which are the model's class indices."""
    random_key: int
    """63 bits that determine every random draw for this sample at this step."""
