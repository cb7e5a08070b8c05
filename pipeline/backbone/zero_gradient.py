"""What a pass computes but no result depends on."""

# pyright: reportIncompatibleMethodOverride=false
# a function of autograd names its own arguments

from typing import Any, cast

import torch
from torch import Tensor


def with_zero_gradient(x: Tensor, other: Tensor) -> Tensor:
    """x. In its backward pass the other tensor has a gradient of zeros, and not none: an optimizer tells a
    parameter whose gradient is zero from one that was not used."""
    return cast(Tensor, _Beside.apply(x, other))


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor) -> Tensor:
        ctx.save_for_backward(other)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.zeros_like(ctx.saved_tensors[0])
