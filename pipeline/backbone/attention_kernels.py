"""The ways to compute attention with weights of keys, and which one is taken.

B batch, H heads, N queries, M keys, D channels per head.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.backbone.key_weights import weight_of_keys
from pipeline.kernels.choice import (
    AUTO,
    INTERPRETED,
    Results,
    asked,
    classes,
    close,
    fastest,
    is_measured,
    takes_triton,
)
from pipeline.kernels.ops import MOST_CHANNELS, attend_by_weight
from pipeline.merging.rows import without_autocast

VARIABLE = "DTEM_ATTENTION"


@dataclass(frozen=True)
class Operands:
    """What attention reads; see `proportional_attention`. size or bias is there; q, k and v have one
    dtype."""

    q: Tensor
    k: Tensor
    v: Tensor
    size: Tensor | None
    bias: Tensor | None
    packed: Tensor | None
    scale: float
    dropout: float = 0.0

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return tuple(x for x in (self.size, self.bias) if x is not None)

    @property
    def weights_learn(self) -> bool:
        return torch.is_grad_enabled() and any(x.requires_grad for x in self.weights)

    @property
    def learns(self) -> bool:
        leaves = (self.q, self.k, self.v, *self.weights)
        return torch.is_grad_enabled() and any(x.requires_grad for x in leaves)


def masked(x: Operands) -> Tensor:
    """By the mask [B, 1 or H, 1, M] of PyTorch's kernel, which never becomes [B, H, N, M]. A gradient of the
    weights would."""
    mask = weight_of_keys(x.size, x.bias)[:, :, None]
    with without_autocast(x.q.device.type):  # it would round the mask
        return F.scaled_dot_product_attention(
            x.q, x.k, x.v, attn_mask=mask, dropout_p=x.dropout, scale=x.scale
        )


def with_channels(x: Operands) -> Tensor:
    """By extra channels of the keys, against ones in the queries. Any of PyTorch's kernels takes them; q, k
    and v are copied."""
    dim = x.q.shape[-1]
    pad = partial(F.pad, pad=(0, 2 + -(dim + 2) % 8), value=1.0)
    padded = pad(x.packed) if x.packed is not None else [pad(y) for y in (x.q, x.k, x.v)]
    _write_bias(padded[1][..., dim:], weight_of_keys(x.size, x.bias, 1 / x.scale))
    return F.scaled_dot_product_attention(*padded, dropout_p=x.dropout, scale=x.scale)[..., :dim]


def _write_bias(channels: Tensor, bias: Tensor) -> None:
    """Writes the bias [B, 1 or H, M] into the first two channels [B, H, M, 2 or more] of the keys, rounded,
    and what rounding left: bfloat16 then keeps about 16 bits of it.

    All others are ones, which make a multiple of 8 channels for the GPU kernels. They are the same for all
    keys, and so cancel in the softmax; the channels of the values are cut off.
    """
    channels[..., 0] = bias
    channels[..., 1] = (bias - channels[:, : bias.shape[1], :, 0]).detach()


def by_flex(x: Operands) -> Tensor:
    """By PyTorch's flex_attention, compiled on a GPU. On a CPU it has no gradient."""
    from torch.nn.attention.flex_attention import flex_attention

    weight = weight_of_keys(x.size, None)[:, 0]

    def with_weight(score: Tensor, image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + weight[image, key]

    nested = torch.compiler.is_compiling() or not x.q.is_cuda
    run = flex_attention if nested else _compiled_flex()
    with without_autocast(x.q.device.type):
        return run(x.q, x.k, x.v, score_mod=with_weight, scale=x.scale)


@cache
def _compiled_flex() -> Callable[..., Any]:
    """One graph for all lengths; static ones would be compiled for each block."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def by_triton(x: Operands) -> Tensor:
    """By the kernel of `pipeline.kernels.attention`, which has no gradient."""
    return attend_by_weight(x.q, x.k, x.v, weight_of_keys(x.size, None)[:, 0], x.scale)


WAYS = {"mask": masked, "channels": with_channels, "flex": by_flex, "triton": by_triton}


def attend(x: Operands) -> Tensor:
    """Attention in the way that DTEM_ATTENTION names, or that is fastest here (docs/speed.md)."""
    return WAYS[_way(x)](x)


def _way(x: Operands) -> str:
    usual = "mask" if _keeps_mask(x) else "channels"
    if not x.q.is_cuda and not INTERPRETED:
        return usual
    named = asked(VARIABLE, tuple(WAYS))
    possible = _possible(x, usual)
    if named != AUTO:
        return named if named in possible else usual
    if not is_measured(x.q):
        return usual
    if not x.learns and "flex" in possible:
        possible.remove("flex")  # its compilation takes seconds, and the kernel of ours does the same
    if len(possible) == 1:
        return usual
    key = ("attention", x.learns, x.weights_learn, *classes(x.q.transpose(1, 2), x.k.transpose(1, 2)))
    return fastest(key, {name: partial(_trial, WAYS[name], x) for name in possible}, close, x.q)


def _keeps_mask(x: Operands) -> bool:
    """Whether a mask costs neither the fused kernel nor precision: one without gradient in q's dtype; on a
    CPU also in float32 beside queries in bfloat16, which its kernel does not round."""
    if x.weights_learn:
        return False
    on_cpu = x.q.device.type == "cpu" and x.q.dtype == torch.bfloat16 and x.dropout == 0.0
    return x.q.dtype == x.weights[0].dtype or on_cpu


def _possible(x: Operands, usual: str) -> list[str]:
    """The ways that compute this, the usual one first."""
    if x.size is None or x.bias is not None or x.dropout > 0.0 or torch.compiler.is_exporting():
        return [usual]
    if x.size.dtype != torch.float32:
        return [usual]
    ways = [usual, "channels"] if usual == "mask" else [usual]
    if x.q.is_cuda or not x.learns:
        ways.append("flex")
    if not x.learns and x.q.shape[-1] <= MOST_CHANNELS and takes_triton(x.q, x.k, x.v, x.size):
        ways.append("triton")
    return ways


def _trial(way: Callable[[Operands], Tensor], x: Operands) -> Results:
    """Output, and the gradients of all that learns, apart from the graph that is being recorded and from the
    hooks of activation checkpointing, which would take these tensors for those of the block."""
    if not x.learns:
        return (way(x),)
    x, leaves = _apart(x)
    with torch.autograd.graph.saved_tensors_hooks(lambda y: y, lambda y: y):
        output = way(x)
        return output.detach(), *torch.autograd.grad(output, leaves, output.detach())


def _apart(x: Operands) -> tuple[Operands, list[Tensor]]:
    """The operands with leaves of their own, and those that learn."""
    own = [y.detach().requires_grad_(y.requires_grad) for y in (x.q, x.k, x.v)]
    leaves, packed = own, None
    if x.packed is not None:
        packed = x.packed.detach().requires_grad_(x.packed.requires_grad)
        own, leaves = list(packed.unbind(0)), [packed]
    assert x.size is not None
    size = x.size.detach().requires_grad_(x.size.requires_grad)
    apart = replace(x, q=own[0], k=own[1], v=own[2], packed=packed, size=size)
    return apart, [y for y in (*leaves, size) if y.requires_grad]
