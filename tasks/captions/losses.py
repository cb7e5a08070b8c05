"""CoCa's losses over all ranks. Where each rank has a part of a batch, the mean of the losses and of the
gradients over ranks is that of one rank with the whole batch.

All ranks have to call them. B captions of this rank, L words, V vocabulary, E embedding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.objectives.contrast import (
    Blend,
    check_equal,
    gathered,
    instance_loss,
    own_places,
    products,
)
from pipeline.ranks import Processes, mean_over_ranks


def caption_loss(logits: Tensor, labels: Tensor, pad: int, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the words, a scalar. logits [B, L, V] float32, labels int64 [B, L]; labels `pad`
    are no words."""
    total = F.cross_entropy(
        logits.flatten(0, 1),
        labels.flatten(),
        ignore_index=pad,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return mean_over_ranks(total, (labels != pad).sum())


def contrastive_loss(
    image: Tensor, text: Tensor, scale: Tensor, views: int = 1, blend: Blend | None = None
) -> Tensor:
    """CLIP's loss, a scalar: of this rank's images among all captions, and its captions among all images.
    image, text [B, E] float32 of norm 1. views: number of neighbours that belong to one sample, which are not
    compared with one another. blend: how the images were mixed, whose labels are mixed likewise; None: they
    were not."""
    ranks = Processes(image.device)
    check_equal(len(image), ranks)
    labels = own_places(len(image), image.device)
    image_to_text = scale * products(image, gathered(text))
    text_to_image = scale * products(text, gathered(image))
    if views > 1:
        others = _other_views(labels, image_to_text.shape[1], views)
        image_to_text, text_to_image = (
            logits.masked_fill(others, -torch.inf) for logits in (image_to_text, text_to_image)
        )
    of_images = instance_loss(image_to_text, labels, blend)
    return (of_images + instance_loss(text_to_image, labels, blend, of_keys=True)) / 2


def _other_views(own: Tensor, count: int, views: int) -> Tensor:
    """Mask [B, count] bool of the other views of the samples of images own [B], among `count` images."""
    every = torch.arange(count, device=own.device)
    return (own[:, None] // views == every // views) & (own[:, None] != every)


class _BelowCeiling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, ceiling: float) -> Tensor:
        ctx.save_for_backward(value > ceiling)
        return value.clamp(max=ceiling)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (above,) = ctx.saved_tensors
        return torch.where(above, grads[0].clamp(min=0), grads[0]), None


def below(value: Tensor, ceiling: float) -> Tensor:
    """The value, at most the ceiling. Above it only gradients that make the value smaller pass, so that it
    comes back. CLIP clamps its parameter after each step instead, which ZeRO's master weights do not
    allow."""
    return _BelowCeiling.apply(value, ceiling)  # pyright: ignore[reportReturnType]


def normalised(features: Tensor | None) -> Tensor:
    """The features [B, E] in float32, divided by their norm."""
    assert features is not None
    return F.normalize(features.float(), dim=-1)
