"""Proportional attention in the authors' own order of operations, in float32, with the weights recomputed in the backward pass.

The release's soft merge amplifies rounding: a difference of 1e-7 in the attention grows about tenfold per block, until two sizes
swap places in its sort. To train exactly what the release trains, the attention has to round as it does; a fused kernel does not.
Saving q, k, v and the output alone keeps the memory of a fused kernel. B batch, H heads, M tokens, D channels per head.
"""

from typing import Any

import torch
from torch import Tensor


class ExactAttention(torch.autograd.Function):
    """softmax over keys j of scale * q k^T, each weight multiplied by size_j; q, k, v [B, H, M, D], size [B, M], all float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, size: Tensor, scale: float) -> Tensor:
        exponentials = _exponentials(q, k, scale).mul_(size[:, None, None, :])
        total = exponentials.sum(dim=-1, keepdim=True)
        output = exponentials.div_(total) @ v
        ctx.save_for_backward(q, k, v, size, output)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        q, k, v, size, output = ctx.saved_tensors
        size = size[:, None, None, :]
        unsized = _exponentials(q, k, ctx.scale)
        unsized = unsized.div_((unsized * size).sum(dim=-1, keepdim=True))
        weights = unsized * size
        grad_v = weights.mT @ grad
        centred = (grad @ v.mT).sub_((grad * output).sum(dim=-1, keepdim=True))
        grad_size = unsized.mul_(centred).sum(dim=(1, 2))
        grad_logits = weights.mul_(centred)
        return (grad_logits @ k).mul_(ctx.scale), (grad_logits.mT @ q).mul_(ctx.scale), grad_v, grad_size, None


def _exponentials(q: Tensor, k: Tensor, scale: float) -> Tensor:
    logits = (q * scale) @ k.mT
    return logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_()


def exact_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor, *, scale: float) -> Tensor:
    """As `proportional_attention`, whatever autocast says; the result has q's dtype."""
    with torch.autocast(q.device.type, enabled=False):
        return ExactAttention.apply(q.float(), k.float(), v.float(), size, scale).to(q.dtype)
