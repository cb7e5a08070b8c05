"""Carries out a merge: moves everything that tokens carry, by an Assignment.

B batch, M tokens before, K slots after, E pairs of a source and a slot, C channels.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pipeline.token_state import Assignment, Carried, TokenState, widened

SMALLEST = torch.finfo(torch.float32).eps
"""Least divisor of a mean, so that tokens of size 0 merge to a number and not to 0 / 0."""


def apply(state: TokenState, assignment: Assignment) -> TokenState:
    """The state after a merge. A token that receives others becomes the mean, weighted by size, of itself
    and of what it receives; sizes add up. Sizes and means are computed in float32 or wider, also under
    autocast."""
    with torch.autocast(state.tokens.device.type, enabled=False):
        move = _Move(state.size, assignment)
        carried = {name: replace(item, values=move(item)) for name, item in state.carried.items()}
        return replace(
            state,
            tokens=move.mean(state.tokens),
            size=move.size,
            num_active=assignment.num_active,
            merges=(*state.merges, assignment),
            carried=carried,
        )


class _Move:
    """One assignment, and the weight of each token in it. size [B, M]: sizes before the merge."""

    def __init__(self, size: Tensor, assignment: Assignment):
        self.assignment = assignment
        self._left = None if assignment.share is None else take_rows(share_left(assignment), assignment.keep)
        self._own, self._given = self._parts(size)
        self.size = self._whole = self._total(self._own, self._given)
        """[B, K]: sizes after the merge."""
        if assignment.weight is not None:
            self._own, self._given = self._parts(assignment.weight)
        # a token that stays and has given everything keeps its value
        if assignment.share is not None:
            self._own = self._own.clamp(min=SMALLEST)
        if assignment.weight is not None or assignment.share is not None:
            self._whole = self._total(self._own, self._given)
        self._whole = self._whole.clamp(min=SMALLEST)

    def __call__(self, item: Carried) -> Tensor:
        values, keep = item.values, self.assignment.keep
        match item.rule:
            case "mean":
                return self.mean(values)
            case "sum":
                return self._total(*self._parts(values))
            case "first":
                return take_rows(values, keep)
            case _:
                column = (keep % self.assignment.num_tokens)[:, None].expand(-1, keep.shape[1], -1)
                return take_rows(values, keep).gather(2, column)

    def mean(self, values: Tensor) -> Tensor:
        """[B, K, ...]: weighted means of the values [B, M, ...], in their dtype."""
        own, given = (_expanded(part, values) for part in (self._own, self._given))
        exact = widened(values)
        rows = take_rows(exact, self.assignment.keep) * own
        total = add_rows(rows, self.assignment.slot, take_rows(exact, self.assignment.source) * given)
        return (total / _expanded(self._whole, values)).to(values.dtype)

    def _parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The values that stay, [B, K, ...], and those that are given, [B, E, ...]."""
        a = self.assignment
        own, given = take_rows(values, a.keep), take_rows(values, a.source)
        if a.share is None or self._left is None:
            return own, given
        return own * _expanded(self._left, own), given * _expanded(a.share, given)

    def _total(self, own: Tensor, given: Tensor) -> Tensor:
        return add_rows(own, self.assignment.slot, given)


def share_left(assignment: Assignment) -> Tensor:
    """[B, M] in [0, 1]: the part of each token that it does not give away.

    Its gradient is that of 1 minus the shares, also where rounding takes it below 0.
    """
    assert assignment.share is not None, "without shares a source gives all"
    share = assignment.share
    whole = share.new_ones(len(share), assignment.num_tokens)
    left = add_rows(whole, assignment.source, -share)
    return left + (left.clamp(0.0, 1.0) - left).detach()


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """[B, K, ...]: the rows of values [B, M, ...] at index [B, K], which counts rows of the flattened batch.

    `index_select` copies whole rows: on a CPU about ten times as fast as `gather`, and twice as fast as
    indexing. It needs a flat index; a slice is indexed instead, as flattening would copy it.
    """
    flat = values.flatten(0, 1)
    if not index.is_contiguous():
        return flat[index]
    return flat.index_select(0, index.flatten()).view(*index.shape, *flat.shape[1:])


def add_rows(values: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """values [B, M, ...] with rows [B, K, ...] added at index [B, K], which may repeat."""
    return values.flatten(0, 1).index_add(0, index.flatten(), rows.flatten(0, 1)).view_as(values)


def _expanded(per_token: Tensor, values: Tensor) -> Tensor:
    """per_token [B, M] as [B, M, 1, ...], with as many dims as the values [B, M, ...]."""
    return per_token.reshape(*per_token.shape, *(1 for _ in values.shape[2:]))
