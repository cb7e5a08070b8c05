"""Hard bipartite matching and merging (ToMe, Bolya et al., ICLR 2023), the operator of inference.

B batch, n live tokens, p of them prefix, Na sources, Nb destinations, r merges. Patches at even positions are
sources (A), those at odd positions destinations (B); prefix tokens are in neither set.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.merging.schedule import mergeable
from pipeline.token_state import TokenState, widened

SMALLEST = torch.finfo(torch.float32).eps
"""Least size that is divided by: tokens of size 0 merge to 0, not to 0 / 0."""


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
        """What the authors' DTEM release uses in training: the first patch is a source, whatever its
        position."""
        return cls(slice(num_prefix, num_live, 2), slice(num_prefix + 1, num_live, 2))


@dataclass(frozen=True)
class Matching:
    """kept [B, Na - r] sources that stay, ascending; merged [B, r] sources that leave; target [B, r] their
    destinations.

    All int64: positions within the source set and the destination set.
    """

    kept: Tensor
    merged: Tensor
    target: Tensor


def similarity(metric: Tensor, split: Split) -> Tensor:
    """Cosine similarity [B, Na, Nb] of sources and destinations, float32 or wider; metric [B, M, F], any
    float dtype."""
    unit = F.normalize(widened(metric), dim=-1)
    return unit[:, split.sources] @ unit[:, split.destinations].mT


def best_pairs(scores: Tensor, r: int) -> Matching:
    """Each source's best destination, and the r sources whose best is highest. scores [B, Na, Nb]; r <=
    Na."""
    best, target = scores.max(dim=-1)
    ranked = best.argsort(dim=-1, descending=True)
    merged = ranked[:, :r]
    return Matching(kept=ranked[:, r:].sort(dim=-1).values, merged=merged, target=target.gather(1, merged))


def merge_hard(state: TokenState, matching: Matching, split: Split) -> TokenState:
    """Size-weighted mean of every merged source with its destination; the order becomes [prefix, kept
    sources, destinations]."""
    num_prefix, tokens, size = state.num_prefix, state.tokens, state.size
    kept, merged = positions(matching.kept, split.sources), positions(matching.merged, split.sources)
    destinations, destination_size = tokens[:, split.destinations], size[:, split.destinations]

    leaving_size = size.gather(1, merged)
    leaving = widened(take_rows(tokens, merged)) * leaving_size[..., None]
    total_size = destination_size.scatter_add(1, matching.target, leaving_size)
    total = add_rows(widened(destinations) * destination_size[..., None], matching.target, leaving)
    mean = (total / total_size.clamp(min=SMALLEST)[..., None]).to(tokens.dtype)

    assert state.source is not None
    return TokenState(
        tokens=torch.cat([tokens[:, :num_prefix], take_rows(tokens, kept), mean], dim=1),
        size=torch.cat([size[:, :num_prefix], size.gather(1, kept), total_size], dim=1),
        source=state.source.then(slots_after(matching, split, num_prefix, state.num_active)),
        grid=state.grid,
        num_prefix=num_prefix,
        num_active=state.num_active - merged.shape[1],
    )


def slots_after(matching: Matching, split: Split, num_prefix: int, num_live: int) -> Tensor:
    """[B, n] int64: the slot that each live token is in after the merge."""
    batch, num_kept = matching.kept.shape
    num_sources = num_kept + matching.merged.shape[1]
    slots = torch.arange(num_live, device=matching.kept.device).repeat(batch, 1)
    first_kept, first_destination = num_prefix, num_prefix + num_kept
    of_source = slots.new_empty(batch, num_sources)
    of_source.scatter_(1, matching.kept, slots[:, first_kept:first_destination])
    of_source.scatter_(1, matching.merged, matching.target + first_destination)
    slots[:, split.destinations] = torch.arange(
        first_destination, num_live - matching.merged.shape[1], device=slots.device
    )
    slots[:, split.sources] = of_source
    return slots


def match_and_merge(state: TokenState, metric: Tensor, r: int) -> TokenState:
    """The whole hard step: r is capped to what can be merged; 0 leaves the state as it is. metric [B, M,
    F]."""
    r = min(r, mergeable(state.num_active, state.num_prefix))
    if r <= 0:
        return state
    split = Split.by_parity(state.num_active, state.num_prefix)
    with torch.no_grad(), torch.autocast(metric.device.type, enabled=False):
        matching = best_pairs(similarity(metric, split), r)
    return merge_hard(state, matching, split)


def positions(index: Tensor, part: slice) -> Tensor:
    """From positions within a part of the tokens (`Split`) to positions among all of them."""
    return part.start + part.step * index


def take_rows(tokens: Tensor, index: Tensor) -> Tensor:
    """tokens [B, M, C], index [B, K] in [0, M) -> [B, K, C]. Copies whole rows: on a CPU about ten times as
    fast as gather."""
    return tokens.flatten(0, 1).index_select(0, _flat(index, tokens.shape[1])).unflatten(0, index.shape)


def add_rows(tokens: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """tokens [B, M, C] plus rows [B, K, C] at index [B, K], where an index may come more than once."""
    return (
        tokens.flatten(0, 1)
        .index_add(0, _flat(index, tokens.shape[1]), rows.flatten(0, 1))
        .unflatten(0, (-1, tokens.shape[1]))
    )


def _flat(index: Tensor, num_rows: int) -> Tensor:
    """[B, K] within each image -> [B * K] within the batch."""
    return (index + num_rows * torch.arange(index.shape[0], device=index.device)[:, None]).flatten()
