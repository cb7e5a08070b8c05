"""What a merge would cost, to second order, for every pair of a source and a destination.

Merging tokens a and b of sizes s_a and s_b replaces both by their mean: a moves by s_b / (s_a + s_b) of the way to b, b by the rest
of the way to a. For predictions p and a label y drawn from them, the divergence that a small move delta causes is half the mean
over y of (grad log p(y) . delta)^2, where the gradient's square is the Fisher information. So with g = grad log p(y),

    cost(a, b) = [(s_b g_a - s_a g_b) . (x_b - x_a) / (s_a + s_b)]^2 / 2,

and one backward pass through the unmerged model prices all pairs of all blocks. The derivation is ours (docs/merge_cost.md).
B batch, M tokens, C channels, Na sources, Nb destinations.
"""

import torch
from torch import Tensor

from pipeline.merging.matching import Split, similarity
from pipeline.token_state import MergePoint


def pair_costs(tokens: Tensor, size: Tensor, grad: Tensor, split: Split) -> Tensor:
    """Costs [B, Na, Nb], float32, of merging each source into each destination.

    tokens, grad [B, M, C]: the tokens before the merge and the gradient of a drawn label's log-likelihood. size [B, M].
    """
    x, g = tokens.float(), grad.float()
    along = (g * x).sum(dim=-1)
    a, b = split.sources, split.destinations
    size_a, size_b = size[:, a, None], size[:, None, b]
    moved_a = size_b * (g[:, a] @ x[:, b].mT - along[:, a, None])
    moved_b = size_a * (x[:, a] @ g[:, b].mT - along[:, None, b])
    return ((moved_a + moved_b) / (size_a + size_b)).square() / 2


def expected_cost(point: MergePoint, grad: Tensor, temperature: float) -> Tensor:
    """Mean cost of the pair that the metric would merge first, drawn from softmax(similarity / temperature) over all pairs.

    Scaled by the mean cost of all pairs, so that every block counts alike: 1 is what a random metric gets. A scalar, differentiable
    in the metric alone. grad [B, M, C]: see `pair_costs`.
    """
    state = point.state
    split = Split.by_parity(state.num_active, state.num_prefix)
    with torch.autocast(grad.device.type, enabled=False):
        if min(len(range(state.num_active)[part]) for part in (split.sources, split.destinations)) == 0:
            return point.metric.sum() * 0  # no pair is left
        costs = pair_costs(state.tokens.detach(), state.size, grad, split)
        chosen = (similarity(point.metric, split) / temperature).flatten(1).softmax(dim=-1)
        cost = (chosen * costs.flatten(1)).sum(dim=-1).mean()
        return cost / costs.mean().clamp(min=torch.finfo(torch.float32).tiny)
