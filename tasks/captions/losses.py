"""CoCa's losses over all ranks. Where each rank has a part of a batch, the mean of the losses and of the
gradients over ranks is that of one rank with the whole batch.

All ranks have to call them. B captions of this rank, L words, V vocabulary, E embedding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.ranks import Processes, Ranks, mean_over_ranks


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


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, views: int = 1) -> Tensor:
    """CLIP's loss, a scalar: of this rank's images among all captions, and its captions among all images.
    image, text [B, E] float32 of norm 1. views: number of neighbours that belong to one sample, which are not
    compared with one another."""
    ranks = Processes(image.device)
    _check_equal(len(image), ranks)
    first = ranks.rank * len(image)
    labels = torch.arange(first, first + len(image), device=image.device)
    image_to_text = scale * products(image, gathered(text))
    text_to_image = scale * products(text, gathered(image))
    if views > 1:
        others = _other_views(labels, image_to_text.shape[1], views)
        image_to_text, text_to_image = (
            logits.masked_fill(others, -torch.inf) for logits in (image_to_text, text_to_image)
        )
    return (F.cross_entropy(image_to_text, labels) + F.cross_entropy(text_to_image, labels)) / 2


def _other_views(own: Tensor, count: int, views: int) -> Tensor:
    """Mask [B, count] bool of the other views of the samples of images own [B], among `count` images."""
    every = torch.arange(count, device=own.device)
    return (own[:, None] // views == every // views) & (own[:, None] != every)


def products(queries: Tensor, keys: Tensor) -> Tensor:
    """Products [Q, K] of queries [Q, E] and keys [K, E], in float32 also under autocast: bfloat16 has steps
    of a half near 100."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ keys.mT


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


def gathered(features: Tensor) -> Tensor:
    """The features of all ranks [ranks * B, E], with a gradient to each rank's. B is the same on all
    ranks."""
    return _Gather.apply(features)  # pyright: ignore[reportReturnType]


def _check_equal(size: int, ranks: Ranks) -> None:
    """Raises RuntimeError on every rank where batches differ in size, as backends would hang or end the
    process. The host does not wait for a GPU, which raises later."""
    if ranks.world_size > 1:
        sizes = ranks.gather(torch.full((), size, device=ranks.device))
        same = (sizes == size).all()
        torch._assert_async(same, f"contrastive loss: a rank has another batch size than this one's {size}")  # pyright: ignore


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return Processes(features.device).gather(features).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        ranks = Processes(grads[0].device)
        return ranks.all_reduce(grads[0].contiguous().clone()).chunk(ranks.world_size)[ranks.rank]
