"""Changes that map each of the 256 levels of a channel to another one: a table for each image, or for each of
its channels, and one look-up for all pixels. N images of H x W pixels.

The tables are Pillow's, whose numbers are cut and not rounded.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.changes.greys import grey, torchvision_grey

Table = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Levels float32 [256], values [N, K] and images [N, 3, H, W] -> the new levels [N, 1 or 3, 256], which may
lie outside of 0 to 255."""


def _scale(levels: Tensor, values: Tensor, images: Tensor) -> Tensor:
    """values: factor, shift."""
    return (levels * values[:, :1] + values[:, 1:])[:, None]


def _invert(levels: Tensor, values: Tensor, images: Tensor) -> Tensor:
    return (255 - levels).expand(len(images), 1, 256)


def _posterize(levels: Tensor, values: Tensor, images: Tensor) -> Tensor:
    """values: bits that are kept."""
    step = torch.exp2(8 - values)
    return (torch.floor(levels / step) * step)[:, None]


def _solarize(levels: Tensor, values: Tensor, images: Tensor) -> Tensor:
    """values: the level from which on they are inverted."""
    return torch.where(levels < values, levels, 255 - levels)[:, None]


def _solarize_add(levels: Tensor, values: Tensor, images: Tensor) -> Tensor:
    """values: what is added, and the level below which it is."""
    return torch.where(levels < values[:, 1:], levels + values[:, :1], levels)[:, None]


def _contrast(levels: Tensor, values: Tensor, images: Tensor) -> Tensor:
    """values: factor of the distance to the mean grey, which is rounded."""
    mean = torch.floor(grey(images).float().mean((1, 2, 3)) + 0.5)[:, None]
    return (mean + values * (levels - mean))[:, None]


def _jitter_contrast(levels: Tensor, values: Tensor, images: Tensor) -> Tensor:
    """The same by torchvision's grey, whose mean is not rounded."""
    mean = torchvision_grey(images).floor().mean((1, 2, 3))[:, None]
    return (values * levels + (1 - values) * mean)[:, None]


def _autocontrast(levels: Tensor, values: Tensor, images: Tensor) -> Tensor:
    """The lowest level of each channel becomes 0, the highest 255."""
    low, high = (end.float()[..., None] for end in torch.aminmax(images.flatten(2), dim=2))
    return torch.where(high > low, (levels - low) * 255 / (high - low).clamp(min=1), levels)


def _equalize(levels: Tensor, values: Tensor, images: Tensor) -> Tensor:
    """The levels of each channel become equally frequent."""
    pixels = images.flatten(2).long()
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones((), dtype=torch.int32, device=images.device).expand_as(pixels))
    highest = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - highest) // 255
    before = counts.cumsum(2) - counts
    equal = (step // 2 + before) // step.clamp(min=1)
    return torch.where(step > 0, equal.float(), levels)


TABLES: dict[str, Table] = {
    "scale": _scale,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "contrast": _contrast,
    "jitter_contrast": _jitter_contrast,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}


def _kernel(table: Table) -> Callable[[Tensor, Tensor], Tensor]:
    def changed(images: Tensor, values: Tensor) -> Tensor:
        levels = torch.arange(256, dtype=torch.float32, device=images.device)
        new = table(levels, values, images).clamp(0, 255).to(torch.uint8).expand(-1, 3, 256)
        return new.gather(2, images.flatten(2).long()).view_as(images)

    return changed


KERNELS = {name: _kernel(table) for name, table in TABLES.items()}
