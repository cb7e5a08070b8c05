"""Linear layers and MLPs of a frozen backbone in training on a CPU: oneDNN's kernels in both directions.

A weight is brought into oneDNN's layout in each call, which is little beside the rows of a batch. So no copy
of it is kept, and none can be stale. For the backward pass a layer keeps its weight alone, and an MLP the
input of its GELU. R rows, C channels, F channels of the output, or hidden ones of an MLP.
"""

# pyright: reportIncompatibleMethodOverride=false, reportPrivateUsage=false
# a function of autograd names its own arguments; torch has no public door to oneDNN's packed weights

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FEWEST_ROWS = 1024
"""Rows of an input from which on another layout of the weight pays."""
CHUNK = 1 << 21
"""Numbers of the hidden layer of an MLP that are computed at once, so that a processor's cache holds them."""


class FrozenLinear(torch.autograd.Function):
    """x [..., C], weight [F, C] and bias [F] or None -> [..., F]. Only x has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, _packed(weight), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return FrozenLinear.apply(grad, weight.t(), None), None, None


class FrozenMLP(torch.autograd.Function):
    """x [R, C] -> [R, C], through a layer of weight [F, C], GELU and a layer of weight [C, F]. Only x has a
    gradient. Behind the result it returns the inputs of the GELU [R, F], in parts; a second derivative goes
    through them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: Tensor, bias: Tensor | None, last: Tensor, last_bias: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        up, down = _packed(first), _packed(last)
        hidden = [_product(rows, up, bias) for rows in x.split(_rows_of(first))]
        output = torch.cat([_product(F.gelu(rows), down, last_bias) for rows in hidden])
        ctx.save_for_backward(first, last, *hidden)
        return output, *hidden

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *of_hidden: Tensor | None) -> tuple[Tensor | None, ...]:
        first, last, *hidden = ctx.saved_tensors
        if torch.is_grad_enabled() or grad is None or any(part is not None for part in of_hidden):
            of_x = _gradient_with_graph(grad, of_hidden, first, last, hidden)
        else:
            up, down = _packed(first.t()), _packed(last.t())
            parts = zip(grad.split(_rows_of(first)), hidden, strict=True)
            of_x = torch.cat([_gradient(rows, before, up, down) for rows, before in parts])
        return of_x, None, None, None, None


def frozen_mlp(
    x: Tensor, first: Tensor, bias: Tensor | None, last: Tensor, last_bias: Tensor | None
) -> Tensor:
    """`FrozenMLP` for x [..., C]."""
    output, *_ = FrozenMLP.apply(x.flatten(0, -2), first, bias, last, last_bias)
    return output.view_as(x)


def _gradient(grad: Tensor, hidden: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The gradient [R, C] of an MLP's input from that of its output. The one of the hidden layer is written
    over itself, as it is the largest."""
    of_hidden = _product(grad, down)
    torch.ops.aten.gelu_backward.grad_input(of_hidden, hidden, grad_input=of_hidden)
    return _product(of_hidden, up)


def _gradient_with_graph(
    grad: Tensor | None,
    of_hidden: Sequence[Tensor | None],
    first: Tensor,
    last: Tensor,
    hidden: Sequence[Tensor],
) -> Tensor:
    """The same where it is differentiated once more, or is a second derivative."""
    parts = zip(of_hidden, hidden, strict=True)
    total = torch.cat([torch.zeros_like(before) if part is None else part for part, before in parts])
    if grad is not None:
        behind = FrozenLinear.apply(grad, last.t(), None)
        total = total + torch.ops.aten.gelu_backward(behind, torch.cat(list(hidden)))
    return FrozenLinear.apply(total, first.t(), None)


def _rows_of(first: Tensor) -> int:
    return max(1, CHUNK // len(first))


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def _product(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), packed, bias, "none", [], "")
