"""Cost of a merge, to second order, of every pair of a source and a destination.

A merge of tokens a and b, of sizes s_a and s_b, replaces both by their mean: a moves s_b / (s_a + s_b) of the
way to b, and b the rest of the way to a. For predictions p and a label y drawn from them, the divergence that
a small move delta causes is half the mean over y of (grad log p(y) . delta)^2, where the gradient's square is
the Fisher information. So with g = grad log p(y),

    cost(a, b) = [(s_b g_a - s_a g_b) . (x_b - x_a) / (s_a + s_b)]^2 / 2,

and one backward pass through the unmerged model prices all pairs of all blocks. The derivation is ours
(docs/merge_cost.md). B batch, M tokens, C channels, Na sources, Nb destinations.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.merging.matching import Split, parity_split, similarity
from pipeline.merging.partitions import partition_rows
from pipeline.merging.rows import take_rows
from pipeline.token_state import MergePoint, widened


def pair_costs(tokens: Tensor, size: Tensor, grad: Tensor, split: Split) -> Tensor:
    """Costs [B, Na, Nb], float32 or wider, of merging each source into each destination.

    tokens, grad [B, M, C]: the tokens before the merge and the gradient of a drawn label's log-likelihood.
    size [B, M].
    """
    x, g = widened(tokens), widened(grad)
    # remove the part that all tokens share, such as massive activations, before rounding matters
    x = x - x.mean(dim=1, keepdim=True)
    along = (g * x).sum(dim=-1)
    a, b = split.sources, split.destinations
    size_a, size_b = size[:, a, None], size[:, None, b]
    moved_a = size_b * (g[:, a] @ x[:, b].mT - along[:, a, None])
    moved_b = size_a * (x[:, a] @ g[:, b].mT - along[:, None, b])
    return ((moved_a + moved_b) / (size_a + size_b)).square() / 2


def expected_cost(
    point: MergePoint,
    grad: Tensor,
    temperature: float,
    share: float | None = None,
    positions: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Mean cost of the pairs that the metric would merge: of the first pair, or, with `share`, of the pairs
    that merge this share of the patches.

    A scalar, differentiable in the metric alone. It is divided by the mean cost of all pairs, so that all
    blocks weigh the same; a metric that cannot tell pairs apart gets 1. Sources and destinations are those of
    the policy's partition. grad [B, M, C]: see `pair_costs`.
    positions: `MergePoint.rope` of each later block, and its gradient. A merge moves them like a token, so
    they are priced as further channels.
    """
    state = point.state
    moved = [state.tokens, *(rope for rope, _ in positions)]
    grads = [grad, *(of_rope for _, of_rope in positions)]
    split = parity_split(state)
    with torch.autocast(state.tokens.device.type, enabled=False):
        if min(split.counts) == 0:
            return point.metric.sum() * 0  # no pair is left
        rows = partition_rows(point.partition, point.metric, state)
        compared = (_channels(moved).detach(), state.size, _channels(grads), point.metric)
        tokens, size, slopes, metric = (x if rows is None else take_rows(x, rows) for x in compared)
        costs = pair_costs(tokens, size, slopes, split)
        scores = similarity(metric, split)
        if share is None:
            cost = _cost_of_first(costs, scores, temperature)
        else:
            r = round(share * (state.num_active - state.num_prefix))
            cost = _cost_of_merged(costs, scores, temperature, r)
        return cost / costs.mean().clamp(min=torch.finfo(torch.float32).tiny)


def cost_with_slope(point: MergePoint, grad: Tensor, *options: Any) -> Tensor:
    """`expected_cost`, whose gradient in the metric is taken at once: nothing else of the work is kept for
    the backward pass, so that the [B, Na, Nb] of several blocks never live together. Differentiable once."""
    if not point.metric.requires_grad:
        return expected_cost(point, grad, *options)
    metric = widened(point.metric.detach()).requires_grad_()
    cost = expected_cost(replace(point, metric=metric), grad, *options)
    (slope,) = torch.autograd.grad(cost, metric)
    return _Sloped.apply(point.metric, cost.detach(), slope)  # pyright: ignore[reportReturnType]


class _Sloped(torch.autograd.Function):
    """A value whose gradient in the metric [B, M, F] is known."""

    @staticmethod
    def forward(ctx: Any, metric: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.dtype = metric.dtype
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slope,) = ctx.saved_tensors
        return (grad * slope).to(ctx.dtype), None, None


def _channels(parts: Sequence[Tensor]) -> Tensor:
    """[B, M, C], float32 or wider: parts [B, M, ...] side by side."""
    return torch.cat([widened(part).flatten(2) for part in parts], dim=-1)


def _cost_of_first(costs: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """Mean cost of the first pair, which is drawn from softmax(score / temperature) over all pairs."""
    chosen = (scores / temperature).flatten(1).softmax(dim=-1)
    return (chosen * costs.flatten(1)).sum(dim=-1).mean()


def _cost_of_merged(costs: Tensor, scores: Tensor, temperature: float, r: int) -> Tensor:
    """Mean cost of r pairs. Each source draws its destination from softmax(score / temperature); the r
    sources with the highest scores merge, with a sigmoid of the same temperature in place of a hard limit."""
    own = ((scores / temperature).softmax(dim=-1) * costs).sum(dim=-1)
    best = scores.amax(dim=-1)
    r = min(max(r, 1), best.shape[-1])
    ranked = best.detach().sort(dim=-1, descending=True).values
    edge = (
        ranked[:, r - 1 : r + 1].mean(dim=-1, keepdim=True)
        if r < best.shape[-1]
        else ranked[:, -1:] - 1e3 * temperature
    )
    merged = ((best - edge) / temperature).sigmoid()
    return ((merged * own).sum(dim=-1) / merged.sum(dim=-1)).mean()
