"""DTEM's continuously relaxed merge (Lee & Hong, NeurIPS 2024): which tokens merge becomes a share that has a
gradient.

B batch, M all tokens, n live ones, Na sources, Nb destinations, k candidates, r merges. Everything is
float32, or float64 where the tokens are. Nothing is [Na, Nb] but the similarities.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.merging.apply import SMALLEST, add_rows, share_left, take_rows
from pipeline.merging.matching import Split
from pipeline.token_state import Assignment, TokenState, rows_of


@dataclass(frozen=True)
class Candidates:
    """The best destinations of each source, the best one first. target [B, Na, k] int64, among the
    destinations. score, share [B, Na, k]: the share of the source that each is given."""

    target: Tensor
    score: Tensor
    share: Tensor


def relaxed_top_r(scores: Tensor, r: int, *, candidates: int, tau1: float, tau2: float) -> Candidates:
    """Shares of r softly chosen pairs, at most about one pair per source.

    scores [B, Na, Nb]. Every source keeps its `candidates` best destinations; r successive softmaxes over all
    pairs that are left add up to the shares, and a source that was chosen is masked by what was chosen of it.
    The shares of a source are clipped to a sum of 1, with the clip outside the gradient, as in the paper's
    release.
    """
    score, target = scores.topk(min(candidates, scores.shape[-1]), dim=-1)
    logits = score / tau1
    share = torch.zeros_like(logits)
    for _ in range(r):
        picked = (logits / tau2).flatten(1).softmax(dim=-1).view_as(logits)
        share = share + picked
        logits = logits + torch.log((1 - picked.sum(dim=-1, keepdim=True)).clamp(min=SMALLEST))
    return Candidates(target, score, share / share.detach().sum(dim=-1, keepdim=True).clamp(min=1.0))


def rank_sources(candidates: Candidates) -> Tensor:
    """[B, Na] int64: the sources, that with the best candidate first."""
    return candidates.score[..., 0].detach().argsort(dim=-1, descending=True)


def straight_through(candidates: Candidates, ranked: Tensor, r: int) -> Candidates:
    """The values of the hard merge, in which the first r ranked sources give all to their best candidate,
    with the gradient of the shares. ranked [B, Na]."""
    share = candidates.share
    chosen = torch.zeros_like(share[..., 0]).scatter(1, ranked[:, :r], 1.0)
    hard = torch.zeros_like(share)
    hard[..., 0] = chosen
    return replace(candidates, share=hard + (share - share.detach()))


def give_shares(
    state: TokenState, candidates: Candidates, split: Split, r: int, ranked: Tensor | None = None
) -> Assignment:
    """Each source gives its shares to its candidates; nothing is removed, and num_active falls by r.

    ranked [B, Na]: the sources, of which the first r would leave. The order is then that of the hard merge,
    followed by those r and by what is behind the live tokens: training then sees inference's partitions.
    None: the live tokens are sorted by their new size, the largest first, as in the release.
    """
    (batch, num_tokens), live = state.size.shape, state.num_active
    rows = rows_of(batch, num_tokens, state.size.device)
    source = rows[:, split.sources].repeat_interleave(candidates.target.shape[-1], dim=1)
    receiver = rows[:, split.destinations].gather(1, candidates.target.flatten(1))
    in_place = Assignment(rows, source, receiver, num_tokens, live - r, candidates.share.flatten(1))
    if ranked is None:
        order = _by_new_size(state, in_place, split)
    else:
        kept, sources = ranked[:, r:].sort(dim=-1).values, rows[:, split.sources]
        order = torch.cat(
            [sources.gather(1, kept), rows[:, split.destinations], sources.gather(1, ranked[:, :r])], dim=1
        )
    keep = torch.cat([rows[:, : state.num_prefix], order, rows[:, live:]], dim=1)
    slot_of = torch.empty_like(rows.flatten()).scatter(0, keep.flatten(), rows.flatten())
    return replace(in_place, keep=keep, slot=slot_of[receiver])


def _by_new_size(state: TokenState, in_place: Assignment, split: Split) -> Tensor:
    """Rows [B, Na + Nb] of sources and destinations, the largest after the merge first."""
    assert in_place.share is not None
    given = take_rows(state.size, in_place.source) * in_place.share
    size = add_rows(state.size * share_left(in_place), in_place.slot, given).detach()
    changed = torch.cat([in_place.keep[:, part] for part in (split.sources, split.destinations)], dim=1)
    by_size = take_rows(size, changed).argsort(dim=-1, descending=True, stable=True)
    return changed.gather(1, by_size)  # what nothing merges into keeps size 1, so many are equal
