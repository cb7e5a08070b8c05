"""Random changes of the images of a batch, computed together on the device that the batch is on.

What is drawn for an image depends on its address alone (see `pipeline.data.augment.draws`). What a change
makes of an image does not depend on the others in the batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.changes import colours, moves, tables

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Images uint8 [N, 3, H, W] and values float32 [N, K] -> the changed images, uint8 [N, 3, H, W]."""

KERNELS: Mapping[str, Kernel] = {**tables.KERNELS, **colours.KERNELS, **moves.KERNELS}


@dataclass(frozen=True)
class Change:
    """A change of one image: the name of its kernel, and the numbers that were drawn for it."""

    kind: str
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Group:
    """N images that undergo a change of one kind together."""

    kind: str
    images: Tensor
    """int64 [N]: their places in the batch."""
    values: Tensor
    """float32 [N, K]"""


@dataclass(frozen=True)
class Changes:
    """The changes of a batch, in order."""

    groups: tuple[Group, ...]

    @classmethod
    def of(cls, drawn: Sequence[Sequence[Change]]) -> "Changes | None":
        """The changes of each image, in order. Returns None where no image has any."""
        groups = []
        for depth in range(max(map(len, drawn), default=0)):
            kinds: dict[str, list[int]] = {}
            for image, changes in enumerate(drawn):
                if depth < len(changes):
                    kinds.setdefault(changes[depth].kind, []).append(image)
            for kind, images in kinds.items():
                values = torch.tensor([drawn[image][depth].values for image in images], dtype=torch.float32)
                groups.append(Group(kind, torch.tensor(images), values))
        return cls(tuple(groups)) if groups else None

    def __call__(self, images: Tensor) -> Tensor:
        """The changed images, uint8 [B, 3, H, W], in new memory; of clips [B, T, 3, H, W] each frame
        undergoes the change of its clip. The host does not wait for the device. On a CPU one image is changed
        after the other, so that what is computed between stays in its caches."""
        images = images.clone()
        frames = math.prod(images.shape[1:-3])
        for group in self.groups:
            together = 1 if images.device.type == "cpu" else len(group.images)
            for places, values in zip(
                group.images.split(together), group.values.split(together), strict=True
            ):
                picked = images.index_select(0, places)
                each = values if frames == 1 else values.repeat_interleave(frames, dim=0)
                changed = KERNELS[group.kind](picked.reshape(-1, *images.shape[-3:]), each)
                images.index_copy_(0, places, changed.reshape(picked.shape))
        return images
