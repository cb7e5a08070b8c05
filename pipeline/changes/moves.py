"""Affine moves of images, as Pillow computes them: by two or four pixels a side, with one colour for what
comes from outside. N images of H x W pixels."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Weights = Callable[[Tensor], list[tuple[int, Tensor]]]
"""The share of the way to the next pixel -> pixels by their distance to this one, each with its weight."""


def moved(images: Tensor, values: Tensor, weights: Weights) -> Tensor:
    """The moved images, uint8 [N, 3, H, W]. values [N, 9]: a, b, c, d, e, f, by which the pixel at (x, y)
    comes from (a x + b y + c, d x + e y + f), positions being those of the pixels' centres; and the
    colour."""
    height, width = images.shape[-2:]
    a, b, c, d, e, f = values[:, :6, None, None].unbind(1)
    across = torch.arange(width, dtype=torch.float32, device=images.device) + 0.5
    down = torch.arange(height, dtype=torch.float32, device=images.device)[:, None] + 0.5
    x, y = a * across + b * down + c, d * across + e * down + f
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = _interpolated(images, x - 0.5, y - 0.5, weights)
    colour = values[:, 6:, None, None]
    return torch.where(inside[:, None], found.clamp(0, 255), colour).to(torch.uint8)


def _interpolated(images: Tensor, x: Tensor, y: Tensor, weights: Weights) -> Tensor:
    """float32 [N, 3, H, W]: the images at the positions x, y [N, H, W], counted from the first pixel's
    centre. Beyond the border its pixels go on."""
    height, width = images.shape[-2:]
    left, top = x.floor(), y.floor()
    pixels, found = images.flatten(2), torch.zeros((), device=images.device)
    columns = [
        ((left + step).clamp(0, width - 1).long(), weight[:, None]) for step, weight in weights(x - left)
    ]
    for step, weight in weights(y - top):
        row = (top + step).clamp(0, height - 1).long() * width
        line = torch.zeros((), device=images.device)
        for column, share in columns:
            at = (row + column).flatten(1)[:, None].expand(-1, 3, -1)
            line = line + share * pixels.gather(2, at).view_as(images)
        found = found + weight[:, None] * line
    return found


def _bilinear(d: Tensor) -> list[tuple[int, Tensor]]:
    return [(0, 1 - d), (1, d)]


def _bicubic(d: Tensor) -> list[tuple[int, Tensor]]:
    """Pillow's cubic of moves, of slope -1, where those of resizing have others."""
    square = d * d
    cube = square * d
    return [
        (-1, 2 * square - d - cube),
        (0, 1 - 2 * square + cube),
        (1, d + square - cube),
        (2, cube - square),
    ]


KERNELS = {
    "move_bilinear": partial(moved, weights=_bilinear),
    "move_bicubic": partial(moved, weights=_bicubic),
}
