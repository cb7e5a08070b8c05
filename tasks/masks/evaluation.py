"""Evaluation of semantic segmentation: windows, scales and flips, and the metrics, which are
MMSegmentation's.

B batch, K classes, H W pixels of a mask, h w cells of a head's logits. All resizing is bilinear with
unaligned corners.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Encode, Scores
from pipeline.token_state import BackboneOutput

Size = tuple[int, int]
Logits = Callable[[BackboneOutput], Tensor]
"""-> [B, K, h, w] float32, of the images that were encoded."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How the pixels of an image of any size get their classes. Sides are pixels, or (height, width)."""

    mode: str = "whole"
    """`whole`: the image in one piece. `slide`: windows of crop_size at every stride, the last ones moved
    back into the image; where windows overlap, their logits are averaged. An image that is smaller than the
    window is one window of its own size."""
    crop_size: int | Size | None = None
    stride: int | Size | None = None
    scales: Sequence[float] = (1.0,)
    """Factors by which the image is resized; more than one view (scale or side): the mean of their
    probabilities."""
    flip: bool = False
    """Beside each scale, its mirror image."""

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "slide"):
            raise ConfigError(f"inference.mode is {self.mode!r}; give 'whole' or 'slide'")
        sides = {"crop_size": self.crop_size, "stride": self.stride}
        if self.mode == "whole" and (given := [name for name, value in sides.items() if value is not None]):
            raise ConfigError(
                f"inference.{given[0]} is given, but mode is 'whole'; give mode='slide', or leave it out"
            )
        if self.mode == "slide" and any(step > side for side, step in zip(*self.slide, strict=True)):
            raise ConfigError(
                f"inference.stride {self.stride} leaves gaps between windows of {self.crop_size}; give "
                "a smaller one"
            )
        _check_views(self.scales, self.flip)

    @property
    def slide(self) -> tuple[Size, Size]:
        """Window and stride, as (height, width)."""
        return _pair("crop_size", self.crop_size), _pair("stride", self.stride)

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> "Inference":
        """From plain data. Raises ConfigError for what is not an option or not a value of it."""
        if unknown := set(options or ()) - set(cls.__dataclass_fields__):
            raise ConfigError(
                f"inference has no option {min(unknown)!r}; there are {', '.join(cls.__dataclass_fields__)}"
            )
        return cls(**(options or {}))


def _pair(name: str, value: Any) -> Size:
    sides = (
        [value, value] if isinstance(value, int) else list(value) if isinstance(value, list | tuple) else []
    )
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ConfigError(
            f"inference.{name} is {value!r}; mode='slide' needs pixels, or (height, width), above 0"
        )
    return sides[0], sides[1]


def _check_views(scales: Any, flip: Any) -> None:
    numbers = isinstance(scales, list | tuple) and all(
        isinstance(s, int | float) and not isinstance(s, bool) and s > 0 for s in scales
    )
    if not numbers or not scales:
        raise ConfigError(f"inference.scales is {scales!r}; give factors above 0, such as [0.5, 1.0, 1.5]")
    if not isinstance(flip, bool):
        raise ConfigError(f"inference.flip is {flip!r}; give true or false")


def segment(
    encode: Encode, logits: Logits, images: Tensor, out_size: Size, inference: Inference, patch_size: Size
) -> Iterator[Tensor]:
    """One image after another: logits [K, H, W] at out_size, float32, or probabilities where there are
    several views.

    images [B, 3, height, width] of any size. Each view is one call of `encode`, with all windows of all
    images; what does not fill its patches is padded with zeros at the right and below, and the padding's
    logits are cut off. Full-size logits are made for one image at a time.
    """
    sides = (False, True) if inference.flip else (False,)
    views = [
        _look(encode, logits, images, scale, side, inference, patch_size)
        for scale in inference.scales
        for side in sides
    ]
    for i in range(len(images)):
        pixels = (view.pixels(i, out_size) for view in views)
        yield (
            next(pixels)
            if len(views) == 1
            else reduce(torch.add, (part.softmax(dim=0) for part in pixels)) / len(views)
        )


