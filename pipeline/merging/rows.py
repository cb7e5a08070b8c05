"""Tokens as rows of the flattened batch: taken, added, weighted, with little kept for the backward pass.

B batch, M tokens, K rows that are taken, E rows that are added.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available
from torch.autograd.function import once_differentiable

from pipeline.token_state import widened

SMALLEST_WEIGHT = 1e-20
"""Least divisor of a mean by `Assignment.weight`, as a part of the image's largest: their unit is free."""


def of_largest(weight: Tensor) -> Tensor:
    """weight [B, M], float32 or wider, as parts of the image's largest."""
    weight = widened(weight)
    return weight / weight.amax(dim=1, keepdim=True).clamp(min=SMALLEST_WEIGHT)


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """[B, K, ...]: the rows of values [B, M, ...] at index [B, K], which counts rows of the flattened batch.

    `index_select` copies whole rows: on a CPU about ten times as fast as `gather`, and twice as fast as
    indexing. It needs a flat index; a slice is indexed instead, as flattening would copy it.
    """
    flat = values.flatten(0, 1)
    if not index.is_contiguous():
        return flat[index]
    return flat.index_select(0, index.flatten()).view(*index.shape, *flat.shape[1:])


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """A context without autocast on a type of device. Leaving it out where there is none saves time."""
    on = is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def add_rows(values: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """values [B, M, ...] with rows [B, K, ...] added at index [B, K], which may repeat."""
    return values.flatten(0, 1).index_add(0, index.flatten(), rows.flatten(0, 1)).view_as(values)


def add_weighted_rows(into: Tensor, to: Tensor, values: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """into [B, N, ...] plus the rows [B, E] of values [B, M, ...], each times its weight [B, E], at `to`
    [B, E]. Differentiable in all but the indices.

    The sum has the wider dtype of values and weights. Nothing with a row per edge is kept for the backward
    pass, as a relaxed merge has more edges than tokens; there is no second derivative.
    """
    dtype = torch.promote_types(values.dtype, weight.dtype)
    into, values = into.to(dtype), values.to(dtype)
    flat = (into.flatten(0, 1), to.flatten(), values.flatten(0, 1), rows.flatten(), weight.flatten())
    return _AddWeightedRows.apply(*flat).view_as(into)


class _AddWeightedRows(torch.autograd.Function):
    """Autograd function of `add_weighted_rows`, with batch and tokens in one dimension."""

    @staticmethod
    def forward(ctx: Any, into: Tensor, to: Tensor, values: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(to, values, rows, weight)
        return into.index_add(0, to, values.index_select(0, rows) * per_row(weight, values))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None, None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        to, values, rows, weight = ctx.saved_tensors
        arrived = grad.index_select(0, to)
        of_weight = (values.index_select(0, rows) * arrived).reshape(len(weight), -1).sum(dim=-1)
        of_values = None
        if ctx.needs_input_grad[2]:
            of_values = torch.zeros_like(values).index_add_(0, rows, arrived * per_row(weight, values))
        return grad, None, of_values, None, of_weight


def quotient(total: Tensor, whole: Tensor) -> Tensor:
    """total [B, K, ...] over whole [B, K]. Differentiable once.

    The result is kept for the backward pass, and not the total: the next layer keeps the result as well.
    """
    return _Quotient.apply(total, whole)


class _Quotient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, whole: Tensor) -> Tensor:
        quotient = total / per_row(whole, total)
        ctx.save_for_backward(quotient, whole)
        return quotient

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        quotient, whole = ctx.saved_tensors
        of_total = grad / per_row(whole, grad)
        of_whole = None
        if ctx.needs_input_grad[1]:
            of_whole = -(of_total * quotient).reshape(*whole.shape, -1).sum(dim=-1)
        return of_total, of_whole


def per_row(weight: Tensor, values: Tensor) -> Tensor:
    """A weight for each row, [B, M] or [M], made to be multiplied with values [B, M, ...] or [M, ...]."""
    return weight.reshape(*weight.shape, *(1 for _ in values.shape[weight.ndim :]))
