"""Bipartite matching (ToMe, Bolya et al., ICLR 2023): which source merges into which destination.

B batch, M tokens, n live ones, Na sources, Nb destinations, r merges. Prefix tokens are in neither set.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.token_state import Assignment, TokenState, rows_of, widened


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


def match(state: TokenState, scores: Tensor, split: Split, r: int) -> Assignment:
    """The r sources whose best destination scores highest merge into it, and padding before all others.
    scores [B, Na, Nb]; r <= Na."""
    best, target = scores.max(dim=-1)
    if state.padded:
        best = best.masked_fill(state.size[:, split.sources] == 0, torch.inf)
    ranked = best.argsort(dim=-1, descending=True)
    return pair_up(state, ranked, target.gather(1, ranked[:, :r]), split)


def pair_up(state: TokenState, ranked: Tensor, target: Tensor, split: Split) -> Assignment:
    """The first r of the ranked sources merge into their targets.

    ranked [B, Na] int64: all sources, as positions among them. target [B, r]: positions among the
    destinations. The new order is [prefix, sources that stay, ascending, destinations]: ToMe's.
    """
    (batch, num_tokens), prefix, r = state.size.shape, state.num_prefix, target.shape[1]
    assert num_tokens == state.num_active, "a hard merge removes tokens, so none is behind the live ones"
    rows, num_slots = rows_of(batch, num_tokens, ranked.device), num_tokens - r
    sources = torch.add(rows[:, split.sources][:, :1], ranked, alpha=split.sources.step)
    kept = sources[:, r:].sort(dim=-1).values
    first = prefix + kept.shape[1]
    slots = rows.flatten()[: batch * num_slots].view(batch, num_slots)
    return Assignment(
        keep=torch.cat([rows[:, :prefix], kept, rows[:, split.destinations]], dim=1),
        source=sources[:, :r],
        slot=slots[:, first : first + 1] + target,
        num_tokens=num_tokens,
        num_active=num_slots,
    )
