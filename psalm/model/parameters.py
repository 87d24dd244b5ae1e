"""How many parameters the model has, by part, and how many those have that it starts from."""

import torch
from torch import nn

from psalm.model.configuration import PsalmConfig
from psalm.model.language_model.llava_phi import PsalmForSegmentation

LLM, VISION_TOWER = "LLM", "vision tower"
PROJECTOR, DEFORMABLE = "baseline projector", "deformable projector"
PIXEL_DECODER, PREDICTOR = "pixel decoder", "predictor"

PARTS: dict[str, tuple[str, ...]] = {
    VISION_TOWER: ("model.vision_tower.",),
    PROJECTOR: ("model.mm_projector.",),
    DEFORMABLE: ("model.mm_projector_deformable.",),
    LLM: ("model.",),
    PIXEL_DECODER: ("pixel_decoder.",),
    PREDICTOR: ("predictor.",),
    "small projections": (
        "seg_query_projector.", "class_name_projector.", "SEG_token_projector.", "region_projector.",
    ),
    "seg queries": ("seg_query",),
}  # fmt: skip
"""Part -> how the names of its parameters begin; the first part that fits has them."""

COCO_PANOPTIC_CLASSES = 133
PSALM_OWN = (
    "predictor.CLASS_proj.", "predictor.SEG_proj.", "predictor.REGION_proj.",
    "pixel_decoder.adapter_1.0.bias", "pixel_decoder.layer_1.0.bias",
)  # fmt: skip
"""Parameters of PSALM's mask decoder that Mask2Former's has not."""


def meta_model(config: PsalmConfig) -> PsalmForSegmentation:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return PsalmForSegmentation(config)


def count_parts(model: nn.Module) -> dict[str, int]:
    """Parameters by part."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[next(part for part, prefixes in PARTS.items() if name.startswith(prefixes))] += parameter.numel()
    return counts


def published_parameters() -> dict[str, int]:
    """Parameters of the models that PSALM starts from, as published.

    They are counted in PSALM's modules. What it leaves out of them is added: the head of Phi-1.5, with its bias, and
    Mask2Former's query features and linear classifier of COCO's panoptic classes and of no object.
    """
    model = meta_model(PsalmConfig(swin_type="base"))
    config = model.config
    parts = count_parts(model)
    own = sum(parameter.numel() for name, parameter in model.named_parameters() if name.startswith(PSALM_OWN))
    query_features = config.num_queries * config.hidden_dim
    classifier = (config.hidden_dim + 1) * (COCO_PANOPTIC_CLASSES + 1)
    decoder = parts[PIXEL_DECODER] + parts[PREDICTOR] - own + query_features + classifier
    head = config.text_config.vocab_size * (config.text_config.hidden_size + 1)
    return {
        "swin_base": parts[VISION_TOWER],
        "swin_large": count_parts(meta_model(PsalmConfig(swin_type="large")))[VISION_TOWER],
        "phi_1_5": parts[LLM] + head,
        "mask2former_swin_base": parts[VISION_TOWER] + decoder,
    }
