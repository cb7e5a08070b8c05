"""Rates that are learned by gradients (DiffRate, Chen et al., ICCV 2023), of any policy whose tokens leave in
an order.

As in the paper: a rate is a distribution over numbers of tokens, a softmax of logits that learn. Its mean is
the rate, of tokens that stay rounded up, with the gradient of the mean. The token at rank j leaves with the
probability that more than j do: the forward pass is the hard merge, the gradient that of the probability. A
policy that prunes before it merges has two such rates in a block, and the larger one says how many leave.

Ours: candidates are the numbers that leave this block, at most half of its patches, and not those that stay
of the image. In the paper a token that leaves is masked in attention, from which the probability gets its
gradient, and is merged without one; here it gives a share of itself, so that sizes, which weigh attention,
and means have a gradient.

B batch, M tokens, n live ones, P patches before the first block, L tokens that a block can remove.
"""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.merging.evidence import Evidence
from pipeline.merging.policy import MergePolicy
from pipeline.merging.schedule import mergeable
from pipeline.token_state import Assignment, TokenState, rows_of

SPREAD = 1 / 16
"""Deviation of the first distributions, as a share of the patches."""
OF_TOKENS = ("tokens", "keys", "embedding")
"""Values of Evidence with a row [B, M, ...] for each token; the others have tokens last."""


class Rate:
    """A number of tokens that learns. logits [P // 2 + 1], float32: of 0, 1, ... tokens."""

    def __init__(self, start: float, patches: int, device: torch.device):
        """start: about the first mean."""
        numbers = torch.arange(patches // 2 + 1, device=device)
        self.logits = nn.Parameter(-0.5 * ((numbers - start) / (SPREAD * patches)) ** 2)

    def more_than(self, most: int) -> Tensor:
        """[L]: the probabilities that more than 0, 1, ... tokens leave, of numbers up to `most`, which is
        L."""
        shares = self.logits[: most + 1].softmax(dim=0)
        return shares[1:].flip(0).cumsum(0).flip(0)

    def mean(self, most: int) -> Tensor:
        """The mean number of tokens, of numbers up to `most`. A scalar."""
        return self.more_than(most).sum()


class BlockRates:
    """The rates of a block. pruned: of a policy that prunes before it merges; None: it has one rate."""

    def __init__(self, merged: Rate, pruned: Rate | None = None):
        self.merged, self.pruned = merged, pruned

    @property
    def logits(self) -> list[nn.Parameter]:
        return [rate.logits for rate in (self.merged, self.pruned) if rate is not None]

    def mean(self, most: int) -> Tensor:
        """The mean number of tokens that leave, a scalar. most: that can leave."""
        merged = self.merged.mean(most)
        return merged if self.pruned is None else torch.maximum(merged, self.pruned.mean(most))

    def pruned_mean(self, most: int) -> Tensor:
        """The mean number of tokens that are pruned, a scalar."""
        return torch.zeros(()) if self.pruned is None else self.pruned.mean(most)

    def removed(self, most: int) -> Tensor:
        """The number of tokens that leave, a whole one with the gradient of the mean: of what stays rounded
        up, but one leaves where one can, as else no gradient of the loss would reach the rate."""
        mean = self.mean(most)
        return mean + (mean.floor().clamp(min=min(1, most)) - mean).detach()

    def leaves(self, most: int) -> Tensor:
        """[L]: the probability that the token at each rank leaves."""
        merged = self.merged.more_than(most)
        return merged if self.pruned is None else 1 - (1 - merged) * (1 - self.pruned.more_than(most))

    def arrives(self, most: int) -> Tensor | None:
        """[L]: 1 for the ranks that are not pruned, 0 for the others, with the gradient of the probability;
        None where none is."""
        if self.pruned is None:
            return None
        stays = 1 - self.pruned.more_than(most)
        pruned = self.pruned.mean(most).detach().floor()
        hard = torch.arange(most, device=stays.device) >= pruned
        return hard.to(stays.dtype) + (stays - stays.detach())


class LearnedRate(MergePolicy):
    """The merges of `base`, which `ranks`. A relaxed pass merges the first r of its tokens, and has a
    gradient to the rates."""

    supports_relaxed = True

    def __init__(self, base: MergePolicy, rates: BlockRates):
        self.base, self.rates = base, rates
        self.needs, self.requires, self.partition = base.needs, base.requires, base.partition

    def metric(self, evidence: Evidence) -> Tensor | None:
        return self.base.metric(evidence)

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment | None:
        if not relaxed:
            return self.base.choose(evidence, state, r, relaxed=False)
        most = mergeable(state.num_active, state.num_prefix)
        live, seen = _live(state), cast(Evidence, _Seen(evidence, state.num_active))
        with torch.no_grad():
            first, every = (self.base.ranked(seen, live, count) for count in (r, most))
        leaves = self.rates.leaves(most).to(state.size.dtype)
        hard = (torch.arange(most, device=leaves.device) < r).to(leaves.dtype)
        return in_shares(state, first, every, hard + (leaves - leaves.detach()), self.rates.arrives(most))


class _Seen:
    """The evidence of the first `count` tokens, those that are live."""

    def __init__(self, evidence: Evidence, count: int):
        self._evidence, self._count = evidence, count

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._evidence, name)
        if not isinstance(value, Tensor):
            return value
        return value[:, : self._count] if name in OF_TOKENS else value[..., : self._count]


def _live(state: TokenState) -> TokenState:
    """The state of the live tokens, of which nothing has a gradient, to choose a hard merge by."""
    live = state.num_active
    return replace(state, tokens=state.tokens[:, :live].detach(), size=state.size[:, :live].detach())


def in_shares(
    state: TokenState, first: Assignment, every: Assignment, share: Tensor, arrives: Tensor | None = None
) -> Assignment:
    """The relaxed assignment of a hard one of r tokens, and of one of all L that can leave, which goes on
    with the same order. Both are of the n live tokens alone; the new order is that of the hard one, then its
    sources, then what was not live.

    share [L]: the part of each source that is given, 1 for the first r and 0 for the others, with gradient.
    arrives [L]: the part of that which is not pruned; None: all.
    """
    (batch, num_tokens), live = state.size.shape, state.num_active
    r, start = first.source.shape[1], num_tokens * rows_of(batch, 1, state.size.device)
    keep, gone = first.keep % live, first.source % live
    source = torch.cat([gone, every.source[:, r:] % live], dim=1)
    receiver = torch.cat(
        [one.keep.flatten()[one.slot[:, begin:]] % live for one, begin in ((first, 0), (every, r))], dim=1
    )
    behind = torch.arange(live, num_tokens, device=keep.device).expand(batch, -1)
    order = start + torch.cat([keep, gone, behind], dim=1)
    place = torch.empty_like(order.flatten()).scatter(
        0, order.flatten(), rows_of(batch, num_tokens, order.device).flatten()
    )
    part = None
    if first.part is not None and every.part is not None:
        part = torch.cat([first.part, every.part[:, r:]], dim=1)
        part = part if arrives is None else part * arrives.to(part.dtype)
    weight = None if first.weight is None else F.pad(first.weight, (0, num_tokens - live), value=1.0)
    return Assignment(
        order,
        start + source,
        place[start + receiver],
        num_tokens,
        live - r,
        share=share.expand(batch, -1),
        weight=weight,
        part=part,
    )
