"""Inference of semantic segmentation on images of any size: in windows, at several scales, mirrored. Results
equal MMSegmentation's.

B batch, K classes, H W pixels of a mask, h w cells of a head's logits. All resizing is bilinear with
unaligned corners.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.interfaces import Batch, Encode
from pipeline.token_state import BackboneOutput
from tasks.masks.inference import Inference, Size
from tasks.masks.metrics import confusion

Logits = Callable[[BackboneOutput], Tensor]
"""Maps the backbone's output to logits [B, K, h, w] float32."""


def segment(
    encode: Encode, logits: Logits, images: Tensor, out_size: Size, inference: Inference, patch_size: Size
) -> Iterator[Tensor]:
    """Yields for each image [K, H, W] float32 at out_size: its logits, or the mean probabilities of several
    views.

    images [B, 3, height, width] of any size. Each view is one call of `encode`, with all windows of all
    images. What does not fill its patches is padded with zeros at the right and below; the padding's logits
    are cut off. Full-size logits are made for one image at a time.
    """
    mirrored = (False, True) if inference.flip else (False,)
    views = [
        _view(encode, logits, images, scale, side, inference, patch_size)
        for scale in inference.scales
        for side in mirrored
    ]
    for i in range(len(images)):
        pixels = (view.pixels(i, out_size) for view in views)
        if len(views) == 1:
            yield next(pixels)
        else:
            yield reduce(torch.add, (part.softmax(dim=0) for part in pixels)) / len(views)


@dataclass(frozen=True)
class _View:
    """The head's logits of all windows of all images, at one scale, mirrored or not."""

    logits: Tensor
    """[B, windows, K, h, w]"""
    corners: list[Size]
    """(top, left) of each window."""
    window: Size
    padded: Size
    """Size of a window with its padding."""
    size: Size
    """Size of the resized image."""
    mirrored: bool

    def pixels(self, i: int, out_size: Size) -> Tensor:
        """[K, H, W]: the logits of image i at out_size, averaged where windows overlap."""
        height, width = self.window
        total = self.logits.new_zeros(self.logits.shape[2], *self.size)
        count = self.logits.new_zeros(self.size)
        for (top, left), piece in zip(self.corners, self.logits[i], strict=True):
            rows, columns = slice(top, top + height), slice(left, left + width)
            total[:, rows, columns] += _resize(piece, self.padded)[:, :height, :width]
            count[rows, columns] += 1
        total /= count
        return _resize(total.flip(-1) if self.mirrored else total, out_size)


def input_size(size: Size, inference: Inference, patch_size: Size) -> Size:
    """Height and width of the first window, padding included, that `segment` encodes of images of (height,
    width)."""
    _, window = windows(_scaled(size, inference.scales[0]), inference)
    return _padded(window, patch_size)


def _view(
    encode: Encode,
    logits: Logits,
    images: Tensor,
    scale: float,
    mirrored: bool,
    inference: Inference,
    patch_size: Size,
) -> _View:
    size = _scaled((images.shape[-2], images.shape[-1]), scale)
    if scale != 1:
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    if mirrored:
        images = images.flip(-1)
    corners, (height, width) = windows(size, inference)
    pieces = torch.stack(
        [images[..., top : top + height, left : left + width] for top, left in corners], dim=1
    )
    padded = _padded((height, width), patch_size)
    pieces = F.pad(pieces, (0, padded[1] - width, 0, padded[0] - height))
    values = logits(encode(pieces.flatten(0, 1))).unflatten(0, (len(images), len(corners)))
    return _View(values, corners, (height, width), padded, size, mirrored)


def _scaled(size: Size, scale: float) -> Size:
    if scale == 1:
        return size
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def _padded(size: Size, patch_size: Size) -> Size:
    """The size, up to whole patches."""
    (height, width), (patch_h, patch_w) = size, patch_size
    return -(-height // patch_h) * patch_h, -(-width // patch_w) * patch_w


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
    """Logits [K, h, w], resized to [K, H, W]."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


def classify(
    encode: Encode, logits: Logits, batch: Batch, inference: Inference, patch_size: Size
) -> Iterator[Tensor]:
    """Yields for each image the class of every pixel of its mask, [H, W] int64. The batch has MaskTargets,
    whose masks may be larger or smaller than the images."""
    height, width = batch.targets.mask.shape[-2:]
    return (
        pixels.argmax(dim=0)
        for pixels in segment(encode, logits, batch.images, (height, width), inference, patch_size)
    )


def count_confusion(predictions: Sequence[Tensor], masks: Tensor, num_classes: int) -> Tensor:
    """[K, K] int64: the confusion matrix of a batch. See `classify` and `confusion`."""
    pairs = zip(predictions, masks, strict=True)
    return torch.stack([confusion(predicted, mask, num_classes) for predicted, mask in pairs]).sum(dim=0)
