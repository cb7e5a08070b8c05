"""Attention in which a token counts as often as the patches it holds (proportional attention, ToMe section
3.2).

B batch, M tokens, H heads, D channels per head.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.backbone.exact_attention import exact_attention
from pipeline.token_state import wide, widened

SMALLEST_SIZE = 1e-20
"""A token of size 0 attends like one of this size: even a logit 30 above all others does not show in the
forward pass, and the gradient to the size stays finite, as the weight that it multiplies is as small as its
inverse is large."""


class _LogSize(torch.autograd.Function):
    """See `log_size`."""

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

    Its gradient reaches `size` also where it is 0. There nothing would bound it: such a token is no part of
    the softmax, so that a logit 30 above the others' is a factor e^30. It is cut to what the logarithms of
    all live tokens of the image receive together: about as much as a token of size 1 can receive as a part of
    the softmax.
    """
    return cast(Tensor, _LogSize.apply(size, factor))


def proportional_attention(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, *, scale: float, dropout: float = 0.0
) -> Tensor:
    """softmax(scale * q k^T + log size) v through PyTorch's fused kernels.

    q, k, v [B, H, M, D]; size [B, M], float32 (float64 with q in float64), or None. A mask that needs a
    gradient, or a bfloat16 mask, would cost the fused kernel or the precision. There the logarithm rides
    along as extra channels of the key instead, against ones in the query.
    """
    if size is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
    # norms of queries and keys give float32 under CUDA's autocast, in which the kernel would round the mask
    q, k = q.to(v.dtype), k.to(v.dtype)
    needs_grad = size.requires_grad and torch.is_grad_enabled()
    if q.dtype == size.dtype and not needs_grad:
        mask = log_size(size)[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    dim = q.shape[-1]
    q, k, v = _with_bias_channels(q, k, v, log_size(size, 1 / scale))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)[..., :dim]


def _with_bias_channels(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Appends the bias to k and ones to q; pads all three to a multiple of 8 channels, which the GPU kernels
    want.

    The bias is split into a rounded part and its remainder, so that bfloat16 keeps about 16 bits of it. What
    fills up the channels is the same for all keys, and so cancels in the softmax.
    """
    rounded = bias.to(k.dtype)
    remainder = (bias - rounded).detach().to(k.dtype)
    padding = -(k.shape[-1] + 2) % 8
    channels = [rounded, remainder, *[rounded[:, :1].detach().expand_as(rounded)] * padding]
    keys = [k, *(channel[:, None, :, None].expand(-1, k.shape[1], -1, -1) for channel in channels)]
    return F.pad(q, (0, len(channels)), value=1.0), torch.cat(keys, dim=-1), F.pad(v, (0, len(channels)))


def reference_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, *, scale: float) -> Tensor:
    """The same by its definition, softmax weights times size, renormalised, in float32 or wider: for
    tests."""
    logits = (widened(q) @ widened(k).mT) * scale
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    if size is not None:
        weights = weights * size[:, None, None, :]
    return (weights / weights.sum(dim=-1, keepdim=True)) @ widened(v)


def attend(
    attn: Any, x: Tensor, size: Tensor | None, *, exact: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """timm's Attention, `attn`, with sizes. x [B, M, C], size [B, M] or None -> output [B, M, C], queries and
    keys [B, H, M, D].

    exact: round as the authors' release does (attention dropout excluded); see `exact_attention`.
    """
    batch, num_tokens, _ = x.shape
    qkv = attn.qkv(x).reshape(batch, num_tokens, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    dropout = attn.attn_drop.p if attn.training else 0.0
    if exact:
        size = torch.ones(batch, num_tokens, dtype=wide(x.dtype), device=x.device) if size is None else size
        mixed = exact_attention(q, k, v, size, scale=attn.scale)
    else:
        mixed = proportional_attention(q, k, v, size, scale=attn.scale, dropout=dropout)
    mixed = attn.norm(mixed.transpose(1, 2).reshape(batch, num_tokens, attn.attn_dim))
    if attn.gate is not None:
        mixed = mixed * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(mixed)), q, k
