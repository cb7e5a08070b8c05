"""Bipartite matching (ToMe, Bolya et al., ICLR 2023): which source merges into which destination.

B batch, M tokens, n live ones, Na sources, Nb destinations, r merges. Prefix tokens are in neither set.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.merging.on_gpu import matched
from pipeline.merging.rows import take_rows
from pipeline.token_state import Assignment, TokenState, rows_of, widened

FAR = -1e4
"""Score of a pair with padding in it, finite so that softmaxes are numbers."""


@dataclass(frozen=True)
class Split:
    """Positions of sources and destinations among the live tokens, as slices with step 2."""

    sources: slice
    destinations: slice

    @classmethod
    def by_parity(cls, num_live: int, num_prefix: int) -> "Split":
        """Even positions are sources, odd ones destinations, in training and inference alike."""
        odd = num_prefix % 2
        return cls(slice(num_prefix + odd, num_live, 2), slice(num_prefix + 1 - odd, num_live, 2))

    @classmethod
    def of_release(cls, num_live: int, num_prefix: int) -> "Split":
        """The split of the authors' DTEM release in training: the first patch is a source, whatever its
        position."""
        return cls(slice(num_prefix, num_live, 2), slice(num_prefix + 1, num_live, 2))

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of sources and destinations: Na, Nb."""
        num_sources, num_destinations = (
            len(range(part.start, part.stop, part.step)) for part in (self.sources, self.destinations)
        )
        return num_sources, num_destinations


def parity_split(state: TokenState) -> Split:
    """The split by parity of the tokens that still take part in merging."""
    return Split.by_parity(state.num_active, state.num_prefix)


def similarity(metric: Tensor, split: Split) -> Tensor:
    """Cosine similarity [B, Na, Nb] of sources and destinations, float32 or wider.

    metric [B, M, F], any float dtype.
    """
    unit = F.normalize(widened(metric), dim=-1)
    return unit[:, split.sources] @ unit[:, split.destinations].mT


def match_by(metric: Tensor, state: TokenState, r: int) -> Assignment:
    """ToMe's hard merge by a metric [B, M, F]: the r sources that are most similar to a destination merge
    into it, under the split by parity. r <= Na.

    What a policy calls that compares tokens by a metric. On a GPU a kernel does it, where that is faster: of
    equal scores, that of the first source and destination then counts as the higher one, and NaN as the
    lowest; by PyTorch's operators as the highest.
    """
    split = parity_split(state)

    def eager() -> Assignment:
        return match(state, similarity(metric, split), split, r)

    if state.quota is not None:
        return eager()
    return matched(metric, state.num_prefix, (split.sources.start, split.destinations.start), r, eager)


def match(state: TokenState, scores: Tensor, split: Split, r: int) -> Assignment:
    """The r sources whose best destination scores highest merge into it; see `rank`. scores [B, Na, Nb];
    r <= Na."""
    best, target = without_padding(state, scores, split).max(dim=-1)
    ranked = rank(state, best, split)
    return pair_up(state, ranked, target.gather(1, ranked[:, :r]), split)


def without_padding(state: TokenState, scores: Tensor, split: Split) -> Tensor:
    """scores [B, Na, Nb], in which every pair without padding is above all others."""
    if state.quota is None:
        return scores
    padding = state.size == 0
    return scores.masked_fill(padding[:, split.sources, None] | padding[:, None, split.destinations], FAR)


def rank(state: TokenState, best: Tensor, split: Split) -> Tensor:
    """[B, Na] int64: the sources in the order in which they merge, by their best scores [B, Na], the highest
    first. Where images have padding: first as many patches as `state.quota` says, then padding, then the
    other patches. best: see `without_padding`."""
    ranked = best.argsort(dim=-1, descending=True)
    if state.quota is None:
        return ranked
    padding = (state.size[:, split.sources] == 0).gather(1, ranked)
    waits = torch.arange(ranked.shape[1], device=ranked.device) >= state.quota[:, None]
    return ranked.gather(1, (waits.int() + (waits & ~padding)).argsort(dim=-1, stable=True))


def padding_last(state: TokenState, keep: Tensor) -> Tensor:
    """keep [B, K], rows of the tokens that stay, with padding behind all others: then a partition by position
    is the same for an image with padding as without."""
    if state.quota is None:
        return keep
    return keep.gather(1, (take_rows(state.size, keep) == 0).int().argsort(dim=-1, stable=True))


def pair_up(state: TokenState, ranked: Tensor, target: Tensor, split: Split) -> Assignment:
    """The first r of the ranked sources merge into their targets.

    ranked [B, Na] int64: all sources, as positions among them. target [B, r]: positions among the
    destinations. The new order is [prefix, sources that stay, ascending, destinations]: ToMe's; padding is
    behind them.
    """
    (batch, num_tokens), prefix, r = state.size.shape, state.num_prefix, target.shape[1]
    assert num_tokens == state.num_active, "a hard merge removes tokens, so none is behind the live ones"
    rows, num_slots = rows_of(batch, num_tokens, ranked.device), num_tokens - r
    first = split.sources.start
    sources = torch.add(rows[:, first : first + 1], ranked, alpha=split.sources.step)
    kept = sources[:, r:].sort(dim=-1).values
    keep = torch.cat([rows[:, :prefix], kept, rows[:, split.destinations]], dim=1)
    if state.quota is None:
        first = prefix + kept.shape[1]
        slot = rows.view(-1, 1)[first : batch * num_slots : num_slots] + target
    else:
        keep = padding_last(state, keep)
        slots = rows_of(batch, num_slots, rows.device)
        slot_of = torch.empty_like(rows.flatten()).scatter(0, keep.flatten(), slots.flatten())
        slot = slot_of[rows[:, split.destinations].gather(1, target)]
    return Assignment(
        keep=keep,
        source=sources[:, :r].contiguous(),  # as rows are taken by it several times
        slot=slot,
        num_tokens=num_tokens,
        num_active=num_slots,
    )
