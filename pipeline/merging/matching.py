"""Bipartite matching (ToMe, Bolya et al., ICLR 2023): which source merges into which destination.

B batch, M tokens, n live ones, Na sources, Nb destinations, r merges. Prefix tokens are in neither set.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.merging.on_gpu import matched
from pipeline.merging.partitions import PARITY, in_partition
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


def match_by(metric: Tensor, state: TokenState, r: int, partition: str = PARITY) -> Assignment:
    """ToMe's hard merge by a metric [B, M, F]: the r sources that are most similar to a destination merge
    into it. r <= Na. partition: which tokens are sources, one of `pipeline.merging.partitions.PARTITIONS`.

    What a policy calls that compares tokens by a metric. On a GPU a kernel does it, where that is faster: of
    equal scores, that of the first source and destination then counts as the higher one, and NaN as the
    lowest; by PyTorch's operators as the highest.
    """
    return in_partition(partition, metric, state, partial(_match_by_parity, r=r))


def _match_by_parity(metric: Tensor | None, state: TokenState, r: int) -> Assignment:
    assert metric is not None
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


def match_both_ways(state: TokenState, scores: Tensor, split: Split, r: int) -> Assignment:
    """MCTF's matching in two passes: half of the merges, rounded down, go from sources to destinations as in
    `match`, and then the others from destinations to the sources that stay. scores [B, Na, Nb]; r <= Na, Nb.

    A destination that received in the first pass may leave in the second, and takes along what it received.
    Each token goes straight to where that ends, so this is one merge of groups, and its source map holds for
    both passes. The new order is the authors': [prefix, sources that stay, ascending, destinations that stay,
    by falling score]; padding is behind them.
    """
    (batch, num_tokens), device = state.size.shape, state.size.device
    assert num_tokens == state.num_active, "a hard merge removes tokens, so none is behind the live ones"
    wanted = r if state.quota is None else state.quota[:, None]
    place = torch.arange(num_tokens, device=device).expand(batch, -1)
    sources, destinations = place[:, split.sources], place[:, split.destinations]
    scores = without_padding(state, scores, split)
    best, target = scores.max(dim=-1)
    leaves = _inverse(best.argsort(dim=-1, descending=True)) < wanted // 2
    best, back = scores.masked_fill(leaves[..., None], -torch.inf).mT.max(dim=-1)
    ranked = best.argsort(dim=-1, descending=True)
    leaves_then = _inverse(ranked) < wanted - wanted // 2
    second = torch.where(leaves_then, sources.gather(1, back), destinations)
    first = torch.where(leaves, second.gather(1, target), sources)
    ends = place.clone()
    ends[:, split.sources], ends[:, split.destinations] = first, second
    order = torch.cat([place[:, : state.num_prefix], sources, destinations.gather(1, ranked)], dim=1)
    return _grouped(state, ends, order, num_tokens - r)


def _grouped(state: TokenState, ends: Tensor, order: Tensor, num_slots: int) -> Assignment:
    """Each token goes to where it ends, `ends` [B, M]: at itself, if it stays. Those that stay keep the order
    [B, M], and padding is behind all; the last of it leaves where fewer tokens merge than slots have to."""
    place = torch.arange(ends.shape[1], device=ends.device)
    behind = (ends != place).to(torch.int8) * 2
    if state.quota is not None:
        behind = behind + (state.size == 0).to(torch.int8)
    order = order.gather(1, behind.gather(1, order).argsort(dim=-1, stable=True))
    keep, source = order.split_with_sizes((num_slots, ends.shape[1] - num_slots), dim=-1)
    slot = _inverse(order).gather(1, ends.gather(1, source)).clamp(max=num_slots - 1)
    return Assignment.of(keep, source, slot, ends.shape[1])


def _inverse(order: Tensor) -> Tensor:
    """[B, M] int64: the place of each position in an order [B, M] of them."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places)


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
    if state.quota is not None:
        return _pairs_beside_padding(state, ranked[:, :r], target, split)
    rows, num_slots = rows_of(batch, num_tokens, ranked.device), num_tokens - r
    first = split.sources.start
    sources = torch.add(rows[:, first : first + 1], ranked, alpha=split.sources.step)
    kept = sources[:, r:].sort(dim=-1).values
    keep = torch.cat([rows[:, :prefix], kept, rows[:, split.destinations]], dim=1)
    first = prefix + kept.shape[1]
    slot = rows.view(-1, 1)[first : batch * num_slots : num_slots] + target
    return Assignment(
        keep=keep,
        source=sources[:, :r].contiguous(),  # as rows are taken by it several times
        slot=slot,
        num_tokens=num_tokens,
        num_active=num_slots,
    )


def _pairs_beside_padding(state: TokenState, ranked: Tensor, target: Tensor, split: Split) -> Assignment:
    """The same where images have padding: as many of the ranked sources [B, r] merge as `state.quota` says,
    and for the rest of r padding leaves, which may be among the destinations too."""
    batch, num_tokens = state.size.shape
    place = torch.arange(num_tokens, device=ranked.device).expand(batch, -1)
    sources, destinations = place[:, split.sources], place[:, split.destinations]
    giving = sources.gather(1, ranked)
    goes = torch.arange(ranked.shape[1], device=ranked.device) < quota_of(state)
    ends = place.scatter(1, giving, torch.where(goes, destinations.gather(1, target), giving))
    order = torch.cat([place[:, : state.num_prefix], sources, destinations], dim=1)
    return _grouped(state, ends, order, num_tokens - ranked.shape[1])


def quota_of(state: TokenState) -> Tensor:
    """[B, 1] int64: how many patches each image loses, where images have padding."""
    assert state.quota is not None, "without padding each loses as many"
    return state.quota[:, None]
