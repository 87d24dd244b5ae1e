"""Masked-attention predictor of Mask2Former (arXiv 2112.01527, section 3.2), with PSALM's prompt-conditioned scores.

Parameter names are PSALM's. Where Mask2Former classifies with a linear layer, PSALM takes the dot product of an MLP of
the query with embeddings that the language model computed from the prompt.

Legend: B batch, Q seg queries, E hidden_dim, C classes, K_i regions of image i, h w size of an attended level,
H W size of the masks, L layers.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psalm.model.mask_decoder.position import sine_position_encoding
from psalm.model.mask_decoder.prediction import Prediction

NUM_LEVELS = 3
"""Attended levels; layer i attends to level i modulo 3, starting with the coarsest."""


class Attention(nn.Module):
    """Multi-head attention with the parameter names of ``nn.MultiheadAttention``, without its copies per head."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)

    def reset_parameters(self) -> None:
        """Initialise as ``nn.MultiheadAttention``."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.in_proj_bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend from ``query`` [B, Q, E] to ``key``, ``value`` [B, N, E] where ``allowed`` [B, Q, N] is true."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(tokens, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None if allowed is None else allowed[:, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class CrossAttentionLayer(nn.Module):
    """Queries attend to the pixels of one level inside their own predicted masks."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(hidden_dim, num_heads)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(
        self, queries: Tensor, query_positions: Tensor, keys: Tensor, values: Tensor, allowed: Tensor
    ) -> Tensor:
        """Update the queries [B, Q, E]."""
        return self.norm(queries + self.multihead_attn(queries + query_positions, keys, values, allowed))


class SelfAttentionLayer(nn.Module):
    """Queries attend to each other."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(hidden_dim, num_heads)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, queries: Tensor, query_positions: Tensor) -> Tensor:
        """Update the queries [B, Q, E]."""
        placed = queries + query_positions
        return self.norm(queries + self.self_attn(placed, placed, queries))


class FeedForwardLayer(nn.Module):
    """Two linear layers around a ReLU."""

    def __init__(self, hidden_dim: int, feedforward_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)

    def reset_parameters(self) -> None:
        """Initialise as Mask2Former."""
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, queries: Tensor) -> Tensor:
        """Update the queries [B, Q, E]."""
        return self.norm(queries + self.linear2(F.relu(self.linear1(queries))))


class MLP(nn.Module):
    """Linear layers with ReLU between them; all but the last are ``hidden_dim`` wide."""

    def __init__(self, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [hidden_dim] * num_layers + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., hidden_dim] to [..., output_dim]."""
        *hidden, last = self.layers
        for layer in hidden:
            tokens = F.relu(layer(tokens))
        return last(tokens)


