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
from torch.nn import functional as F

from pipeline.token_state import widened


class ExactAttention(torch.autograd.Function):
    """softmax over keys j of scale * q k^T, each weight times size_j. packed [3, B, H, M, D] is q, k and v;
    size [B, M]; one dtype -> [B, H, M, D], in whose memory the channels of a token lie side by side. So do
    the gradients of q, k and v, and the layers before and behind copy neither. Only the first `queries` rows
    of q count, and the result has as many."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, size: Tensor, scale: float, queries: int) -> Tensor:
        _, batch, heads, _, dim = packed.shape
        output = packed.new_empty(batch, queries, heads, dim).transpose(1, 2)
        normaliser = packed.new_empty(batch, heads, queries, 1)
        for some in _parts(size):
            q, k, v = packed[:, some].contiguous()
            logits = (q[:, :, :queries] * scale) @ k.mT
            highest = logits.amax(dim=-1, keepdim=True)
            exponentials = logits.sub_(highest).exp_().mul_(size[some, None, None, :])
            total = exponentials.sum(dim=-1, keepdim=True)
            output[some] = exponentials.div_(total) @ v
            normaliser[some] = highest + total.log()
        ctx.save_for_backward(packed, size, normaliser)
        ctx.scale, ctx.queries = scale, queries
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        packed, size, normaliser = ctx.saved_tensors
        _, batch, heads, num_tokens, dim = packed.shape
        of_packed = packed.new_empty(batch, num_tokens, 3, heads, dim).permute(2, 0, 3, 1, 4)
        of_size = torch.empty_like(size)
        for some in _parts(size):
            q, k, v = packed[:, some].contiguous()
            own = (grad[some].contiguous(), q[:, :, : ctx.queries], k, v, size[some], normaliser[some])
            of_q, of_packed[1, some], of_packed[2, some], of_size[some] = _gradients(*own, scale=ctx.scale)
            of_packed[0, some, :, : ctx.queries], of_packed[0, some, :, ctx.queries :] = of_q, 0.0
        return of_packed, of_size, None, None


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


def exact_attention(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor, *, scale: float, packed: Tensor | None = None
) -> Tensor:
    """`proportional_attention` in the release's order of operations, also under autocast; has q's dtype.
    q [B, H, N, D], N <= M: rows of the first tokens. packed [3, B, H, M, D]: the tensor in which q, k and v
    lie, where they lie in one."""
    queries = q.shape[2]
    if packed is None:
        padded = F.pad(q, (0, 0, 0, k.shape[2] - queries))
        packed = torch.stack([widened(x) for x in (padded, k, v)])
    with torch.autocast(q.device.type, enabled=False):
        return ExactAttention.apply(widened(packed), size, scale, queries).to(q.dtype)
