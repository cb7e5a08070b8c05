"""How much each key counts in the softmax: the logarithm of its token's size, and a bias.

B batch, M tokens, H heads.
"""

from typing import Any, cast

import torch
from torch import Tensor

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
    if not (torch.is_grad_enabled() and size.requires_grad):
        logarithm = size.clamp(min=SMALLEST_SIZE).log()
        return logarithm if factor == 1.0 else logarithm * factor
    return cast(Tensor, _LogSize.apply(size, factor))


def weight_of_keys(size: Tensor | None, bias: Tensor | None, factor: float = 1.0) -> Tensor:
    """[B, 1 or H, M]: factor * (log size + bias)."""
    of_size = None if size is None else log_size(size, factor)[:, None]
    if bias is None:
        assert of_size is not None
        return of_size
    return bias * factor if of_size is None else of_size + bias * factor
