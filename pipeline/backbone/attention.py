"""Proportional attention: a token counts as often as the patches it holds (ToMe, section 3.2).

B batch, M tokens, H heads, D channels per head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.backbone.attention_kernels import Operands, attend
from pipeline.backbone.exact_attention import exact_attention
from pipeline.backbone.packed_linear import Beside
from pipeline.backbone.rotary import Rope, mean_by_rows, unmerged
from pipeline.token_state import wide, widened


def proportional_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    size: Tensor | None,
    *,
    scale: float,
    dropout: float = 0.0,
    packed: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """softmax(scale * q k^T + log size + bias) v through PyTorch's fused kernels.

    q, k, v [B, H, M, D]; size [B, M], float32 (float64 with q in float64), or None; bias [B, H, M], of the
    same dtype, or None -> [B, H, M, D]. packed [3, B, H, M, D]: the tensor of q, k and v, where they lie in
    one; it is then copied at once.

    The logarithm is the kernel's mask where that costs neither the fused kernel nor precision; elsewhere it
    becomes extra channels of the key, against ones in the query. On a GPU the fastest of several ways is
    taken; see `attention_kernels`.
    """
    if size is None and bias is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
    # under CUDA's autocast the norms of queries and keys return float32, and the kernel would round the mask
    q, k = (x if x.dtype == v.dtype else x.to(v.dtype) for x in (q, k))
    return attend(Operands(q, k, v, size, bias, packed, scale, dropout))


def reference_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, *, scale: float) -> Tensor:
    """`proportional_attention` by its definition, for tests: softmax weights times size, renormalised, in
    float32 or wider."""
    logits = (widened(q) @ widened(k).mT) * scale
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    if size is not None:
        weights = weights * size[:, None, None, :]
    return (weights / weights.sum(dim=-1, keepdim=True)) @ widened(v)


@dataclass(frozen=True)
class Place:
    """What attention has to know of the tokens beside their channels. size [B, M], or None where each counts
    once. exact: round as the authors' release does, without attention dropout, where positions give no bias;
    see `exact_attention`. queries: only the first so many tokens attend to all; None: each does. It goes with
    no rotary positions. beside: a layer that reads what the attention reads, and may be computed with its
    projection."""

    size: Tensor | None = None
    rope: Rope | None = None
    exact: bool = False
    queries: int | None = None
    beside: Beside | None = None


@dataclass(frozen=True)
class Mixed:
    """What attention gives: output [B, H, M, D], of the tokens that attend; q, k [B, H, M, D], as in its
    logits, q of those that attend; keys [B, H, M, D], before rotary positions; beside [B, M, G]: the outputs
    of `Place.beside`, where it was computed."""

    output: Tensor
    q: Tensor
    k: Tensor
    keys: Tensor
    beside: Tensor | None = None


def mix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Place,
    *,
    scale: float,
    dropout: float = 0.0,
    packed: Tensor | None = None,
) -> Mixed:
    """Attention of tokens that stand for several patches, at several positions. q, k, v, packed: see
    `proportional_attention`."""
    keys, size, rope = k, place.size, place.rope
    if rope is not None and rope.rows is not None:
        spread = [unmerged(x, rope.rows) for x in (q, k, v)]
        every = proportional_attention(
            rope.rotate(spread[0]),
            rope.rotate(spread[1]),
            spread[2],
            rope.counts,
            scale=scale,
            dropout=dropout,
        )
        output = mean_by_rows(every.transpose(1, 2), rope.rows, q.shape[2], rope.counts).transpose(1, 2)
        return Mixed(output, q, k, keys)
    bias = None
    if rope is not None:
        bias, packed = rope.key_bias(q, k, scale, size), None
        q, k = rope.rotate(q).type_as(v), rope.rotate(k).type_as(v)
    q = q if place.queries is None else q[:, :, : place.queries]
    if place.exact and bias is None:
        if size is None:
            size = torch.ones(k.shape[0], k.shape[2], dtype=wide(k.dtype), device=k.device)
        return Mixed(exact_attention(q, k, v, size, scale=scale, packed=packed), q, k, keys)
    packed = packed if place.queries is None else None
    output = proportional_attention(q, k, v, size, scale=scale, dropout=dropout, packed=packed, bias=bias)
    return Mixed(output, q, k, keys)
