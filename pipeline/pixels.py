"""From stored pixels to what a backbone reads, on the device that computes. B images of H x W pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Colour = tuple[float, float, float]
Box = tuple[int, int, int, int, int]
"""The number of an image in its batch, and top, left, height and width of a rectangle in it."""


@dataclass(frozen=True)
class Patch:
    """A rectangle of one image and what takes its place. values: float32 [3, height, width], normalised."""

    top: int
    left: int
    values: Tensor


@dataclass(frozen=True)
class Noise:
    """The patches of a batch. values: float32, flat; those of box after box, each [3, height, width]."""

    boxes: tuple[Box, ...]
    values: Tensor

    @classmethod
    def of(cls, patches: Sequence[Patch | None]) -> "Noise | None":
        """patches: one of each image, or None. None where no image has one."""
        boxes, values = [], []
        for image, patch in enumerate(patches):
            if patch is not None:
                _, height, width = patch.values.shape
                boxes.append((image, patch.top, patch.left, height, width))
                values.append(patch.values.flatten())
        return cls(tuple(boxes), torch.cat(values)) if boxes else None

    def onto(self, images: Tensor) -> None:
        """Overwrites the boxes of float32 images [B, 3, H, W]."""
        pieces = self.values.split([3 * height * width for *_, height, width in self.boxes])
        for (image, top, left, height, width), piece in zip(self.boxes, pieces, strict=True):
            images[image, :, top : top + height, left : left + width] = piece.view(3, height, width)


@dataclass(frozen=True)
class Normalisation:
    """Makes of pixels what a backbone reads: (x / 255 - mean) / std, and then noise where images are
    erased."""

    mean: Colour
    std: Colour
    noise: Noise | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32, on the same device; the host does not wait for it."""
        scale, shift = _constants(self.mean, self.std, images.device)
        normalised = images.to(torch.float32)
        torch.addcmul(shift, normalised, scale, out=normalised)
        if self.noise is not None:
            self.noise.onto(normalised)
        return normalised


@lru_cache
def _constants(mean: Colour, std: Colour, device: torch.device) -> tuple[Tensor, Tensor]:
    """[3, 1, 1] to multiply by and to add. Kept, because the host waits for a copy of its numbers."""
    scale = 1 / (255 * torch.tensor(std))
    shift = -torch.tensor(mean) / torch.tensor(std)
    return scale.view(3, 1, 1).to(device), shift.view(3, 1, 1).to(device)
