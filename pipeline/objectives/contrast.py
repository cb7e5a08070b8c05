"""Contrast of queries with the keys of all ranks, where the label of a query is the place of its own key.

Where each rank has a part of a batch, the mean of the losses and of the gradients over ranks is that of one
rank with the whole batch. All ranks have to call them. B queries of this rank, K keys of all ranks, E
embedding.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.ranks import Processes, Ranks


@dataclass(frozen=True)
class Blend:
    """How the images of a batch were mixed with one another (i-Mix). share: of the image itself, in [0.5, 1].
    shift: the partner of image i is image (i + shift) mod B of the same rank."""

    share: float
    shift: int

    def mixed(self, images: Tensor) -> Tensor:
        """The images [B, ...], each with the rest of its partner."""
        if self.share == 1:
            return images
        return images.lerp(images.roll(-self.shift, 0), 1 - self.share)


def instance_loss(
    logits: Tensor, own: Tensor, blend: Blend | None = None, *, of_keys: bool = False
) -> Tensor:
    """The mean cross-entropy of the virtual labels, a scalar. logits [B, K]; own int64 [B]: the place of the
    own key among those of all ranks. blend: how the queries were mixed, whose labels are mixed likewise; with
    `of_keys`, how the keys were."""
    loss = F.cross_entropy(logits, own)
    if blend is None or blend.share == 1:
        return loss
    # which query has this key in it is the way back of which key is in this query
    other = F.cross_entropy(logits, own.roll(blend.shift if of_keys else -blend.shift))
    return blend.share * loss + (1 - blend.share) * other


def own_places(count: int, device: torch.device) -> Tensor:
    """int64 [B]: where the vectors of this rank stand among those of all ranks."""
    first = Processes(device).rank * count
    return torch.arange(first, first + count, device=device)


def products(queries: Tensor, keys: Tensor) -> Tensor:
    """Products [B, K] of queries [B, E] and keys [K, E], in float32 also under autocast: bfloat16 has steps
    of a half near 100."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ keys.mT


def gathered(features: Tensor) -> Tensor:
    """The features of all ranks [ranks * B, E], with a gradient to each rank's. B is the same on all
    ranks."""
    return _Gather.apply(features)  # pyright: ignore[reportReturnType]


def check_equal(size: int, ranks: Ranks) -> None:
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
