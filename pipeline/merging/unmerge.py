"""Unmerging: every input position gets the value of the slot that it was merged into.

There are three ways (`UNMERGES`). copy: the token of the slot. soft: after relaxed merges the mean of the
tokens that hold a share of the position, differentiable in the shares; in inference the same as copy, but for
semantic tokens, which are read by parts (`Assignment.reads`).
residual: as soft, and each position keeps its difference from its token at the time of the merge. The members
of a group then keep their own residual streams and share all later updates. So a merge alone changes nothing
in the unmerged grid; only differences between the updates of later blocks are lost.

B batch, N positions, M tokens before a merge, K slots after it, C channels.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.merging.apply import share_left
from pipeline.merging.rows import add_weighted_rows, take_rows
from pipeline.token_state import Assignment, Residual, TokenState, rows_of, widened

UNMERGES = ("copy", "soft", "residual")


def unmerge(state: TokenState) -> Tensor:
    """The full grid [B, C, h, w] of a state, of clips [B, C, t, h, w], without prefix tokens. The identity
    for a state that has not merged."""
    patches = unmerge_state(state)[:, state.num_prefix :]
    return patches.mT.reshape(patches.shape[0], -1, *state.grid)


def unmerge_state(state: TokenState) -> Tensor:
    """The value [B, N, C] of every input position, prefix included, not to be changed in place. With a
    residual: the grid of the last merge plus the change of each group since."""
    past = state.residual
    if past is None or past.grid is None or past.tokens is None:
        return unmerge_tokens(state.tokens, state.merges)
    if past.tokens is state.tokens:
        return past.grid
    gained = unmerge_tokens(state.tokens - past.tokens, state.merges)
    # in place where the sum has the dtype of the gain: half of the cost is new memory
    return gained.add_(past.grid) if gained.dtype == past.grid.dtype else gained + past.grid


def unmerge_tokens(values: Tensor, merges: Sequence[Assignment]) -> Tensor:
    """Values per slot, [B, M, C], at every input position, [B, N, C], prefix included. Differentiable in the
    values, in the shares of relaxed merges and in `reads`. Computed in float32 or wider, also under
    autocast."""
    if not merges:
        return values
    if all(merge.is_hard for merge in merges):
        return take_rows(values, slot_rows(merges))
    with torch.autocast(values.device.type, enabled=False):
        return reduce(_undo, reversed(merges), widened(values)).to(values.dtype)


def slots(state: TokenState) -> Tensor:
    """[B, N] int64 in [0, M): the slot of each input position; after relaxed merges the one that is
    reached through the largest share of each merge."""
    if not state.merges:
        return rows_of(1, state.tokens.shape[1], state.tokens.device).expand(state.tokens.shape[0], -1)
    return slot_rows(state.merges) % state.tokens.shape[1]


def start_unmerge(state: TokenState, how: str | None) -> TokenState:
    """The state before the first block, prepared for a way of unmerging; None: it will not be unmerged.
    Raises ConfigError for an unknown way."""
    if how not in (None, *UNMERGES):
        raise ConfigError(f"unmerge is '{how}'; give one of {', '.join(UNMERGES)}")
    return replace(state, residual=Residual()) if how == "residual" else state


def carry_residual(before: TokenState, after: TokenState) -> TokenState:
    """`after`, which was made from `before` by moving tokens, with the residual that keeps the unmerged
    grid."""
    if before.residual is None:
        return after
    return replace(after, residual=Residual(unmerge_state(before), after.tokens))


def residual_macs(state: TokenState) -> int:
    """MACs, for one image, of the grid that came with a state for unmerging by residual. Tokens that are read
    by parts (`Assignment.reads`) take a product of matrices; others are only gathered."""
    if state.residual is None or state.residual.grid is None:
        return 0
    pairs = sum(merge.reads[0].numel() for merge in state.merges if merge.reads is not None)
    return pairs * state.tokens.shape[-1]


def harden(state: TokenState) -> TokenState:
    """The state with hard merges in place of relaxed ones, for unmerging: each token belongs to the slot that
    holds most of it. Masks stay as they are: they are hard, with a gradient."""
    if all(merge.is_hard for merge in state.merges):
        return state
    merges = (merge if merge.masks else _hardened(merge) for merge in state.merges)
    return replace(state, merges=tuple(merges))


def _hardened(merge: Assignment) -> Assignment:
    """The merge for unmerging alone: every token is a source, also one that stays, so `apply` would count it
    twice."""
    slot = slot_of(merge)
    source = rows_of(len(slot), merge.num_tokens, slot.device)
    return replace(merge, source=source, slot=slot, share=None, reads=None)


def slot_rows(merges: Sequence[Assignment]) -> Tensor:
    """[B, N] int64: the slot of each input position, as a row of the flattened batch. There is at least one
    merge."""
    return reduce(lambda rows, merge: slot_of(merge).flatten()[rows], merges[1:], slot_of(merges[0]))


def slot_of(merge: Assignment) -> Tensor:
    """[B, M] int64: the slot that holds most of each token after a merge, as a row of the flattened batch."""
    batch, num_slots = merge.keep.shape
    own = rows_of(batch, num_slots, merge.keep.device)
    shape = (batch, merge.num_tokens)
    slot = own.new_zeros(shape).flatten().index_copy(0, merge.keep.flatten(), own.flatten())
    if merge.share is None:
        return slot.index_copy(0, merge.source.flatten(), merge.slot.flatten()).view(shape)
    left, source, share = share_left(merge).flatten(), merge.source.flatten(), merge.share.flatten()
    stays = torch.zeros_like(left).index_fill(0, merge.keep.flatten(), 1.0) > 0
    left = left.where(stays, -1.0)
    most = left.scatter_reduce(0, source, share, "amax")
    wins = (share == most[source]) & (share > left[source])
    receiver = torch.full_like(slot, -1).scatter_reduce(
        0, source, merge.slot.flatten().where(wins, -1), "amax"
    )
    return receiver.where(receiver >= 0, slot).view(shape)


def _undo(values: Tensor, merge: Assignment) -> Tensor:
    """[B, M, C] before a merge, from values [B, K, C] after it: the mean of the slots, weighted by the part
    of the token in each."""
    if merge.reads is not None:
        return merge.reads.to(values.dtype) @ values
    if merge.share is None:
        return take_rows(values, slot_of(merge))
    grid = values.new_zeros(values.shape[0], merge.num_tokens, values.shape[-1])
    own = rows_of(values.shape[0], values.shape[1], values.device)
    grid = add_weighted_rows(grid, merge.keep, values, own, take_rows(share_left(merge), merge.keep))
    return add_weighted_rows(grid, merge.source, values, merge.slot, merge.share)
