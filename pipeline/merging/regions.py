"""Regions of a grid of patches, one for each semantic token, and windows within which these look first. All
follow from the sizes alone, for any grid and any number of regions.

N patches of a grid (h, w), K regions, R patches of the largest one.
"""

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.merging.made_once import MadeOnce

Span = tuple[int, int]
"""The first row (or column) and the one behind the last."""

_MADE = MadeOnce(most=128)


@dataclass(frozen=True)
class Geometry:
    """A grid (h, w), its number of regions K, and its windows. window: their side in patches, as near as the
    grid allows; None: one window. overlap: how many patches a window sees of its neighbours."""

    height: int
    width: int
    count: int
    window: int | None
    overlap: int


def tables(geometry: Geometry, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """members [K, R] int64: the patches of each region, one of them several times where it has fewer.
    share [K, N] float32: 1 / their number, and 0 elsewhere. centre [K] int64: a patch in its middle.
    sees [K, K + N] bool: the regions of its own window, and the patches of that window and its overlap."""
    g = geometry
    members, share, centre, sees = _tables(g.height, g.width, g.count, g.window, g.overlap, device)
    return members, share, centre, sees


@torch.compiler.assume_constant_result
def _tables(
    height: int, width: int, count: int, window: int | None, overlap: int, device: torch.device
) -> tuple[Tensor, ...]:
    def make() -> tuple[Tensor, ...]:
        found = regions(height, width, count)
        sees = _seen(found, Geometry(height, width, count, window, overlap))
        made = (*_patches_of(found, height, width), sees)
        return tuple(tensor.to(device) for tensor in made)

    return _MADE.get((height, width, count, window, overlap, device), make)


def regions(height: int, width: int, count: int) -> list[tuple[Span, Span]]:
    """Rows and columns of `count` regions that cover a grid, in reading order. 1 <= count <= height * width.

    The grid is cut into rows of regions, and each row into as many regions as its part of the count, so that
    they are nearly square. Where the count is a grid itself, they are those of adaptive pooling; neighbours
    overlap by one patch where the sides do not divide.
    """
    rows = round((count * height / width) ** 0.5)
    rows = min(max(rows, -(-count // width)), height, count)
    found: list[tuple[Span, Span]] = []
    for row in range(rows):
        columns = (row + 1) * count // rows - row * count // rows
        tall = _span(row, rows, height)
        found += [(tall, _span(column, columns, width)) for column in range(columns)]
    return found


def _span(number: int, parts: int, length: int) -> Span:
    """One of the parts of a length, as adaptive pooling cuts it."""
    return number * length // parts, -(-(number + 1) * length // parts)


def _patches_of(found: list[tuple[Span, Span]], height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """members, share and centre of `tables`."""
    patches = [[y * width + x for y in range(*tall) for x in range(*wide)] for tall, wide in found]
    most = max(map(len, patches))
    members = torch.tensor([own + own[:1] * (most - len(own)) for own in patches])
    share = torch.zeros(len(found), height * width)
    for region, own in enumerate(patches):
        share[region, own] = 1 / len(own)
    centre = [(sum(tall) - 1) // 2 * width + (sum(wide) - 1) // 2 for tall, wide in found]
    return members, share, torch.tensor(centre)


def _seen(found: list[tuple[Span, Span]], geometry: Geometry) -> Tensor:
    """[K, K + N] bool: `sees` of `tables`."""
    g = geometry
    own_rows, rows = _along([tall for tall, _ in found], g.height, g.window, g.overlap)
    own_columns, columns = _along([wide for _, wide in found], g.width, g.window, g.overlap)
    same = (own_rows[:, None] == own_rows) & (own_columns[:, None] == own_columns)
    patches = rows[:, :, None] & columns[:, None]
    return torch.cat([same, patches.flatten(1)], dim=1)


def _along(spans: list[Span], length: int, window: int | None, overlap: int) -> tuple[Tensor, Tensor]:
    """In one direction: the window of each region, [K], in which its middle lies, and which of the rows (or
    columns) that window sees, [K, length]."""
    edges = window_edges(length, window)
    own = [bisect_right(edges, (first + behind - 1) / 2) - 1 for first, behind in spans]
    place = torch.arange(length)
    low = torch.tensor([edges[number] - overlap for number in own])
    high = torch.tensor([edges[number + 1] + overlap for number in own])
    return torch.tensor(own), (place >= low[:, None]) & (place < high[:, None])


def window_edges(length: int, window: int | None) -> list[int]:
    """Where windows begin along a side of so many patches, and its end. They are as many as come nearest to
    the side `window`, and differ by at most a patch; None: one."""
    parts = 1 if window is None else max(1, (2 * length + window) // (2 * window))
    return [number * length // parts for number in range(parts + 1)]
