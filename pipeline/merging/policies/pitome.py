"""PiToMe (Tran et al., NeurIPS 2024, arXiv 2405.16148): tokens in dense groups merge, those that stand alone
are protected.

The energy of a token is the mean over all patches of f(cosine of their keys - margin), where f is the ELU:
high for a token with many like it. The 2r tokens of the highest energy are parted in turns, and each of one
half merges into the one of the other that is most like it. The margin falls from block to block.

As their release computes it; the paper's equation has the cosine itself where that is above the margin. The
paper also does not say what the release does in the first half of the blocks: all tokens are parted in turns
by their energy, and the r most similar pairs merge.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.groups import join, likeness, positions, real
from pipeline.merging.matching import FAR
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.token_state import Assignment, TokenState


@POLICIES.register("pitome")
class PiToMe(MergePolicy):
    """Merges tokens that are like many others, and protects the rest.

    margin: of the first block, in [-1, 1]; it falls to 0 towards the last one. alpha: how much what is below
    the margin counts against a token. until: share of the blocks, from the first, that protect nothing, as in
    the release; 0 is the paper. Raises ConfigError.
    """

    needs = frozenset({"keys"})
    compares_all = True

    def __init__(self, *, margin: float = 0.9, alpha: float = 1.0, until: float = 0.5):
        if not -1 <= margin <= 1:
            raise ConfigError(f"pitome: margin is {margin}; give a cosine, in [-1, 1]")
        if not 0 <= alpha < math.inf:
            raise ConfigError(f"pitome: alpha is {alpha}; give 0 or more")
        if not 0 <= until <= 1:
            raise ConfigError(f"pitome: until is {until}; give a share of the blocks, in [0, 1]")
        self.margin, self.alpha, self.until = margin, alpha, until

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        alike, valid = likeness(evidence.keys, state), real(state)
        energy = energies(alike, self.margin * (1 - evidence.depth), self.alpha, valid)
        ranked = energy.argsort(dim=-1, descending=True, stable=True)
        merges = None if state.quota is None else torch.arange(r, device=alike.device) < state.quota[:, None]
        if evidence.depth < self.until:
            giving, target = _most_similar(alike, ranked, valid, r)
        else:
            giving, target = _of_most_energy(alike, ranked[:, : 2 * r], merges)
        target = target if merges is None else target.where(merges, giving)
        return join(state, positions(state).scatter(1, giving, target), r)


def _most_similar(alike: Tensor, ranked: Tensor, valid: Tensor | None, r: int) -> tuple[Tensor, Tensor]:
    """[B, r] each: the patches that are most like one of the other half, and these, where the ranked [B, n]
    are parted in turns. valid [B, n]: which patches are no padding; None: all."""
    giving, receiving = ranked[:, ::2], ranked[:, 1::2]
    between = _between(alike, giving, receiving)
    if valid is not None:
        pairs = valid.gather(1, giving)[..., None] & valid.gather(1, receiving)[:, None]
        between = between.masked_fill(~pairs, FAR)
    best, where = between.max(dim=-1)
    first = best.argsort(dim=-1, descending=True, stable=True)[:, :r]
    return giving.gather(1, first), receiving.gather(1, where.gather(1, first))


def _of_most_energy(alike: Tensor, ranked: Tensor, merges: Tensor | None) -> tuple[Tensor, Tensor]:
    """[B, r] each: every second one of the ranked [B, 2r], and of the others the one that is most like it.
    merges [B, r]: which pairs an image has, where it has padding; None: all."""
    giving, receiving = ranked[:, ::2], ranked[:, 1::2]
    between = _between(alike, giving, receiving)
    if merges is not None:
        between = between.masked_fill(~merges[:, None], FAR)
    return giving, receiving.gather(1, between.argmax(dim=-1))


def _between(alike: Tensor, giving: Tensor, receiving: Tensor) -> Tensor:
    """[B, Na, Nb]: the cosines [B, n, n] of some patches [B, Na] and others [B, Nb]."""
    rows = alike.gather(1, giving[..., None].expand(-1, -1, alike.shape[2]))
    return rows.gather(2, receiving[:, None].expand(-1, giving.shape[1], -1))


def energies(alike: Tensor, margin: float, alpha: float, real: Tensor | None = None) -> Tensor:
    """[B, n]: the energy of each patch, from the cosines [B, n, n]. real [B, n]: which are no padding, whose
    energy is -inf."""
    excess = F.elu(alike - margin, alpha)
    if real is None:
        return excess.mean(dim=-1)
    total = excess.masked_fill(~real[:, None], 0).sum(dim=-1)
    energy = total / real.sum(dim=-1, keepdim=True).clamp(min=1)
    return energy.masked_fill(~real, -torch.inf)