@dataclass(frozen=True)
class _View:
    """What the head said of an image's windows at one scale, from one side.

    logits [B, windows, K, h, w]; corners: (top, left) of each window; size: of the whole view; padded: of a
    window with padding.
    """

    logits: Tensor
    corners: list[Size]
    window: Size
    padded: Size
    size: Size
    mirrored: bool

    def pixels(self, i: int, out_size: Size) -> Tensor:
        """[K, H, W]: the logits of image i at out_size, the mean where windows overlap."""
        height, width = self.window
        total = self.logits.new_zeros(self.logits.shape[2], *self.size)
        count = self.logits.new_zeros(self.size)
        for (top, left), piece in zip(self.corners, self.logits[i], strict=True):
            rows, columns = slice(top, top + height), slice(left, left + width)
            total[:, rows, columns] += _resize(piece, self.padded)[:, :height, :width]
            count[rows, columns] += 1
        total /= count
        return _resize(total.flip(-1) if self.mirrored else total, out_size)


def _look(
    encode: Encode,
    logits: Logits,
    images: Tensor,
    scale: float,
    mirrored: bool,
    inference: Inference,
    patch_size: Size,
) -> _View:
    if scale != 1:
        size = tuple(max(1, int(side * scale + 0.5)) for side in images.shape[-2:])
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    if mirrored:
        images = images.flip(-1)
    size = images.shape[-2], images.shape[-1]
    corners, (height, width) = windows(size, inference)
    pieces = torch.stack(
        [images[..., top : top + height, left : left + width] for top, left in corners], dim=1
    )
    patch_h, patch_w = patch_size
    padded = -(-height // patch_h) * patch_h, -(-width // patch_w) * patch_w
    pieces = F.pad(pieces, (0, padded[1] - width, 0, padded[0] - height))
    said = logits(encode(pieces.flatten(0, 1))).unflatten(0, (len(images), len(corners)))
    return _View(said, corners, (height, width), padded, size, mirrored)


def windows(size: Size, inference: Inference) -> tuple[list[Size], Size]:
    """(top, left) of each window of an image of (height, width), row by row, and their common size."""
    if inference.mode == "whole":
        return [(0, 0)], size
    (tops, height), (lefts, width) = (
        _starts(side, crop, step) for side, crop, step in zip(size, *inference.slide, strict=True)
    )
    return [(top, left) for top in tops for left in lefts], (height, width)


def _starts(side: int, crop: int, step: int) -> tuple[list[int], int]:
    last = max(side - crop, 0)
    return [min(start, last) for start in range(0, last + step, step)], min(side, crop)


def _resize(logits: Tensor, size: Size) -> Tensor:
    """[K, h, w] -> [K, H, W]"""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


def count_confusion(
    encode: Encode, logits: Logits, batch: Batch, inference: Inference, patch_size: Size, num_classes: int
) -> Tensor:
    """[K, K] int64: the confusion matrix of a batch with MaskTargets, whose masks may be larger or smaller
    than the images."""
    pairs = zip(classify(encode, logits, batch, inference, patch_size), batch.targets.mask, strict=True)
    return torch.stack([confusion(predicted, mask, num_classes) for predicted, mask in pairs]).sum(dim=0)


def classify(
    encode: Encode, logits: Logits, batch: Batch, inference: Inference, patch_size: Size
) -> Iterator[Tensor]:
    """One image after another: the class of every pixel [H, W] of its mask."""
    height, width = batch.targets.mask.shape[-2:]
    return (
        pixels.argmax(dim=0)
        for pixels in segment(encode, logits, batch.images, (height, width), inference, patch_size)
    )


def confusion(predicted: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """[K, K] int64: pixels by (label, prediction). predicted, mask: of one shape; labels from K on (255) do
    not count.

    Asks the device nothing, which bincount would.
    """
    labels = mask.long()
    cell = torch.where(labels < num_classes, labels * num_classes + predicted, num_classes**2).flatten()
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=cell.device)
    return counts.index_add_(0, cell, torch.ones_like(cell))[:-1].view(num_classes, num_classes)


def scores_of(confusion: Tensor) -> Scores:
    """aAcc, mAcc, mIoU, and IoU/i and Acc/i of each class i, as shares in [0, 1].

    n/a: the accuracy of a class that no pixel has, and the IoU of one that is not predicted either. Means are
    over the other classes.
    """
    table = confusion.double().cpu()
    hits, labelled, said = table.diag(), table.sum(dim=1), table.sum(dim=0)
    iou = _shares(hits, labelled + said - hits)
    acc = _shares(hits, labelled)
    (all_acc,) = _shares(hits.sum()[None], labelled.sum()[None])
    means = {"aAcc": all_acc, "mAcc": _mean(acc), "mIoU": _mean(iou)}
    return (
        means
        | {f"IoU/{i}": value for i, value in enumerate(iou)}
        | {f"Acc/{i}": value for i, value in enumerate(acc)}
    )


def _shares(parts: Tensor, wholes: Tensor) -> list[float | None]:
    return [
        part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)
    ]


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
