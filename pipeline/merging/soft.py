"""DTEM's continuously relaxed merge (Lee & Hong, NeurIPS 2024): the choice of pairs becomes shares, which
have a gradient.

B batch, M all tokens, n live ones, Na sources, Nb destinations, k candidates, r merges. All values are
float32, or float64 with tokens in float64. Only the similarities are as large as [Na, Nb].
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.merging.apply import share_left
from pipeline.merging.candidates import best_candidates
from pipeline.merging.matching import Split, quota_of
from pipeline.merging.rows import add_rows, take_rows
from pipeline.merging.soft_assignment import soft_assignment
from pipeline.token_state import Assignment, TokenState, rows_of


@dataclass(frozen=True)
class Candidates:
    """The best destinations of each source, the best one first."""

    target: Tensor
    """[B, Na, k] int64: positions among the destinations."""
    score: Tensor
    """[B, Na, k]"""
    share: Tensor
    """[B, Na, k]: the part of the source that the destination receives."""


def relaxed_top_r(
    scores: Tensor, r: int, *, candidates: int, tau1: float, tau2: float, quota: Tensor | None = None
) -> Candidates:
    """Shares of r softly chosen pairs, at most about one pair per source; of fewer for images whose quota [B]
    is smaller.

    scores [B, Na, Nb]. Every source has its `candidates` best destinations. The shares are the sum of r
    successive softmaxes over all these pairs; the part of a source that was chosen lowers its logits in the
    next ones. The shares of a source are clipped to a sum of 1, and the clip has no gradient, as in the
    authors' release. tau1 divides the scores, tau2 the logits of each softmax.
    """
    score, target = best_candidates(scores, min(candidates, scores.shape[-1]))
    share = soft_assignment(score, quota, r, tau1, tau2)
    return Candidates(*(planes.movedim(0, -1) for planes in (target, score, share)))


def straight_through(
    candidates: Candidates, ranked: Tensor, r: int, quota: Tensor | None = None
) -> Candidates:
    """Candidates with the shares of the hard merge, in which the first r ranked sources give everything to
    their best candidate, and with the gradient of the soft shares. ranked [B, Na]; quota [B]: how many do,
    where images have padding."""
    share = candidates.share
    first = torch.arange(ranked.shape[1], device=ranked.device) < (r if quota is None else quota[:, None])
    chosen = torch.zeros_like(share[..., 0]).scatter(1, ranked, first.expand_as(ranked).to(share.dtype))
    hard = torch.zeros_like(share)
    hard[..., 0] = chosen
    return replace(candidates, share=hard + (share - share.detach()))


def give_shares(
    state: TokenState, candidates: Candidates, split: Split, r: int, ranked: Tensor | None = None
) -> Assignment:
    """The assignment in which each source gives its shares to its candidates. No token is removed, and
    num_active falls by r.

    ranked [B, Na]: the sources, the first r of which would leave. The new order is that of the hard merge,
    then these r, then the tokens after the live ones, so that training has the partitions of inference. None:
    the live tokens are sorted by their new size, the largest first, as in the release.
    """
    (batch, num_tokens), live = state.size.shape, state.num_active
    rows = rows_of(batch, num_tokens, state.size.device)
    source = rows[:, split.sources].repeat_interleave(candidates.target.shape[-1], dim=1)
    receiver = rows[:, split.destinations].gather(1, candidates.target.flatten(1))
    in_place = Assignment(rows, source, receiver, num_tokens, live - r, candidates.share.flatten(1))
    if ranked is None:
        order = _by_new_size(state, in_place, split)
    elif state.quota is not None:
        order = _padding_before_what_leaves(state, ranked, split)
    else:
        stays, sources = ranked[:, r:].sort(dim=-1).values, rows[:, split.sources]
        stay = torch.cat([sources.gather(1, stays), rows[:, split.destinations]], dim=1)
        order = torch.cat([stay, sources.gather(1, ranked[:, :r])], dim=1)
    keep = torch.cat([rows[:, : state.num_prefix], order, rows[:, live:]], dim=1)
    slot_of = torch.empty_like(rows.flatten()).scatter(0, keep.flatten(), rows.flatten())
    return replace(in_place, keep=keep, slot=slot_of[receiver])


def _padding_before_what_leaves(state: TokenState, ranked: Tensor, split: Split) -> Tensor:
    """Rows [B, Na + Nb] of sources and destinations that stay, padding behind them, and those that leave at
    the end, as many of the ranked [B, Na] as `state.quota` says. So the last r are those of inference."""
    batch, num_tokens = state.size.shape
    rows = rows_of(batch, num_tokens, state.size.device)
    leaves = ranked.argsort(dim=-1) < quota_of(state)
    every = torch.cat([rows[:, split.sources], rows[:, split.destinations]], dim=1)
    behind = F.pad(2 * leaves.int(), (0, every.shape[1] - leaves.shape[1]))
    behind = behind + (take_rows(state.size, every) == 0)
    return every.gather(1, behind.argsort(dim=-1, stable=True))


def _by_new_size(state: TokenState, in_place: Assignment, split: Split) -> Tensor:
    """Rows [B, Na + Nb] of sources and destinations, sorted by their size after the merge, the largest
    first."""
    assert in_place.share is not None
    given = take_rows(state.size, in_place.source) * in_place.share
    size = add_rows(state.size * share_left(in_place), in_place.slot, given).detach()
    changed = torch.cat([in_place.keep[:, part] for part in (split.sources, split.destinations)], dim=1)
    # stable, as many sizes are equal: a token that receives nothing keeps size 1
    by_size = take_rows(size, changed).argsort(dim=-1, descending=True, stable=True)
    return changed.gather(1, by_size)
