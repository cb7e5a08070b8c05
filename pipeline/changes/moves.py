"""Affine moves of images, as Pillow computes them: by two or four pixels a side, with one colour for what
comes from outside. N images of H x W pixels.

A move along its rows, or along its columns, reads pixels in that direction alone: it would give those of the
others no weight.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

Weights = Callable[[Tensor], list[tuple[int, Tensor | None]]]
"""The share of the way to the next pixel -> pixels by their distance to this one, each with its weight; None
is a weight of 1."""


def moved(images: Tensor, values: Tensor, across: Weights, down: Weights) -> Tensor:
    """The moved images, uint8 [N, 3, H, W]. values [N, 9]: a, b, c, d, e, f, by which the pixel at (x, y)
    comes from (a x + b y + c, d x + e y + f), positions being those of the pixels' centres; and the colour.
    across, down: of the pixels in these directions."""
    height, width = images.shape[-2:]
    a, b, c, d, e, f = values[:, :6, None, None].unbind(1)
    column = torch.arange(width, dtype=torch.float32, device=images.device) + 0.5
    row = torch.arange(height, dtype=torch.float32, device=images.device)[:, None] + 0.5
    x, y = a * column + b * row + c, d * column + e * row + f
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = _interpolated(images, x - 0.5, y - 0.5, across, down)
    colour = values[:, 6:, None, None]
    return torch.where(inside[:, None], found.clamp(0, 255), colour).to(torch.uint8)


def _interpolated(images: Tensor, x: Tensor, y: Tensor, across: Weights, down: Weights) -> Tensor:
    """float32 [N, 3, H, W]: the images at the positions x, y [N, H, W], counted from the first pixel's
    centre. Beyond the border its pixels go on."""
    height, width = images.shape[-2:]
    left, top, pixels = x.floor(), y.floor(), images.flatten(2)
    columns = [((left + step).clamp(0, width - 1).long(), weight) for step, weight in across(x - left)]
    lines = []
    for step, weight in down(y - top):
        row = (top + step).clamp(0, height - 1).long() * width
        found = []
        for column, share in columns:
            at = (row + column).flatten(1)[:, None].expand(-1, 3, -1)
            found.append((pixels.gather(2, at).view_as(images), share))
        lines.append((_sum(found), weight))
    return _sum(lines)


def _sum(terms: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    """float32 [N, 3, H, W] of such terms, each with its weight [N, H, W]."""
    (first, weight), *others = terms
    total = first.float() if weight is None else weight[:, None] * first
    for term, weight in others:
        assert weight is not None, "a weight of 1 is the only one"
        total = total + weight[:, None] * term
    return total


def _here(d: Tensor) -> list[tuple[int, Tensor | None]]:
    """Of a direction in which nothing moves."""
    return [(0, None)]


def _bilinear(d: Tensor) -> list[tuple[int, Tensor | None]]:
    return [(0, 1 - d), (1, d)]


def _bicubic(d: Tensor) -> list[tuple[int, Tensor | None]]:
    """Pillow's cubic of moves, of slope -1, where those of resizing have others."""
    square = d * d
    cube = square * d
    return [
        (-1, 2 * square - d - cube),
        (0, 1 - 2 * square + cube),
        (1, d + square - cube),
        (2, cube - square),
    ]


BY_PIXELS: dict[str, Weights] = {"bilinear": _bilinear, "bicubic": _bicubic}
ALL_WAYS, ACROSS, DOWN = "move", "move_across", "move_down"


def kind_of(values: Sequence[float], interpolation: str) -> str:
    """The name of the kernel that moves an image. values: a, ..., f of `moved`."""
    a, b, c, d, e, f = values
    way = ACROSS if (d, e, f) == (0, 1, 0) else DOWN if (a, b, c) == (1, 0, 0) else ALL_WAYS
    return f"{way}_{interpolation}"


KERNELS = {
    f"{way}_{name}": partial(
        moved, across=_here if way == DOWN else weights, down=_here if way == ACROSS else weights
    )
    for name, weights in BY_PIXELS.items()
    for way in (ALL_WAYS, ACROSS, DOWN)
}
