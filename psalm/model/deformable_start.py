"""How a deformable projector starts beside a trained baseline: changing its output as little as it can.

The tokens are new in the language model's sequence. Whatever they hold, they take a share of the attention of all that
comes later, and move it back by as many positions. The start decides what they hold, and here they hold zeros:

- A LayerNorm makes of a zero token its bias, an RMSNorm zero. So in the first layer the new tokens bring nothing of
  their own: they thin the others' attention out. In later layers they hold what they have read before them.
- Of all starts that were tried, zeros leave the language model's states at the segmentation queries closest to those of
  a model in which nothing attends to the new tokens. The mean embedding of words, which is next to zero, comes second.
  Others are about as far as fresh weights (Xavier's draw): the baseline's ``fc.bias``, its mean image token (measured,
  or estimated from its batch norms), the mean segmentation query, random tokens; very long tokens are further.
  ``python -m psalm.tools.measure_deformable_start`` repeats the comparison with any baseline.
- What remains is the move by as many positions, which no start can take back. It is next to nothing where a language
  model hardly looks at positions, and most of the difference where it does.

Learning is not held up. Only ``output_proj`` is zero: it gets a gradient at the first step, what samples from the
second on. (``query_proj`` waits a step longer, behind the zeros that Deformable DETR starts its offsets and weights
with; it does so with fresh weights too.) A LayerNorm is steepest around zero, so the first gradients of ``output_proj``
are large and take much of a clipped norm: some steps of warm-up are in place.
"""

import torch

from psalm.model.multimodal_projector.deformable_alignment import MultiScaleDeformableCrossAttentionAlignment


@torch.no_grad()
def start_with_zero_tokens(projector: MultiScaleDeformableCrossAttentionAlignment) -> None:
    """Makes every token of the projector zero, for any input; its other weights stay as they are."""
    projector.output_proj.weight.zero_()
    projector.output_proj.bias.zero_()
