"""Proportional attention: a token counts as often as the patches it holds (ToMe, section 3.2).

B batch, M tokens, H heads, D channels per head.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.backbone.exact_attention import exact_attention
from pipeline.backbone.packed_linear import Beside
from pipeline.backbone.rotary import Rope, mean_by_rows, unmerged
from pipeline.merging.rows import without_autocast
from pipeline.token_state import wide, widened

SMALLEST_SIZE = 1e-20
"""Smallest size in the logarithm. A token of size 0 counts like one of this size: it does not show in the
forward pass, even with a logit 30 above all others, and the gradient to its size stays finite."""


class _LogSize(torch.autograd.Function):
    """Autograd function of `log_size`."""

    @staticmethod
    def forward(ctx: Any, size: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(size)
        ctx.factor = factor
        return torch.xlogy(factor, size.clamp(min=SMALLEST_SIZE))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (size,) = ctx.saved_tensors
        grad = grad * ctx.factor
        dead = size < SMALLEST_SIZE
        most = grad.masked_fill(dead, 0.0).abs().sum(dim=-1, keepdim=True)
        grad = grad / size.clamp(min=SMALLEST_SIZE)
        return torch.where(dead, grad.clamp(-most, most), grad), None


def log_size(size: Tensor, factor: float = 1.0) -> Tensor:
    """factor * log(max(size, SMALLEST_SIZE)). size [..., M], the tokens of an image last; float32 or wider.

    The gradient also reaches tokens of size 0. They are no part of the softmax, so that nothing would bound
    their gradient: a logit 30 above the others' gives a factor e^30. It is clamped to the sum of the absolute
    gradients of the logarithms of the image's other tokens, about as much as a token of size 1 can receive.
    """
    if not (torch.is_grad_enabled() and size.requires_grad):
        logarithm = size.clamp(min=SMALLEST_SIZE).log()
        return logarithm if factor == 1.0 else logarithm * factor
    return cast(Tensor, _LogSize.apply(size, factor))


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

    The logarithm is the kernel's mask where it needs no gradient and has q's dtype; on a CPU also in float32
    beside queries in bfloat16, which its kernel does not round. Elsewhere a mask would cost the fused kernel
    or the precision, so the logarithm becomes extra channels of the key, against ones in the query.
    """
    if size is None and bias is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
    # under CUDA's autocast the norms of queries and keys return float32, and the kernel would round the mask
    q, k = q.to(v.dtype), k.to(v.dtype)
    parts = [part for part in (size, bias) if part is not None]
    needs_grad = torch.is_grad_enabled() and any(part.requires_grad for part in parts)
    on_cpu = q.device.type == "cpu" and q.dtype == torch.bfloat16 and dropout == 0.0
    if not needs_grad and (q.dtype == parts[0].dtype or on_cpu):
        mask = _weight_of_keys(size, bias)[:, :, None]
        with without_autocast(q.device.type):  # it would round the mask
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    dim = q.shape[-1]
    pad = partial(F.pad, pad=(0, 2 + -(dim + 2) % 8), value=1.0)
    padded = pad(packed) if packed is not None else [pad(x) for x in (q, k, v)]
    _write_bias(padded[1][..., dim:], _weight_of_keys(size, bias, 1 / scale))
    return F.scaled_dot_product_attention(*padded, dropout_p=dropout, scale=scale)[..., :dim]


def _weight_of_keys(size: Tensor | None, bias: Tensor | None, factor: float = 1.0) -> Tensor:
    """[B, 1 or H, M]: factor * (log size + bias)."""
    of_size = None if size is None else log_size(size, factor)[:, None]
    if bias is None:
        assert of_size is not None
        return of_size
    return bias * factor if of_size is None else of_size + bias * factor


def _write_bias(channels: Tensor, bias: Tensor) -> None:
    """Writes the bias [B, 1 or H, M] into the first two channels [B, H, M, 2 or more] of the keys, rounded,
    and what rounding left: bfloat16 then keeps about 16 bits of it.

    All others are ones, which make a multiple of 8 channels for the GPU kernels. They are the same for all
    keys, and so cancel in the softmax; the channels of the values are cut off.
    """
    channels[..., 0] = bias
    channels[..., 1] = (bias - channels[:, : bias.shape[1], :, 0]).detach()


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
    see `exact_attention`. beside: a layer that reads what the attention reads, and may be computed with its
    projection."""

    size: Tensor | None = None
    rope: Rope | None = None
    exact: bool = False
    beside: Beside | None = None


@dataclass(frozen=True)
class Mixed:
    """What attention gives: output [B, H, M, D]; q, k [B, H, M, D], as in its logits; keys [B, H, M, D],
    before rotary positions; beside [B, M, G]: the outputs of `Place.beside`, where it was computed."""

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
    if place.exact and bias is None:
        if size is None:
            size = torch.ones(q.shape[0], q.shape[2], dtype=wide(q.dtype), device=q.device)
        return Mixed(exact_attention(q, k, v, size, scale=scale), q, k, keys)
    output = proportional_attention(q, k, v, size, scale=scale, dropout=dropout, packed=packed, bias=bias)
    return Mixed(output, q, k, keys)
