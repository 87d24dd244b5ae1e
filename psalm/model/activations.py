"""Memory that forward and backward take for a while, counted without computing anything.

The model's own step runs on fake tensors, which have shapes and types but no storage. Everything is dispatched as on
real ones - attention goes to its fused kernel, gradient checkpointing computes again in the backward pass - and what is
alive is added up. Only the matching cannot: costs that are not there cannot be compared.
"""

import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from psalm.constants import CLS_TOKEN_INDEX, IMAGE_TOKEN_INDEX, PANOPTIC, SEG_TOKEN_INDEX
from psalm.model.configuration import SWIN_DEFAULTS, PsalmConfig
from psalm.model.freezing import set_trainable
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.mask_decoder.matcher import Assignment, HungarianMatcher, Targets
from psalm.model.mask_decoder.points import PointSource
from psalm.model.mask_decoder.prediction import Prediction


@dataclass(frozen=True)
class StepSizes:
    """How much one micro-batch asks for; the defaults are those of COCO's panoptic classes with Phi's tokenizer.

    Attributes:
        images: in the micro-batch.
        image_size: side of the padded square in pixels.
        prompt_tokens: text, separators and sentinels of a prompt.
        classes: that are asked for, background included.
        name_tokens: of the longest class name, [SEG] included.
        prompt_length: ``prompt_tokens`` and those of all names: what the LLM reads besides image and seg queries.
        masks: the truth's, of each image; a crowded image of COCO has as many.
    """

    images: int = 1
    image_size: int = SWIN_DEFAULTS["image_size"]
    prompt_tokens: int = 500
    classes: int = 134
    name_tokens: int = 8
    prompt_length: int = 900
    masks: int = 20

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> Self:
        """Those of a batch, as the model's ``forward`` takes it; a region counts as a class whose name is one token."""
        if "prompt_ids" in batch:
            _, classes, name_tokens = batch["prompt_ids"].shape
        else:
            classes, name_tokens = max(map(len, batch["region_masks"])), 1
        return cls(
            images=len(batch["pixel_values"]),
            image_size=batch["pixel_values"].shape[-1],
            prompt_tokens=batch["input_ids"].shape[1],
            classes=classes,
            name_tokens=name_tokens,
            prompt_length=batch["prompt_length"],
            masks=max(map(len, batch["mask_labels"])),
        )

    def batch(self, dtype: torch.dtype) -> dict[str, Any]:
        """A batch of these sizes, with images of type ``dtype``."""
        B, S, N = self.images, self.image_size, self.masks
        names = (B, self.classes, self.name_tokens)
        sentinels = [IMAGE_TOKEN_INDEX, *[CLS_TOKEN_INDEX] * self.classes, SEG_TOKEN_INDEX]
        prompt = sentinels + [0] * (self.prompt_tokens - len(sentinels))
        return {
            "task": PANOPTIC,
            "pixel_values": torch.zeros(B, 3, S, S, dtype=dtype),
            "image_sizes": torch.full((B, 2), S),
            "input_ids": torch.tensor(prompt).repeat(B, 1),
            "attention_mask": torch.ones(B, self.prompt_tokens, dtype=torch.bool),
            "prompt_ids": torch.zeros(names, dtype=torch.int64),
            "prompt_mask": torch.ones(names, dtype=torch.bool),
            "prompt_length": self.prompt_length,
            "mask_labels": [torch.zeros(N, S, S, dtype=torch.bool) for _ in range(B)],
            "class_labels": [torch.zeros(N, dtype=torch.int64) for _ in range(B)],
            "random_keys": torch.zeros(B, dtype=torch.int64),
        }


class LiveMemory(TorchDispatchMode):
    """Adds up the storages of tensors, real or fake, that operations inside the ``with`` block make.

    Attributes:
        live: bytes that are alive.
        peak: most bytes that were.
    """

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, address: int) -> None:
        self.live -= self._sizes.pop(address)


def step_activations(
    config: PsalmConfig,
    sizes: StepSizes,
    *,
    projectors_only: bool = False,
    gradient_checkpointing: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Peak bytes of one micro-batch of a class task, forward and backward, besides weights and their gradients.

    Temporary results count, as do the gradients that are added to those of weights; work areas inside of kernels
    (cuDNN's) are not seen.

    Args:
        config: the model's.
        sizes: the micro-batch's.
        projectors_only: train the projectors and nothing else; else everything but the vision tower.
        gradient_checkpointing: as transformers does it: the LLM's layers are computed again in the backward pass.
        dtype: of weights and images, as DeepSpeed casts them; buffers stay in float32.
    """
    with torch.device("meta"):
        model = PsalmForSegmentation(config)
    set_trainable(model, tune_mm_mlp_adapter=projectors_only)
    return activations_of(model, sizes, gradient_checkpointing=gradient_checkpointing, dtype=dtype)


def activations_of(
    model: PsalmForSegmentation,
    sizes: StepSizes,
    *,
    gradient_checkpointing: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """``step_activations`` of a model of shapes alone, which is of no use afterwards; what is trained is as it says."""
    model.train()
    if gradient_checkpointing:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of its new name, which is very new
            model.gradient_checkpointing_enable()
    model.criterion.matcher = _FirstQueries(**vars(model.criterion.matcher))
    keys = torch.zeros(sizes.images, dtype=torch.int64)  # real, since points are drawn from their values
    with FakeTensorMode():
        _from_meta(model, dtype)
        return measured_step(model, sizes.batch(dtype) | {"random_keys": keys})


def measured_step(model: PsalmForSegmentation, batch: Mapping[str, Any]) -> int:
    """Peak bytes of forward and backward, besides the model, its gradients (which become zero before) and the batch."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    given = [tensor for tensor in tree_leaves(batch) if isinstance(tensor, Tensor)]
    with LiveMemory([*model.parameters(), *model.buffers(), *gradients, *given]) as memory:
        loss = model(**batch).loss
        loss.backward()
    return memory.peak


def _from_meta(model: nn.Module, dtype: torch.dtype) -> None:
    """Puts tensors of the surrounding mode in the place of a model's meta tensors."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            tensor = torch.empty(parameter.shape, dtype=dtype)
            module.register_parameter(name, nn.Parameter(tensor, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


class _FirstQueries(HungarianMatcher):
    """Assigns mask n of an image to query n, as far as there are queries; the costs are computed and thrown away."""

    @torch.no_grad()
    def __call__(self, predictions: Sequence[Prediction], targets: Targets, points: PointSource) -> list[Assignment]:
        counts = targets.counts
        masks = [(image, number) for image, count in enumerate(counts) for number in range(count)]
        image_of_mask = torch.tensor([image for image, _ in masks])
        assignments = []
        for layer, prediction in enumerate(predictions):
            drawn = points("matching", layer, [1] * len(counts), self.num_points)
            self._cost(prediction, targets, image_of_mask, drawn)
            queries = prediction.masks.shape[1]
            pairs = [(image, number, number, mask) for mask, (image, number) in enumerate(masks) if number < queries]
            assignments.append(Assignment(*torch.tensor(pairs).T))
        return assignments
