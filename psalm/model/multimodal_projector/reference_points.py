"""Where a deformable projector's queries start to look, inside the valid (not padded) area of the image.

Legend: B batch, K queries, E hidden_dim, h w size of res5. Points are (x, y) in [0, 1] over the padded map, float32 at
least.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def valid_extent(image_sizes: Tensor | None, res2: Tensor, stride: int) -> Tensor:
    """Lower right corner of each image's valid area.

    Args:
        image_sizes: (height, width) [B, 2] of the valid area in pixels, or None where nothing is padded.
        res2: the finest feature map [B, C, H, W]; with its stride it says how large the padded image is.
        stride: pixels of the image per pixel of ``res2``.

    Returns:
        [B, 1, 2] (B is 1 where nothing is padded) as (x, y).
    """
    dtype = torch.promote_types(res2.dtype, torch.float32)
    if image_sizes is None:
        return torch.ones(1, 1, 2, dtype=dtype, device=res2.device)
    height, width = image_sizes.to(res2.device, dtype).unbind(dim=1)
    padded_height, padded_width = res2.shape[2] * stride, res2.shape[3] * stride
    return torch.stack((width / padded_width, height / padded_height), dim=-1).clamp(max=1.0)[:, None]


def centre_points(queries: Tensor, extent: Tensor) -> Tensor:
    """Centre of the valid area for every query of [B, K, E]: [B, K, 2]."""
    return (extent / 2).expand(queries.shape[0], queries.shape[1], 2)


@torch.no_grad()
def proposal_points(queries: Tensor, res5: Tensor, spatial_shape: tuple[int, int], extent: Tensor) -> Tensor:
    """Pixel of res5 with the highest cosine similarity to each query; the first one in reading order if several.

    A pixel that lies wholly in the padding is never chosen; the centre of one that straddles the edge is moved onto it.

    Args:
        queries: [B, K, E].
        res5: [B, h * w, E], in the queries' space.
        spatial_shape: (h, w).
        extent: see :func:`valid_extent`.

    Returns:
        [B, K, 2].
    """
    height, width = spatial_shape
    dtype = extent.dtype
    similarity = F.normalize(queries.to(dtype), dim=-1) @ F.normalize(res5.to(dtype), dim=-1).mT
    left = torch.arange(width, dtype=dtype, device=res5.device) / width
    top = torch.arange(height, dtype=dtype, device=res5.device) / height
    inside = (top[:, None] < extent[..., 1:]) & (left[None, :] < extent[..., :1])  # [B, h, w]
    similarity = similarity.masked_fill(~inside.flatten(1)[:, None], float("-inf"))
    best = similarity.argmax(dim=-1)
    x = (best % width).to(dtype).add(0.5) / width
    y = best.div(width, rounding_mode="floor").to(dtype).add(0.5) / height
    return torch.minimum(torch.stack((x, y), dim=-1), extent)
