"""What the parts of the data pipeline hand to each other.

Letters: H W height and width as read from disk, S padded side, L sequence length, C classes incl. background (last),
N segments of an image, K regions of an image.
"""

from dataclasses import dataclass, field
from typing import Any

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
class SemanticRecord:
    """One image and the class of every pixel, at original size."""

    image_id: int
    file_name: str
    image: np.ndarray
    """uint8 [H, W, 3], RGB."""
    label_map: np.ndarray
    """int32 [H, W]: 0-based index into the data set's classes; -1 where nothing is labelled."""


@dataclass(frozen=True)
class InstanceRecord:
    """One image and its objects, at original size."""

    image_id: int
    file_name: str
    image: np.ndarray
    """uint8 [H, W, 3], RGB."""
    masks: np.ndarray
    """bool [N, H, W], without crowd regions."""
    categories: np.ndarray
    """int64 [N]: 0-based index into the data set's classes."""


@dataclass(frozen=True)
class ReferringRecord:
    """One image and expressions that all mean the same objects, at original size."""

    image_id: int
    file_name: str
    image: np.ndarray
    """uint8 [H, W, 3], RGB."""
    sample_id: int
    """The expression group's number in its file (``ref_id`` or ``new_img_id``)."""
    expressions: tuple[str, ...]
    """At least one."""
    masks: np.ndarray
    """bool [N, H, W], one per object that is meant; N is 0 where none is (gRefCOCO)."""


@dataclass(frozen=True)
class RegionRecord:
    """One image, its objects, and visual prompts that point at them, at original size."""

    image_id: int
    file_name: str
    image: np.ndarray
    """uint8 [H, W, 3], RGB."""
    annotation_ids: tuple[int, ...]
    """K ids, one per region."""
    masks: np.ndarray
    """bool [K, H, W]: the object that each region is about."""
    prompts: tuple[dict[str, Any], ...]
    """K times: prompt type (``point``, ``box``, ``scribble``, ``mask``) -> its RLE; see ``visual_prompts.prompt_mask``.

    Types whose mask is empty are left out; at least one is there.
    """


@dataclass(frozen=True)
class CrossImageRecord:
    """Regions of a prompt image, and what they mean in a target image, both at original size."""

    prompt: RegionRecord
    """The prompt image; its masks are the prompted objects themselves."""
    image_id: int
    """Of the target image, as everything below."""
    file_name: str
    image: np.ndarray
    """uint8 [H, W, 3], RGB."""
    masks: np.ndarray
    """bool [N, H, W]: one per prompted category that is in the target image: all its objects together."""
    answers: np.ndarray
    """int64 [K]: which of the N masks answers each region; -1 where the target has no object of its category."""
    sample_id: int
    """The pair's number in its file (``new_img_id``)."""


@dataclass(frozen=True)
class Example:
    """One image and one instruction, ready for the model."""

    task: str
    sample_id: int
    """The image's id, or the number of the question about it where a task asks several."""
    pixel_values: Tensor
    """float32 [3, S, S], resized (long side = S), padded right and bottom with grey, normalised."""
    image_size: tuple[int, int]
    """The valid (height, width) in the padded square."""
    original_size: tuple[int, int]
    input_ids: Tensor
    """int64 [L], text ids and sentinels."""
    masks: Tensor
    """bool [N, S, S], without crowd and void; N may be 0."""
    random_key: int
    """63 bits that determine every random draw for this sample at this step."""
    prompt_ids: list[Tensor] = field(default_factory=list)
    """C tensors, int64: ids of each class's name or of the expression, then [SEG]; empty where regions ask."""
    labels: Tensor | None = None
    """int64 [N]: positions in ``class_order``, which are the model's class indices; None without classes."""
    class_order: Tensor | None = None
    """int64 [C-1]: the data set's class index shown at each position; background (always last) is not listed."""
    region_masks: Tensor | None = None
    """bool [K, S, S]: the prompts, each with a pixel; on the prompt image where there is one."""
    region_labels: Tensor | None = None
    """int64 [K]: which of the N masks answers each region, -1 if none does."""
    prompt_pixel_values: Tensor | None = None
    """float32 [3, S, S]: the image that the regions point at, where it is another one."""
