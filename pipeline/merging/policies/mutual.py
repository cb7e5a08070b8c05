"""Mutual nearest pairs, after MPM (Mutual Pair Merging, arXiv 2604.05718): two tokens merge where each is the
most similar to the other.

The paper merges as many pairs as there are, and its code was not found. Ours is the rest: r tokens merge in
every image, by keys. Of more mutual pairs than r the most similar merge. Of fewer, the tokens that are left
join the group of their nearest token, the most similar first. Only one token of each mutual pair never
leaves; these are at most half of all, so r tokens always can.
"""

import torch
from torch import Tensor

from pipeline.merging.evidence import Evidence
from pipeline.merging.groups import join, likeness, positions, real
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.token_state import Assignment, TokenState


@POLICIES.register("mutual")
class MutualPairs(MergePolicy):
    """Merges the pairs whose tokens are each other's nearest by their keys."""

    needs = frozenset({"keys"})
    compares_all = True

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        own = positions(state)
        alike = likeness(evidence.keys, state)
        alike = alike.maximum(alike.mT)  # rounded alike, so that of equal tokens no three chase each other
        alike = alike.masked_fill(torch.eye(own.shape[1], dtype=torch.bool, device=own.device), -torch.inf)
        if (valid := real(state)) is not None:
            alike = alike.masked_fill(~(valid[:, None] & valid[..., None]), -torch.inf)
        best, nearest = alike.max(dim=-1)
        leaving = first_to_leave(best, nearest, own)[:, :r]
        target = nearest.gather(1, leaving)
        if state.quota is not None:
            goes = torch.arange(r, device=own.device) < state.quota[:, None]
            target = target.where(goes, leaving)
        return join(state, ends(own.scatter(1, leaving, target), r), r)


def first_to_leave(best: Tensor, nearest: Tensor, own: Tensor) -> Tensor:
    """[B, n]: positions in the order in which they join their nearest token: one of each mutual pair, then
    those of no pair, and behind them the other one of each pair, which stays. best, nearest [B, n]: the
    highest similarity of a token, and with whom. own [B, n]: positions."""
    mutual = nearest.gather(1, nearest) == own
    score = (best + 4 * mutual).masked_fill(mutual & (own < nearest), -torch.inf)
    return score.argsort(dim=-1, descending=True, stable=True)


def ends(receiver: Tensor, r: int) -> Tensor:
    """receiver [B, n] with chains of at most r steps followed to their ends."""
    for _ in range(r.bit_length()):
        receiver = receiver.gather(1, receiver)
    return receiver
