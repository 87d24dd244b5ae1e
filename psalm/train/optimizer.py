"""Learning rates of a model's parts: a run's rate, times what its settings say of a part.

A Trainer creates the optimizer as it always does, with its own split into parameters with and without weight decay; its
parameter groups are split further here, so that the schedule scales the rate of every group.
"""

from collections.abc import Mapping

import torch
from torch import nn

from psalm.model.language_model.llava_phi import PsalmForSegmentation


def learning_rate_multipliers(
    model: PsalmForSegmentation, *, offset_lr_multiplier: float, backbone_lr_multiplier: float
) -> dict[nn.Parameter, float]:
    """What the learning rate of a parameter is multiplied by; 1 for those that are not named.

    Args:
        model: its trained parameters are looked at.
        offset_lr_multiplier: of what decides where the deformable projector samples: the sampling offsets, and the
            layer of learned reference points. Deformable DETR (arXiv 2010.04159, section 5) has 0.1 for both. The
            offsets of the pixel decoder are trained at the full rate, as Mask2Former trains them.
        backbone_lr_multiplier: of the vision tower, where it is trained; 0.1 in Mask2Former (arXiv 2112.01527, 4.1).
    """
    parts: list[tuple[nn.Module, float]] = [(model.model.vision_tower, backbone_lr_multiplier)]
    if model.config.mm_projector_type == "deformable":
        projector = model.model.mm_projector_deformable
        parts.append((projector.attention.sampling_offsets, offset_lr_multiplier))
        if projector.reference_points == "learned":
            parts.append((projector.reference_proj, offset_lr_multiplier))
    return {parameter: rate for part, rate in parts for parameter in part.parameters() if parameter.requires_grad}


def multiply_learning_rates(optimizer: torch.optim.Optimizer, multipliers: Mapping[nn.Parameter, float]) -> None:
    """Splits the parameter groups of an optimizer that has not stepped yet, one group per rate; none is left empty.

    The groups of the full rate come first: the first group's is the one that is logged.
    """
    groups = []
    for group in optimizer.param_groups:
        parameters: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parameters.setdefault(multipliers.get(parameter, 1.0), []).append(parameter)
        groups += [
            (multiplier, {**group, "params": part, "lr": group["lr"] * multiplier})
            for multiplier, part in parameters.items()
        ]
    groups.sort(key=lambda each: each[0] != 1.0)
    optimizer.param_groups[:] = [group for _, group in groups]
