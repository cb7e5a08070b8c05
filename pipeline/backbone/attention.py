"""Proportional attention: a token counts as often as the patches it holds (ToMe, section 3.2).

B batch, M tokens, H heads, D channels per head.
"""

from functools import partial
from typing import Any, cast

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbone.exact_attention import exact_attention
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
) -> Tensor:
    """softmax(scale * q k^T + log size) v through PyTorch's fused kernels.

    q, k, v [B, H, M, D]; size [B, M], float32 (float64 with q in float64), or None -> [B, H, M, D]. packed
    [3, B, H, M, D]: the tensor of q, k and v, where they lie in one; it is then copied at once.

    The logarithm is the kernel's mask where it needs no gradient and has q's dtype. Elsewhere a mask would
    cost the fused kernel or the precision, so the logarithm becomes extra channels of the key, against ones
    in the query.
    """
    if size is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
    # under CUDA's autocast the norms of queries and keys return float32, and the kernel would round the mask
    q, k = q.to(v.dtype), k.to(v.dtype)
    needs_grad = size.requires_grad and torch.is_grad_enabled()
    if q.dtype == size.dtype and not needs_grad:
        mask = log_size(size)[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    dim = q.shape[-1]
    pad = partial(F.pad, pad=(0, 2 + -(dim + 2) % 8), value=1.0)
    padded = pad(packed) if packed is not None else [pad(x) for x in (q, k, v)]
    _write_bias(padded[1][..., dim:], log_size(size, 1 / scale))
    return F.scaled_dot_product_attention(*padded, dropout_p=dropout, scale=scale)[..., :dim]


def _write_bias(channels: Tensor, bias: Tensor) -> None:
    """Writes the bias [B, M] into the first two channels [B, H, M, 2 or more] of the keys, rounded, and what
    rounding left: bfloat16 then keeps about 16 bits of it.

    All others are ones, which make a multiple of 8 channels for the GPU kernels. They are the same for all
    keys, and so cancel in the softmax; the channels of the values are cut off.
    """
    channels[..., 0] = bias[:, None]
    channels[..., 1] = (bias - channels[:, 0, :, 0]).detach()[:, None]


def reference_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, *, scale: float) -> Tensor:
    """`proportional_attention` by its definition, for tests: softmax weights times size, renormalised, in
    float32 or wider."""
    logits = (widened(q) @ widened(k).mT) * scale
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    if size is not None:
        weights = weights * size[:, None, None, :]
    return (weights / weights.sum(dim=-1, keepdim=True)) @ widened(v)


def attend(
    attn: Attention, x: Tensor, size: Tensor | None, *, exact: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs `attn`, timm's Attention, with sizes. x [B, M, C], size [B, M] or None -> output [B, M, C],
    queries and keys [B, H, M, D].

    exact: round as the authors' release does, without attention dropout; see `exact_attention`.
    """
    batch, num_tokens, _ = x.shape
    qkv = attn.qkv(x).reshape(batch, num_tokens, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    packed = qkv if isinstance(attn.q_norm, nn.Identity) and isinstance(attn.k_norm, nn.Identity) else None
    q, k = attn.q_norm(q), attn.k_norm(k)
    dropout = attn.attn_drop.p if attn.training else 0.0
    if exact:
        size = torch.ones(batch, num_tokens, dtype=wide(x.dtype), device=x.device) if size is None else size
        mixed = exact_attention(q, k, v, size, scale=attn.scale)
    else:
        mixed = proportional_attention(q, k, v, size, scale=attn.scale, dropout=dropout, packed=packed)
    mixed = attn.norm(mixed.transpose(1, 2).reshape(batch, num_tokens, attn.attn_dim))
    if attn.gate is not None:
        mixed = mixed * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(mixed)), q, k
