"""What a model's config states of its blocks where shapes do not tell it: the heads and the activation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbone.backbone import Backbone
from pipeline.backbone.vit import MergingViT
from pipeline.errors import CheckpointError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * (1.702 * x).sigmoid(),
    "silu": F.silu,
    "relu": F.relu,
}
"""timm's name of an activation -> the function."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """Heads and activation of a checkpoint's model; None where its config does not say."""

    heads: int | None = None
    activation: str | None = None
    """A name in ACTIVATIONS."""


def check_stated(stated: Stated, backbone: Backbone) -> None:
    """Raises CheckpointError where the backbone has other heads or another activation."""
    if not isinstance(backbone, MergingViT):
        return
    block = next(iter(backbone.blocks))
    own = block.heads[0]
    if stated.heads not in (None, own):
        raise CheckpointError(
            f"the checkpoint's model has {stated.heads} heads, the backbone {own}; give backbone.options "
            f"num_heads={stated.heads}"
        )
    act, x, wanted = _activation_of(block), torch.linspace(-3, 3, 7), stated.activation
    if act is None or wanted is None:
        return
    values = act(x)
    if not torch.allclose(values, ACTIVATIONS[wanted](x), atol=1e-5):
        with_or_without = "with" if wanted == "quick_gelu" else "without"
        quick = torch.allclose(values, ACTIVATIONS["quick_gelu"](x), atol=1e-5) or wanted == "quick_gelu"
        name = f", or the timm name {with_or_without} 'quickgelu'" if quick else ""
        raise CheckpointError(
            f"the checkpoint's model has the activation {wanted}, the backbone another; give "
            f"backbone.options act_layer='{wanted}'{name}"
        )


def _activation_of(block: nn.Module) -> nn.Module | None:
    """The activation of the block's MLP; None for a block without a part of that name."""
    return next((part for name, part in block.named_modules() if name == "mlp.act"), None)
