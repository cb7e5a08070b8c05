"""Schedules that are learned by gradients, as DiffRate (Chen et al., ICCV 2023) learns its rates, for any
policy that `ranks`, and without labels.

The paper's: rates as distributions (`pipeline.merging.learned_rate`), and a loss of the squared distance of
the multiply-accumulates from their target, beside the model's own. Nothing but the rates learns. Ours: the
model's own loss is a divergence from the unmerged model, the distance is a share of the unmerged
multiply-accumulates, rates start around the even schedule, the first block may merge, and in the end one
factor makes the schedule meet the target.

P patches before the first block.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from pipeline.backbone.macs import Counted
from pipeline.backbone.macs_goal import MacsGoal
from pipeline.backbone.policies_of_blocks import Merges, merging_by, policy_of
from pipeline.errors import ConfigError
from pipeline.merging.learned_rate import BlockRates, LearnedRate, Rate
from pipeline.merging.policies import POLICIES
from pipeline.merging.policy import MergePolicy
from pipeline.merging.schedule import mergeable, tokens_per_block

STEPS = 100
LR, WEIGHT = 0.3, 100.0
"""Step of Adam, and weight of the MACs' squared distance beside a divergence that is 1 for the even
schedule."""
SMALLEST = 1e-12
"""Least divisor."""
LEAST_PATCHES = 8
"""Patches below which there is nothing to fit MACs through."""
Loss = Callable[[Sequence[int]], Tensor]
"""Maps r of each block to the mean divergence of the next images, a scalar with gradient, by a relaxed pass
that merges so many."""


@dataclass(frozen=True)
class Learned:
    """r of each block, its MACs, and the options of the policy that were learned with it."""

    schedule: list[int]
    macs: int
    options: Mapping[str, Any]


def learned_schedule(
    model: Merges, counted: Counted, fraction: float, loss: Loss, steps: Iterable[object] = range(STEPS)
) -> Learned:
    """The schedule that is learned in so many steps, of at most this fraction of the unmerged MACs.

    counted: of the model, for images as those of the loss. Nothing of the model learns, and it is as it was
    afterwards. Raises ConfigError for a policy that ranks nothing, and where merging all that can be has more
    MACs.
    """
    policy = policy_of(model)
    check_ranks(policy)
    if counted.patches < LEAST_PATCHES:
        raise ConfigError(
            f"rates cannot be learned on {counted.patches} patches; give images of {LEAST_PATCHES} or more"
        )
    goal = MacsGoal(counted, fraction)
    even = list(counted.schedule(counted.reduction_for(fraction)))
    device = next(model.parameters()).device
    with torch.inference_mode(False), torch.enable_grad():
        rates = [_starting(policy, r, i / len(even), counted.patches, device) for i, r in enumerate(even)]
        macs = removed_macs(counted)
        with merging_by(model, [LearnedRate(policy, own) for own in rates]):
            _learn(rates, even, goal, macs, loss, steps)
        means, pruned = (
            [each.item() for each in _each(rates, counted.patches, number)]
            for number in (BlockRates.mean, BlockRates.pruned_mean)
        )
        schedule = goal.fitted(shares_of(rates, counted.patches))
    return Learned(schedule, goal.macs(schedule), _options(policy, pruned, means))


def check_ranks(policy: MergePolicy) -> None:
    """Raises ConfigError for a policy whose rates cannot be learned, with those whose can."""
    if not policy.ranks:
        raise ConfigError(
            f"rates of merge policy '{policy.name}' cannot be learned: its tokens do not leave in an order "
            f"that is the same for any number of them; give --schedule solved, or one of "
            f"{', '.join(ranking())}"
        )


def ranking() -> list[str]:
    """The registered policies whose rates can be learned."""
    return [name for name in POLICIES.names() if POLICIES.usual(name).ranks]


def _starting(policy: MergePolicy, r: int, depth: float, patches: int, device: torch.device) -> BlockRates:
    """Rates around r."""
    merged = Rate(r, patches, device)
    if not policy.prunes_first:
        return BlockRates(merged)
    return BlockRates(merged, Rate(r * policy.pruned_share(depth), patches, device))


def _learn(
    rates: Sequence[BlockRates],
    even: Sequence[int],
    goal: MacsGoal,
    macs: Callable[[Sequence[Tensor]], Tensor],
    loss: Loss,
    steps: Iterable[object],
) -> None:
    """Moves the logits of the rates."""
    logits = [each for own in rates for each in own.logits]
    optimizer = torch.optim.Adam(logits, lr=LR)
    unit, whole = None, goal.most / goal.fraction
    for _ in steps:
        unit = _unit(loss, even) if unit is None else unit
        removed = _each(rates, goal.counted.patches, BlockRates.removed)
        distance = macs(removed) / whole - goal.fraction
        schedule = [round(r.item()) for r in removed]
        gap = loss(schedule)
        _check_divergence(gap.item(), schedule)
        total = gap / unit + WEIGHT * distance**2
        grads = torch.autograd.grad(total, logits, allow_unused=True)
        for each, grad in zip(logits, grads, strict=True):
            each.grad = grad
        optimizer.step()


def _unit(loss: Loss, even: Sequence[int]) -> float:
    """The divergence of the even schedule. Raises ConfigError where it is no number."""
    with torch.no_grad():
        found = float(loss(even))
    _check_divergence(found, even)
    return max(found, SMALLEST)


def _check_divergence(found: float, schedule: Sequence[int]) -> None:
    """Raises ConfigError where it is no number."""
    if not isfinite(found):
        raise ConfigError(
            f"the model merged by {list(schedule)} gives {found} in place of a divergence: its predictions "
            "are not finite; give other weights"
        )


def _each(
    rates: Sequence[BlockRates], patches: int, number: Callable[[BlockRates, int], Tensor]
) -> list[Tensor]:
    """A number of each block, of as many tokens as it can remove behind those before it."""
    found, left = [], patches
    for own in rates:
        most = mergeable(left, 0)
        found.append(number(own, most))
        left -= round(own.removed(most).item())
    return found


def shares_of(rates: Sequence[BlockRates], patches: int) -> list[float]:
    """The share of its patches that each block removes in the mean, at most a half, where whole numbers left
    the blocks before it."""
    means, removed = (_each(rates, patches, number) for number in (BlockRates.mean, BlockRates.removed))
    before = (patches, *tokens_per_block([round(r.item()) for r in removed], patches)[:-1])
    return [mean.item() / left for mean, left in zip(means, before, strict=True)]


def _options(policy: MergePolicy, pruned: Sequence[float], removed: Sequence[float]) -> dict[str, Any]:
    """The share that each block prunes of what leaves it, of a policy that prunes first."""
    if not policy.prunes_first:
        return {}
    both = zip(pruned, removed, strict=True)
    return {"pruned": [round(min(1.0, own / max(r, SMALLEST)), 3) for own, r in both]}


def removed_macs(counted: Counted) -> Callable[[Sequence[Tensor]], Tensor]:
    """MACs as a function of real numbers of removed tokens, float64: of each block a parabola over the
    patches that enter it, and one over what it removes, each through three of its counts. Exact where
    embedding and similarities cost nothing."""
    top = counted.patches
    places, numbers = [top, top // 2, top // 4], [1, top // 4, top // 2]
    curves = [
        (
            _parabola(places, [counted.macs_of_block(block, place, 1) for place in places]),
            _parabola(numbers, [counted.macs_of_block(block, top, r) for r in numbers]),
        )
        for block in range(len(counted.blocks))
    ]
    before = counted.macs_before(merges=True)

    def macs(removed: Sequence[Tensor]) -> Tensor:
        total: Tensor | float = before
        left: Tensor | float = top
        for (of_left, of_removed), r in zip(curves, removed, strict=True):
            total = total + of_left(left) + of_removed(r.double()) - of_removed(1)
            left = left - r.double()
        assert isinstance(total, Tensor)
        return total

    return macs


def _parabola(places: Sequence[int], values: Sequence[int]) -> Callable[[Tensor | float], Tensor | float]:
    """The parabola through three points, by Lagrange."""
    (a, b, c), (x, y, z) = places, values
    first, second, third = x / ((a - b) * (a - c)), y / ((b - a) * (b - c)), z / ((c - a) * (c - b))

    def value(at: Tensor | float) -> Tensor | float:
        return first * (at - b) * (at - c) + second * (at - a) * (at - c) + third * (at - a) * (at - b)

    return value
