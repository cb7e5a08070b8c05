"""CoCa's losses, over all ranks: ranks with a part of a batch each have, on average, the loss and the
gradient of one with the whole.

Called by every rank, or none. B captions of this rank, L words, V vocabulary, E embedding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.ranks import Processes, Ranks, mean_over_ranks


def caption_loss(logits: Tensor, labels: Tensor, pad: int, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the words. logits [B, L, V] float32, labels [B, L]; where the label is `pad`,
    there is no word."""
    total = F.cross_entropy(
        logits.flatten(0, 1),
        labels.flatten(),
        ignore_index=pad,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return mean_over_ranks(total, (labels != pad).sum())


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, views: int = 1) -> Tensor:
    """CLIP's: this rank's images among all captions, and its captions among all images. image, text [B, E] of
    norm 1, float32; of each sample `views` of them, side by side, which are not told from one another."""
    ranks = Processes(image.device)
    _check_equal(len(image), ranks)
    first = ranks.rank * len(image)
    labels = torch.arange(first, first + len(image), device=image.device)
    image_to_text, text_to_image = (
        scale * products(image, gathered(text)),
        scale * products(text, gathered(image)),
    )
    if views > 1:
        others = _other_views(labels, image_to_text.shape[1], views)
        image_to_text, text_to_image = (
            logits.masked_fill(others, -torch.inf) for logits in (image_to_text, text_to_image)
        )
    return (F.cross_entropy(image_to_text, labels) + F.cross_entropy(text_to_image, labels)) / 2


def _other_views(own: Tensor, count: int, views: int) -> Tensor:
    """own [B], numbers of images -> [B, count] bool: which of `count` images are other views of their
    samples."""
    every = torch.arange(count, device=own.device)
    return (own[:, None] // views == every // views) & (own[:, None] != every)


def products(queries: Tensor, keys: Tensor) -> Tensor:
    """[Q, E] and [K, E], float32 -> [Q, K] in float32 also under autocast: near 100, logits in bfloat16 have
    steps of a half."""
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
    """At most the ceiling. Above it a gradient passes that leads down and none that leads up, so that the
    value comes back: what CLIP reaches by changing its parameter after each step, at any ZeRO stage, whose
    master weights nobody else may change."""
    return _BelowCeiling.apply(value, ceiling)  # pyright: ignore[reportReturnType]


def normalised(features: Tensor | None) -> Tensor:
    """[B, E] float32, of norm 1."""
    assert features is not None
    return F.normalize(features.float(), dim=-1)


def gathered(features: Tensor) -> Tensor:
    """[ranks * B, E], with a gradient to every rank's; equally many of each."""
    return _Gather.apply(features)  # pyright: ignore[reportReturnType]


def _check_equal(size: int, ranks: Ranks) -> None:
    """Raises RuntimeError on every rank where ranks have batches of different sizes, for which backends hang
    or end the process. A GPU is not waited for: it raises when it comes to it."""
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
