"""A schedule that is learned by gradients, as DiffRate (Chen et al., ICCV 2023) learns its rates, over the
merges of a policy of ours and without labels. Written from the paper's equations.

Each block has logits over how many sources merge, whose softmax gives a distribution. Sources are sorted by
their similarity, and that at rank i merges with the probability that more than i do. The forward pass merges
as many as the distribution's mean says; the gradient of what merges is that of the probabilities. The loss is
the divergence from the unmerged model, and the squared distance of the mean MACs from their target. Nothing
but the logits learns. B batch, M tokens, Na sources, P patches.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.backbone.macs import Counted
from pipeline.backbone.macs_goal import MacsGoal
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.merging.evidence import Evidence
from pipeline.merging.matching import parity_split, rank, similarity, without_padding
from pipeline.merging.policy import MergePolicy
from pipeline.merging.schedule import mergeable, merged_shares
from pipeline.merging.soft import Candidates, give_shares
from pipeline.token_state import Assignment, TokenState

LR, WEIGHT, SPREAD = 0.3, 100.0, 1 / 16
"""Step of Adam; weight of the MACs' squared distance beside a divergence that is 1 for the even schedule; and
deviation of the first distributions, as a share of the patches, around that schedule."""
T = TypeVar("T")


class LearnedRate(MergePolicy):
    """The merges of `base`, of which a relaxed pass takes as many as a distribution says. logits [P // 2 + 1]
    of 0, 1, ... sources."""

    supports_relaxed = True

    def __init__(self, base: MergePolicy, logits: Tensor):
        self.base, self.logits, self.needs = base, logits, base.needs

    def mean(self, sources: int) -> Tensor:
        """The mean number of merges among so many sources; a scalar with gradient."""
        return self._probabilities(sources).sum()

    def _probabilities(self, sources: int) -> Tensor:
        """[Na]: that more than 0, 1, ... sources merge."""
        shares = self.logits[: sources + 1].softmax(dim=0)
        return shares[1:].flip(0).cumsum(0).flip(0)

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment | None:
        if not relaxed:
            return self.base.choose(evidence, state, r, relaxed=False)
        metric, split = self.base.metric(evidence), parity_split(state)
        assert metric is not None, "what merges by no metric has no order"
        scores = without_padding(state, similarity(metric.detach(), split), split)
        best, target = scores.max(dim=-1)
        ranked = rank(state, best, split)
        probabilities = self._probabilities(ranked.shape[1]).to(best.dtype)
        merges = (torch.arange(ranked.shape[1]) < r).to(best.dtype)
        own = (merges + probabilities - probabilities.detach()).expand_as(best)
        share = torch.zeros_like(best).scatter(1, ranked, own)
        candidates = Candidates(target[..., None], best[..., None], share[..., None])
        return give_shares(state, candidates, split, r, ranked)


def learned_schedule(
    model: MergingModel,
    counted: Counted,
    fraction: float,
    batches: Iterator[T],
    loss: Callable[[T], Tensor],
    *,
    seconds: float,
) -> list[int]:
    """The schedule that is learned in so many seconds, fitted to the fraction of the unmerged MACs.

    loss: maps a batch to the mean divergence of the model, as it merges now, from the unmerged one. The
    model's own parameters have no gradient, and it is as it was afterwards.
    """
    goal = MacsGoal(counted, fraction)
    even = counted.schedule(counted.reduction_for(fraction))
    policies = _policies(model, even, counted.patches)
    before, own = model.merging, [block.policy for block in model.merging_blocks]
    try:
        model.merging = replace(before, policy=policies[0], learns=True)
        for block, policy in zip(model.merging_blocks, policies, strict=True):
            block.policy = policy
        model.train()
        return goal.fitted(_learned(model, goal, policies, even, batches, loss, seconds))
    finally:
        model.eval()
        model.merging = before
        for block, policy in zip(model.merging_blocks, own, strict=True):
            block.policy = policy


def _policies(model: MergingModel, even: Sequence[int], patches: int) -> list[LearnedRate]:
    numbers = torch.arange(patches // 2 + 1)
    starts = [-0.5 * ((numbers - r) / (SPREAD * patches)) ** 2 for r in even]
    base = model.merging.policy
    return [LearnedRate(base, nn.Parameter(logits)) for logits in starts]


def _learned(
    model: MergingModel,
    goal: MacsGoal,
    policies: Sequence[LearnedRate],
    even: Sequence[int],
    batches: Iterator[T],
    loss: Callable[[T], Tensor],
    seconds: float,
) -> list[float]:
    """The share of its patches that each block comes to remove."""
    counted, macs = goal.counted, _mean_macs(goal)
    whole = counted.macs(counted.schedule(0)).total
    optimizer = torch.optim.Adam([policy.logits for policy in policies], lr=LR)
    model.reduction = list(even)
    with torch.no_grad():
        unit = float(loss(next(batches)))
    start, means = time.perf_counter(), [float(r) for r in even]
    with tqdm(desc="learn rates", leave=False, disable=None) as bar:
        while time.perf_counter() - start < seconds:
            found = _means(policies, counted.patches)
            means = [float(mean.detach()) for mean in found]
            model.reduction = [max(1, round(mean)) for mean in means]
            distance = macs(found) / whole - goal.fraction
            optimizer.zero_grad()
            (loss(next(batches)) / unit + WEIGHT * distance**2).backward()
            optimizer.step()
            bar.update()
    return merged_shares(means, counted.patches)  # pyright: ignore[reportArgumentType]


def _means(policies: Sequence[LearnedRate], patches: int) -> list[Tensor]:
    """The mean number of tokens that each block removes, scalars with gradient."""
    found, left = [], patches
    for policy in policies:
        found.append(policy.mean(mergeable(left, 0)))
        left -= max(1, round(float(found[-1].detach())))
    return found


def _mean_macs(goal: MacsGoal) -> Callable[[Sequence[Tensor]], Tensor]:
    """MACs as a function of real numbers of removed tokens: of each block a parabola over the patches that
    enter it, less what a merged token saves, through three of its counts."""
    counted, top = goal.counted, goal.counted.patches
    places = torch.tensor([top, top // 2, top // 4], dtype=torch.float64)
    powers = torch.stack([places**2, places, torch.ones_like(places)], dim=1)
    parabolas: list[tuple[Tensor, int]] = []
    for block in range(len(counted.blocks)):
        values = [float(counted.macs_of_block(block, int(place), 1)) for place in places]
        saved = counted.macs_of_block(block, top, 1) - counted.macs_of_block(block, top, 2)
        parabolas.append((torch.linalg.solve(powers, torch.tensor(values, dtype=torch.float64)), saved))

    def macs(removed: Sequence[Tensor]) -> Tensor:
        total, left = torch.tensor(float(counted.embed), dtype=torch.float64), torch.tensor(float(top))
        for (parabola, saved), r in zip(parabolas, removed, strict=True):
            total = total + parabola[0] * left**2 + parabola[1] * left + parabola[2] - saved * (r - 1)
            left = left - r
        return total

    return macs
