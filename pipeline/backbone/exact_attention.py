"""Proportional attention in the authors' own order of operations, in float32 or wider. The backward pass
recomputes the weights.

The release's soft merge amplifies rounding: a difference of 1e-7 in the attention grows about tenfold per
block, until two sizes swap places in its sort. To train exactly what the release trains, the attention has to
round as it does; a fused kernel does not. Only q, k, v and the output are saved, so that memory is that of a
fused kernel. B batch, H heads, M tokens, D channels per head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.token_state import widened


class ExactAttention(torch.autograd.Function):
    """softmax over keys j of scale * q k^T, each weight times size_j; q, k, v [B, H, M, D], size [B, M], one
    dtype."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, size: Tensor, scale: float) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        logits = (q * scale) @ k.mT
        highest = logits.amax(dim=-1, keepdim=True)
        exponentials = logits.sub_(highest).exp_().mul_(size[:, None, None, :])
        total = exponentials.sum(dim=-1, keepdim=True)
        output = exponentials.div_(total) @ v
        ctx.save_for_backward(q, k, v, size, output, highest + total.log())
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A weight is size_j * unsized_ij. The sizes multiply [M, D] factors, which is cheaper than [M, M]
        and right at size 0."""
        q, k, v, size, output, normaliser = ctx.saved_tensors
        of_key = size[:, None, :, None]
        unsized = ((q * ctx.scale) @ k.mT).sub_(normaliser).exp_()
        grad_v = (unsized.mT @ grad).mul_(of_key)
        centred = (grad @ v.mT).sub_((grad * output).sum(dim=-1, keepdim=True))
        grad_unsized = unsized.mul_(centred)
        grad_q = (grad_unsized @ (k * of_key)).mul_(ctx.scale)
        grad_k = (grad_unsized.mT @ q).mul_(of_key * ctx.scale)
        return grad_q, grad_k, grad_v, grad_unsized.sum(dim=(1, 2)), None


def exact_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor, *, scale: float) -> Tensor:
    """`proportional_attention` in the release's order of operations, also under autocast; has q's dtype."""
    with torch.autocast(q.device.type, enabled=False):
        return ExactAttention.apply(widened(q), widened(k), widened(v), size, scale).to(q.dtype)
