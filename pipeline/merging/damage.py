"""A schedule that is predicted to do the least damage for its work, by measurements of single blocks.

`damage` is any measure of how far a merged model is from the unmerged one. P patches before the first block.
Levels are numbers of patches that are gone; L of them, B blocks.
"""

from collections.abc import Callable, Sequence
from math import log

import torch
from torch import Tensor

Single = tuple[int, float]
"""r tokens that one block alone removes, and the damage of that."""
Curve = Callable[[float], float]
"""Maps the number of patches that are gone behind a block to the damage."""
MOST_LEVELS = 64
"""Levels between which plans choose; more are merged in steps of several tokens."""
PRICES = -60.0, 60.0
"""Range of the powers of 10 in which the price of a multiply-accumulate is searched."""
HALVINGS = 60
POWERS = 0.5, 4.0
"""Least and largest power by which damage grows beyond what was measured."""


def levels_of(patches: int) -> list[int]:
    """Numbers of patches that may be gone, from 0 on; one patch stays at least."""
    return list(range(0, max(1, patches), -(-patches // MOST_LEVELS)))


def damage_curve(singles: Sequence[Single], patches: int) -> Curve:
    """The damage of a block behind which so many of P patches are gone.

    A power of log(P / patches left) between any two of the singles, which are at least one, ascending in r.
    It never falls. Beyond the singles it goes on by the power of the nearest two.
    """
    places = [_halvings(r, patches) for r, _ in singles]
    values: list[float] = []
    for _, damage in singles:
        values.append(max([damage, 0.0, *values[-1:]]))
    if values[-1] <= 0:
        return lambda gone: 0.0
    least = 1e-9 * values[-1]
    values = [max(value, least) for value in values]
    powers = [
        log(values[i + 1] / values[i]) / log(places[i + 1] / places[i]) for i in range(len(values) - 1)
    ] or [1.0]

    def curve(gone: float) -> float:
        if gone <= 0:
            return 0.0
        place = _halvings(gone, patches)
        i = sum(place >= known for known in places) - 1
        power = powers[max(0, min(i, len(powers) - 1))]
        if not 0 <= i < len(places) - 1:
            power = min(max(power, POWERS[0]), POWERS[1])
        i = max(i, 0)
        return values[i] * (place / places[i]) ** power

    return curve


def _halvings(gone: float, patches: int) -> float:
    return log(patches / (patches - gone))


def costs_by_rest(damage: Sequence[Curve], patches: int) -> Tensor:
    """[B, L, L] float64: what block b adds to the damage where it goes from level i to level j, if that
    depends on how few patches are left: the damage of its curve at j less that at i, as what is gone by then
    was the easiest to merge."""
    levels = levels_of(patches)
    curves = torch.tensor([[curve(gone) for gone in levels] for curve in damage], dtype=torch.float64)
    return curves[:, None, :] - curves[:, :, None]


def costs_by_block(damage: Sequence[Curve], patches: int) -> Tensor:
    """The same, if it depends on how much a block merges at once: the damage of its curve at the share of its
    patches that it removes."""
    levels = levels_of(patches)
    found = torch.zeros(len(damage), len(levels), len(levels), dtype=torch.float64)
    for i, gone in enumerate(levels):
        for j, later in enumerate(levels[i:], i):
            share = (later - gone) / (patches - gone)
            found[:, i, j] = torch.tensor([curve(share * patches) for curve in damage], dtype=torch.float64)
    return found


def step_macs(macs: Callable[[int, int, int], int], blocks: int, patches: int) -> Tensor:
    """[B, L, L] float64: multiply-accumulates of block b from level i to level j, infinite where it cannot go
    there: back, or to less than half of its patches. macs: of (block, patches before it, r)."""
    levels = levels_of(patches)
    found = torch.full((blocks, len(levels), len(levels)), torch.inf, dtype=torch.float64)
    for i, gone in enumerate(levels):
        for j, later in enumerate(levels[i:], i):
            if 2 * (later - gone) <= patches - gone:
                for block in range(blocks):
                    found[block, i, j] = macs(block, patches - gone, later - gone)
    return found


def cheapest_path(costs: Tensor, macs: Tensor, price: float) -> list[int]:
    """The level behind each block that has the least sum of damage and price times MACs. costs, macs
    [B, L, L]: see `costs_by_rest`, `costs_by_block` and `step_macs`."""
    whole = costs + price * macs
    ahead = torch.zeros(whole.shape[-1], dtype=torch.float64)
    chosen: list[Tensor] = []
    for step in whole.flip(0):
        ahead, best = (step + ahead).min(dim=1)
        chosen.append(best)
    path, level = [], 0
    for best in reversed(chosen):
        level = int(best[level])
        path.append(level)
    return path


def planned_schedule(costs: Tensor, macs: Tensor, goal: float, patches: int) -> list[int]:
    """r of each block: of all paths that are cheapest at some price of a multiply-accumulate, the one with
    the most MACs that are at most `goal`. Where none is, that of the largest price."""
    levels = levels_of(patches)
    low, high = PRICES
    path = cheapest_path(costs, macs, 10**high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = cheapest_path(costs, macs, 10**middle)
        if _macs_of(found, macs) <= goal:
            path, high = found, middle
        else:
            low = middle
    before = [0, *path[:-1]]
    return [levels[j] - levels[i] for i, j in zip(before, path, strict=True)]


def _macs_of(path: Sequence[int], macs: Tensor) -> float:
    before = [0, *path[:-1]]
    return sum(float(macs[block, i, j]) for block, (i, j) in enumerate(zip(before, path, strict=True)))
