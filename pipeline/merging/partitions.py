"""Partitions: which patches are sources of a matching, and which its destinations.

A matching takes every second token as a source (`pipeline.merging.matching.Split`). A partition is an order
of the tokens in which that means something: neighbours on the grid, or tokens that are alike, stand next to
each other, and so on different sides. So every partition has the same numbers of sources and destinations,
and one matching and its kernels serve them all.

B batch, M tokens, N at the input, n live ones, F channels of the metric.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.merging.rows import take_rows
from pipeline.token_state import Assignment, TokenState, rows_of, widened

PARITY = "parity"
ALONE = -4.0
"""Below the similarity of any two tokens, by more than two of them differ."""
FAR = 1 << 40
"""Place of padding on a path, behind all patches."""

Choose = Callable[[Tensor | None, TokenState], Assignment]
"""Chooses a merge by a metric [B, M, F], with sizes and padding of a state in the same order."""


def in_partition(partition: str, metric: Tensor | None, state: TokenState, choose: Choose) -> Assignment:
    """What `choose` gives for the tokens in the order of a partition, in terms of the state's own order.

    metric [B, M, F]; None for a partition of the grid where nothing is compared. The state that `choose` gets
    has sizes and quota in that order, and no other tensor of it is to be read.
    """
    rows = partition_rows(partition, metric, state)
    if rows is None:
        return choose(metric, state)
    ordered = None if metric is None else take_rows(metric, rows)
    found = choose(ordered, replace(state, size=take_rows(state.size, rows)))
    return replace(found, keep=take_rows(rows, found.keep), source=take_rows(rows, found.source))


def partition_rows(partition: str, metric: Tensor | None, state: TokenState) -> Tensor | None:
    """[B, M] int64: the tokens in the order of a partition, as rows of the flattened batch; None where that
    is their own. Prefix tokens stay in front, and what is behind the live tokens stays there."""
    order = PARTITIONS[partition](metric, state)
    if order is None:
        return None
    batch, num_tokens = state.size.shape
    places = torch.arange(num_tokens, device=order.device)
    before, behind = places[: state.num_prefix], places[state.num_prefix + order.shape[-1] :]
    ends = [end.expand(*order.shape[:-1], -1) for end in (before, behind)]
    order = torch.cat([ends[0], order + state.num_prefix, ends[1]], dim=-1)
    return order + num_tokens * rows_of(batch, 1, order.device)


def check_partition(policy: str, partition: str, *, compares: bool = True) -> str:
    """The partition. Raises ConfigError for an unknown one, and for one that compares tokens where the policy
    does not."""
    known = [name for name in PARTITIONS if compares or name in OF_THE_GRID]
    if partition not in known:
        raise ConfigError(f"{policy}: partition is '{partition}'; give one of {', '.join(known)}")
    return partition


def _checkerboard(metric: Tensor | None, state: TokenState) -> Tensor | None:
    """In the first merge cells of one colour of a checkerboard are sources; later on parity decides."""
    if state.merges:
        return None
    if state.places is None:
        return _path(state)
    return _padding_behind(_steps_on(state.places), state).argsort(dim=-1, stable=True)


def _along_the_path(metric: Tensor | None, state: TokenState) -> Tensor | None:
    """In the first merge a checkerboard, and later on what is left of it: tokens alternate along the path,
    on which each has the place of the patch into which others merged."""
    if not state.merges:
        return _checkerboard(metric, state)
    if state.places is not None:
        place = _steps_on(state.places).gather(1, first_patches(state))
    elif (path := _path(state)) is not None:
        # in a plane the way back along the path is the same
        place = (path if len(state.grid) == 2 else path.argsort())[first_patches(state)]
    else:
        return None
    return _padding_behind(place, state).argsort(dim=-1, stable=True)


def first_patches(state: TokenState) -> Tensor:
    """[B, n] int64: of each live token the patch of the input that it was, into which others merged. The
    state has merged."""
    first, keeps = state.merges[0].num_tokens, (merge.keep for merge in state.merges)
    held = reduce(take_rows, keeps, rows_of(state.size.shape[0], first, state.size.device)) % first
    return held[:, state.num_prefix : state.num_active] - state.num_prefix


def _by_nearest(metric: Tensor | None, state: TokenState) -> Tensor | None:
    """Of two tokens that are each most like the other, one is a source and the other a destination. The other
    sources are those that are most like any token."""
    unit, padding = _unit(metric, state), _padding(state)
    scores = unit @ unit.mT
    scores.diagonal(dim1=-2, dim2=-1).fill_(ALONE)
    if padding is not None:
        scores.masked_fill_(padding[:, None], ALONE)
    best, nearest = scores.max(dim=-1)
    number = torch.arange(best.shape[1], device=best.device)
    mutual = nearest.gather(1, nearest) == number
    likeness = best + ALONE * (mutual & (nearest < number)) - ALONE * (mutual & (nearest > number))
    return _sources_first(_padding_behind(-likeness, state).argsort(dim=-1, stable=True), state)


def _sources_first(ranked: Tensor, state: TokenState) -> Tensor:
    """The order [B, n] in which the first half of the ranked patches [B, n] are sources, and the second half
    destinations."""
    padding, number = _padding(state), torch.arange(ranked.shape[1], device=ranked.device)
    left: Tensor | int = ranked.shape[1]
    if padding is not None:
        left = left - padding.sum(dim=-1, keepdim=True)
    odd = state.num_prefix % 2  # so that the first patch is a destination
    sources = (left + 1 - odd) // 2
    place = torch.where(number < sources, 2 * number + odd, 2 * (number - sources) + 1 - odd)
    place = torch.where(number < left, place, number)
    return torch.empty_like(ranked).scatter(1, place.expand_as(ranked), ranked)


def _path(state: TokenState) -> Tensor | None:
    """[N - prefix] int64: the input's patches along a path from neighbour to neighbour: the first row from
    left to right, the next one back; of a clip the first time so, the next one all the way back. Every second
    one has the same colour of a checkerboard, whatever the sizes. None where the state has no grid of all its
    patches."""
    grid = state.grid
    patches = (state.merges[0].num_tokens if state.merges else state.num_active) - state.num_prefix
    if math.prod(grid) != patches:
        return None
    path = torch.arange(patches, device=state.size.device).view(grid)
    for dim in reversed(range(len(grid) - 1)):
        odd = (slice(None),) * dim + (slice(1, None, 2),)
        path[odd] = path[odd].flip(tuple(range(dim + 1, len(grid))))
    return path.flatten()


def _steps_on(places: Tensor) -> Tensor:
    """[B, N - prefix] int64: the place on such a path of each patch of images that have a grid each. places
    [B, N - prefix, 2]: their rows and columns."""
    row, column = places.unbind(dim=-1)
    count = places.shape[1]
    return row * count + torch.where(row % 2 == 1, count - 1 - column, column)


def _padding_behind(place: Tensor, state: TokenState) -> Tensor:
    """place [B, n] of the live patches, with that of padding behind all others."""
    padding = _padding(state)
    return place if padding is None else place.masked_fill(padding, FAR)


def _padding(state: TokenState) -> Tensor | None:
    """[B, n]: which live patches are padding; None where there is none."""
    if state.quota is None:
        return None
    return state.size[:, state.num_prefix : state.num_active] == 0


def _unit(metric: Tensor | None, state: TokenState) -> Tensor:
    """[B, n, F]: the metric of the live patches, of length 1."""
    assert metric is not None, "a policy that compares nothing has a partition of the grid"
    return F.normalize(widened(metric.detach()[:, state.num_prefix : state.num_active]), dim=-1)


PARTITIONS: dict[str, Callable[[Tensor | None, TokenState], Tensor | None]] = {
    PARITY: lambda metric, state: None,
    "checkerboard": _checkerboard,
    "path": _along_the_path,
    "nearest": _by_nearest,
}
"""Name -> the order of the n live patches, [n] or [B, n] int64; None: their own."""
OF_THE_GRID = (PARITY, "checkerboard", "path")
"""Those that compare no tokens."""
