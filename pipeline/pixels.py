"""Normalisation of stored pixels, on the device that computes. B images of H x W pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pipeline.changes.changes import Changes

Colour = tuple[float, float, float]
Box = tuple[int, int, int, int, int]
"""The position of an image in its batch, and top, left, height and width of a rectangle in it."""


@dataclass(frozen=True)
class Patch:
    """Pixels that replace a rectangle of one image."""

    top: int
    left: int
    values: Tensor
    """float32 [3, height, width], normalised."""


@dataclass(frozen=True)
class Noise:
    """The patches of a batch."""

    boxes: tuple[Box, ...]
    values: Tensor
    """float32, flat: the values of box after box, each [3, height, width]."""

    @classmethod
    def of(cls, patches: Sequence[Sequence[Patch]]) -> "Noise | None":
        """The noise of the patches of each image. Returns None where no image has any."""
        boxes, values = [], []
        for image, of_image in enumerate(patches):
            for patch in of_image:
                _, height, width = patch.values.shape
                boxes.append((image, patch.top, patch.left, height, width))
                values.append(patch.values.flatten())
        return cls(tuple(boxes), torch.cat(values)) if boxes else None

    def onto(self, images: Tensor) -> None:
        """Overwrites the boxes of float32 images [B, 3, H, W], or of clips [B, T, 3, H, W] in each frame."""
        pieces = self.values.split([3 * height * width for *_, height, width in self.boxes])
        for (image, top, left, height, width), piece in zip(self.boxes, pieces, strict=True):
            images[image, ..., top : top + height, left : left + width] = piece.view(3, height, width)


@dataclass(frozen=True)
class Normalisation:
    """(x / 255 - mean) / std, as a backbone reads pixels; before it the random changes of the images, and
    behind it noise where they are erased."""

    mean: Colour
    std: Colour
    noise: Noise | None = None
    changes: Changes | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """The images, uint8 [B, 3, H, W], or clips [B, ..., 3, H, W], as float32 on the same device. The host
        does not wait for it."""
        if self.changes is not None:
            images = self.changes(images)
        scale, shift = _constants(self.mean, self.std, images.device)
        normalised = images.to(torch.float32)
        torch.addcmul(shift, normalised, scale, out=normalised)
        if self.noise is not None:
            self.noise.onto(normalised)
        return normalised


@lru_cache
def _constants(mean: Colour, std: Colour, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift, each [3, 1, 1]. Cached, as the host waits whenever numbers are copied to the
    device."""
    scale = 1 / (255 * torch.tensor(std))
    shift = -torch.tensor(mean) / torch.tensor(std)
    return scale.view(3, 1, 1).to(device), shift.view(3, 1, 1).to(device)