class MaskedAttentionPredictor(nn.Module):
    """Refines seg queries layer by layer and predicts masks and prompt-conditioned scores after each.

    Args:
        in_channels: width of the multi-scale features.
        hidden_dim: width of the queries and of the prompt embeddings.
        num_queries: seg queries.
        num_heads: attention heads; must divide ``hidden_dim``.
        feedforward_dim: width of the feed-forward networks.
        num_layers: layers (Detectron2's ``DEC_LAYERS`` less one).
        mask_dim: width of the per-pixel embeddings.

    Raises:
        ValueError: ``hidden_dim`` is not divisible by ``num_heads``.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_dim: int,
        num_queries: int,
        num_heads: int,
        feedforward_dim: int,
        num_layers: int,
        mask_dim: int,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads != 0:
            raise ValueError(f"hidden_dim {hidden_dim} is not divisible by num_heads {num_heads}")
        self.input_proj = nn.ModuleList(
            nn.Identity() if in_channels == hidden_dim else nn.Conv2d(in_channels, hidden_dim, kernel_size=1)
            for _ in range(NUM_LEVELS)
        )
        self.level_embed = nn.Embedding(NUM_LEVELS, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        layers = range(num_layers)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads) for _ in layers
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads) for _ in layers
        )
        self.transformer_ffn_layers = nn.ModuleList(FeedForwardLayer(hidden_dim, feedforward_dim) for _ in layers)
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.mask_embed = MLP(hidden_dim, mask_dim, num_layers=3)
        self.CLASS_proj = MLP(hidden_dim, hidden_dim, num_layers=2)
        self.SEG_proj = MLP(hidden_dim, hidden_dim, num_layers=2)
        self.REGION_proj = MLP(hidden_dim, hidden_dim, num_layers=2)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as Mask2Former does (torch's own initialisation where nothing is said)."""
        for projection in self.input_proj:
            if isinstance(projection, nn.Conv2d):
                nn.init.kaiming_uniform_(projection.weight, a=1)
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)
        for module in self.modules():
            if isinstance(module, Attention | FeedForwardLayer):
                module.reset_parameters()
        nn.init.normal_(self.level_embed.weight)
        nn.init.normal_(self.query_embed.weight)

    def forward(
        self,
        multi_scale: Sequence[Tensor],
        mask_features: Tensor,
        queries: Tensor,
        *,
        class_embeddings: Tensor | None = None,
        seg_embeddings: Tensor | None = None,
        region_embeddings: Sequence[Tensor] | None = None,
    ) -> list[Prediction]:
        """Predict.

        Args:
            multi_scale: res5, res4, res3, each [B, in_channels, h, w].
            mask_features: per-pixel embeddings [B, mask_dim, H, W].
            queries: seg queries [B, Q, E].
            class_embeddings: [B, C, E], background last.
            seg_embeddings: [B, 1, E].
            region_embeddings: per image [K_i, E].

        Returns:
            L + 1 predictions: before the first layer, then after each; the last is final.
        """
        keys, values = self._attended_levels(multi_scale)
        query_positions = _rows(self.query_embed)[None]
        pixels = mask_features.flatten(2)

        def predict(queries: Tensor) -> Prediction:
            normed = self.decoder_norm(queries)
            return Prediction(
                masks=(self.mask_embed(normed) @ pixels).unflatten(2, mask_features.shape[2:]),
                class_logits=None if class_embeddings is None else self.CLASS_proj(normed) @ class_embeddings.mT,
                seg_logits=None if seg_embeddings is None else self.SEG_proj(normed) @ seg_embeddings.mT,
                region_logits=None if region_embeddings is None else self._region_logits(normed, region_embeddings),
            )

        predictions = [predict(queries)]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for index, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            level = index % NUM_LEVELS
            height, width = multi_scale[level].shape[-2:]
            allowed = attention_region(predictions[-1].masks, (height, width))
            queries = cross_attention(queries, query_positions, keys[level], values[level], allowed)
            queries = self_attention(queries, query_positions)
            queries = feed_forward(queries)
            predictions.append(predict(queries))
        return predictions

    def _attended_levels(self, multi_scale: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of each level, [B, h * w, E]; keys know where they are."""
        keys, values = [], []
        for features, project, embedding in zip(multi_scale, self.input_proj, _rows(self.level_embed), strict=True):
            projected = project(features)
            value = projected.flatten(2).transpose(1, 2) + embedding
            values.append(value)
            keys.append(value + sine_position_encoding(projected).flatten(2).transpose(1, 2))
        return keys, values

    def _region_logits(self, normed: Tensor, region_embeddings: Sequence[Tensor]) -> list[Tensor]:
        projected = self.REGION_proj(normed)
        return [regions @ queries.mT for regions, queries in zip(region_embeddings, projected, strict=True)]


def _rows(table: nn.Embedding) -> Tensor:
    """All rows of a table, read by calling it: ZeRO-3 gathers a module's weights only around its own call."""
    rows: Tensor = table(torch.arange(table.num_embeddings, device=table.weight.device))
    return rows


@torch.no_grad()
def attention_region(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels of a level that each query may attend to: where its mask is at least one half.

    A query whose mask is empty at this size may attend everywhere, since a softmax over nothing is NaN.

    Args:
        masks: mask logits [B, Q, H, W].
        size: (h, w) of the level.

    Returns:
        bool [B, Q, h * w], true where attention is allowed.
    """
    resized = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    forbidden = (resized < 0).flatten(2)
    return ~forbidden | forbidden.all(dim=-1, keepdim=True)


_NEVER_USED = (
    "query_feat.weight",
    "static_query.weight",
    "SEG_query_embed.weight",
    "class_embed.weight",
    "class_embed.bias",
)


def detectron2_to_predictor(state: Mapping[str, Tensor], num_queries: int) -> dict[str, Tensor]:
    """Rename a Detectron2 or PSALM predictor's state to the names of :class:`MaskedAttentionPredictor`.

    Left out are the weights that PSALM never uses: Mask2Former's query features (the language model gives them) and its
    linear classifier. A table of more than ``num_queries`` query positions is cut to its first rows.

    Args:
        state: tensors by name, without a prefix such as ``sem_seg_head.predictor.`` or ``predictor.``. PSALM's three
            score projections are missing in a Detectron2 checkpoint, so load that with ``strict=False``.
        num_queries: rows to keep.

    Raises:
        ValueError: the table has fewer rows than ``num_queries``.
    """
    renamed = {name: tensor for name, tensor in state.items() if name not in _NEVER_USED}
    positions = renamed.get("query_embed.weight")
    if positions is not None:
        if positions.shape[0] < num_queries:
            raise ValueError(f"the checkpoint has {positions.shape[0]} queries, but num_queries is {num_queries}")
        renamed["query_embed.weight"] = positions[:num_queries]
    return renamed
