"""The metric embedding of tokens that a norm made, in training: the backward pass computes the norm again.

The gradient of the embedding's weight reads the tokens after the norm. The norm's own gradient keeps those
before it, so nothing else has to be kept. B batch, M tokens, C channels, F of the embedding.
"""

# pyright: reportIncompatibleMethodOverride=false
# a function of autograd names its own arguments

from typing import Any

import torch
from timm.layers.norm import LayerNorm
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbone.metric import EmbeddingPerTask, MetricEmbedding, beside_of
from pipeline.backbone.packed_linear import bare, in_plain_training


def embed_normed(
    metric: MetricEmbedding | EmbeddingPerTask, task: str | None, norm: nn.Module, before: Tensor, x: Tensor
) -> Tensor:
    """[B, M, F]: metric(x, task=task), where x [B, M, C] is norm(before), without its gradient."""
    known = beside_of(metric, task) if _can_compute_again(norm, x) else None
    if known is None:
        return metric(x, task=task)
    assert isinstance(norm, nn.LayerNorm)
    layer = known.layer()
    return _OfNormed.apply(
        before.detach(), x, layer["weight"], layer["bias"], norm.weight, norm.bias, norm.eps
    )


def _can_compute_again(norm: nn.Module, x: Tensor) -> bool:
    """Whether the norm is a plain one that does not learn, in the dtype of its weights."""
    return (
        type(norm) in (nn.LayerNorm, LayerNorm)
        and isinstance(norm, nn.LayerNorm)
        and not getattr(norm, "_fast_norm", False)
        and len(norm.normalized_shape) == 1
        and bare(norm)
        and all(
            type(parameter) is nn.Parameter and parameter.dtype == x.dtype for parameter in norm.parameters()
        )
        and not any(parameter.requires_grad for parameter in norm.parameters())
        and not torch.is_autocast_enabled(x.device.type)
        and in_plain_training()
    )


class _OfNormed(torch.autograd.Function):
    """A linear layer of x; what is kept is what x is the norm of."""

    @staticmethod
    def forward(
        ctx: Any,
        before: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        # copies: under FSDP a block's parameters may be gone before this gradient is taken
        copies = (None if part is None else part.clone() for part in (norm_weight, norm_bias))
        ctx.save_for_backward(before, *copies)
        ctx.eps = eps
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        before, norm_weight, norm_bias = ctx.saved_tensors
        x = F.layer_norm(before, before.shape[-1:], norm_weight, norm_bias, ctx.eps)
        rows = grad.flatten(0, -2)
        return None, None, rows.mT @ x.flatten(0, -2), rows.sum(dim=0), None, None, None
