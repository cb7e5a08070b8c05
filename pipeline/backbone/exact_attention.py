"""Proportional attention in the authors' own order of operations, in float32 or wider. The backward pass
recomputes the weights.

The release's soft merge amplifies rounding: a difference of 1e-7 in the attention grows about tenfold per
block, until two sizes swap places in its sort. To train exactly what the release trains, the attention has to
round as it does; a fused kernel does not. Only q, k, v and a number for each query are saved: less than a
fused kernel saves. B batch, H heads, M tokens, D channels per head.
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
        output, normaliser = torch.empty_like(q), q.new_empty(*q.shape[:-1], 1)
        for some in _parts(q):
            logits = (q[some] * scale) @ k[some].mT
            highest = logits.amax(dim=-1, keepdim=True)
            exponentials = logits.sub_(highest).exp_().mul_(size[some, None, None, :])
            total = exponentials.sum(dim=-1, keepdim=True)
            output[some] = exponentials.div_(total) @ v[some]
            normaliser[some] = highest + total.log()
        ctx.save_for_backward(q, k, v, size, normaliser)
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors
        parts = [_gradients(*(x[some] for x in (grad, *saved)), scale=ctx.scale) for some in _parts(grad)]
        of_q, of_k, of_v, of_size = (torch.cat(part) for part in zip(*parts, strict=True))
        return of_q, of_k, of_v, of_size, None


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, size: Tensor, normaliser: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A weight is size_j * unsized_ij. The sizes multiply [M, D] factors, which is cheaper than [M, M] and
    right at size 0."""
    of_key = size[:, None, :, None]
    unsized = ((q * scale) @ k.mT).sub_(normaliser).exp_()
    grad_v = (unsized.mT @ grad).mul_(of_key)
    centred = grad @ v.mT
    mean = (unsized * centred) @ of_key
    grad_unsized = unsized.mul_(centred.sub_(mean))
    grad_q = (grad_unsized @ (k * of_key)).mul_(scale)
    grad_k = (grad_unsized.mT @ q).mul_(of_key * scale)
    return grad_q, grad_k, grad_v, grad_unsized.sum(dim=(1, 2))


def _parts(x: Tensor) -> list[slice]:
    """Images that are computed at once: on a CPU each one by itself, as [H, M, M] then stays in its cache."""
    one_by_one = x.device.type == "cpu" and not torch.compiler.is_compiling()
    return [slice(i, i + 1) for i in range(len(x))] if one_by_one else [slice(None)]


def exact_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor, *, scale: float) -> Tensor:
    """`proportional_attention` in the release's order of operations, also under autocast; has q's dtype."""
    with torch.autocast(q.device.type, enabled=False):
        return ExactAttention.apply(widened(q), widened(k), widened(v), size, scale).to(q.dtype)
