"""The source map applied backwards: every input position gets the value of the slot it went to.

Three ways (`UNMERGES`). copy: the token of the slot, and nothing else. soft: in a relaxed merge the mean of
the tokens that hold a share of the position, S @ tokens, differentiable in the shares; in inference the same
as copy. residual: beside that, each position keeps what it differed from its token when it was merged. The
residual stream of a merged group is then the members' own streams with all later updates shared, so a merge
alone changes nothing in the unmerged grid; only what later blocks would have done differently is lost.

B batch, N positions, M slots, C channels.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.merging.matching import take_rows
from pipeline.token_state import Residual, SourceMap, TokenState

UNMERGES = ("copy", "soft", "residual")


def unmerge(state: TokenState) -> Tensor:
    """tokens [B, M, C] -> the full grid [B, C, h, w], prefix tokens left out. The identity for a state that
    has not merged."""
    height, width = state.grid
    patches = unmerge_state(state)[:, state.num_prefix :]
    return patches.mT.reshape(patches.shape[0], -1, height, width)


def unmerge_state(state: TokenState) -> Tensor:
    """tokens [B, M, C] -> [B, N, C], prefix included: with a residual, the grid of the last merge and what
    its group has gained since."""
    past = state.residual
    if past is None or past.grid is None or past.tokens is None:
        return unmerge_tokens(state.tokens, state.source)
    if past.tokens is state.tokens:
        return past.grid
    gained = unmerge_tokens(state.tokens - past.tokens, state.source)
    return (
        gained.add_(past.grid) if gained.dtype == past.grid.dtype else gained + past.grid
    )  # in place: half of the cost is new memory


def unmerge_tokens(values: Tensor, source: SourceMap | None) -> Tensor:
    """Any values per slot, [B, M, C] -> [B, N, C], prefix included. Differentiable in the values and in a
    soft map's weights, whose dtype it computes in, whatever autocast says."""
    if source is None:
        raise ConfigError(
            "this state has no source map: call the backbone with unmerge='soft' (or another way) to "
            "unmerge a relaxed merge"
        )
    if source.slots is not None:
        return take_rows(values, source.slots)
    assert source.weights is not None
    with torch.autocast(values.device.type, enabled=False):
        return (source.weights @ values.to(source.weights.dtype)).to(values.dtype)


def start_unmerge(state: TokenState, how: str | None) -> TokenState:
    """The state before the first block, made ready for a way of unmerging (None: its grid will not be
    asked for)."""
    if how not in (None, *UNMERGES):
        raise ConfigError(f"unmerge is '{how}'; give one of {', '.join(UNMERGES)}")
    return replace(state, residual=Residual()) if how == "residual" else state


def carry_residual(before: TokenState, after: TokenState) -> TokenState:
    """`after`, which came from `before` by moving tokens, with the residual that leaves the unmerged grid as
    it was."""
    if before.residual is None or after is before:
        return after
    return replace(after, residual=Residual(unmerge_state(before), after.tokens))


def harden(state: TokenState) -> TokenState:
    """Each position reads the one slot that holds most of it."""
    if state.source is None or state.source.weights is None:
        return state
    return replace(state, source=SourceMap(slots=state.source.weights.argmax(dim=-1)))
