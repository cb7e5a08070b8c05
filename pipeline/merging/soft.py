"""DTEM's continuously relaxed merge (Lee & Hong, NeurIPS 2024): which tokens merge becomes a weight that has
a gradient.

B batch, N all tokens, n live ones, Na sources, Nb destinations, r merges. Everything is float32, or float64
where the tokens are.
"""

import torch
from torch import Tensor

from pipeline.merging.matching import SMALLEST, Matching, Split, slots_after, take_rows
from pipeline.token_state import SourceMap, TokenState, widened


def relaxed_top_r(scores: Tensor, r: int, *, candidates: int, tau1: float, tau2: float) -> Tensor:
    """Weights [B, Na, Nb] of r softly chosen edges, at most about one per source.

    scores [B, Na, Nb]. Every source keeps its `candidates` best destinations; r successive softmaxes over all
    edges that are left add up to the weights, and a source that was chosen is masked by what was chosen of
    it. Rows are clipped to a sum of 1, with the clip outside the gradient, as in the paper's release.
    """
    top, columns = scores.topk(min(candidates, scores.shape[-1]), dim=-1)
    edges = top / tau1
    chosen = torch.zeros_like(edges)
    for _ in range(r):
        picked = (edges / tau2).flatten(1).softmax(dim=-1).view_as(edges)
        chosen = chosen + picked
        edges = edges + torch.log((1 - picked.sum(dim=-1, keepdim=True)).clamp(min=SMALLEST))
    chosen = chosen / chosen.detach().sum(dim=-1, keepdim=True).clamp(min=1.0)
    return torch.zeros_like(scores).scatter(-1, columns, chosen)


def one_hot_weights(matching: Matching, like: Tensor) -> Tensor:
    """[B, Na, Nb]: 1 where a source merges into a destination, else 0."""
    rows = torch.zeros(*matching.merged.shape, like.shape[-1], device=like.device, dtype=like.dtype)
    rows = rows.scatter(-1, matching.target[..., None], 1.0)
    return torch.zeros_like(like).scatter(1, matching.merged[..., None].expand_as(rows), rows)


def merge_soft(
    state: TokenState,
    weights: Tensor,
    split: Split,
    r: int,
    matching: Matching | None = None,
    *,
    one_hot: bool = False,
) -> TokenState:
    """Moves the share weights[b, i, j] of source i into destination j; nothing is removed, and the total size
    stays.

    weights [B, Na, Nb] with row sums in [0, 1]. With a matching, the order becomes that of the hard merge,
    [prefix, kept sources, destinations], followed by the matching's leaving sources and the old tail:
    training then sees inference's partitions. Without one, the live tokens are sorted by their new size,
    largest first, as in the release. num_active falls by r. one_hot: the weights have the values of the
    matching, so that a hard source map stays true.
    """
    live, prefix = state.num_active, state.num_prefix
    tokens, size = widened(state.tokens), state.size
    sources, destinations = tokens[:, split.sources], tokens[:, split.destinations]
    source_size, destination_size = size[:, split.sources], size[:, split.destinations]

    total_size = destination_size + (weights.mT @ source_size[..., None])[..., 0]
    total = destination_size[..., None] * destinations + weights.mT @ (source_size[..., None] * sources)
    destinations = total / total_size.clamp(min=SMALLEST)[..., None]
    source_size = source_size * _clamp_straight_through(1 - weights.sum(dim=-1))

    changed_size = torch.cat([source_size, total_size], dim=1)
    changed = torch.cat([sources, destinations], dim=1)
    order = _order(changed_size, matching)
    changed = take_rows(changed, order).to(state.tokens.dtype)
    return TokenState(
        tokens=torch.cat([state.tokens[:, :prefix], changed, state.tokens[:, live:]], dim=1),
        size=torch.cat([size[:, :prefix], changed_size.gather(1, order), size[:, live:]], dim=1),
        source=_follow(state, weights, split, order, matching if one_hot else None),
        grid=state.grid,
        num_prefix=prefix,
        num_active=live - r,
    )


def _order(changed_size: Tensor, matching: Matching | None) -> Tensor:
    """[B, Na + Nb] positions within [sources, destinations], in their new order."""
    if matching is None:  # what nothing merges into keeps size 1, so many are equal
        return changed_size.argsort(dim=-1, descending=True, stable=True)
    batch, num_changed = changed_size.shape
    num_sources = matching.kept.shape[1] + matching.merged.shape[1]
    destinations = torch.arange(num_sources, num_changed, device=changed_size.device).expand(batch, -1)
    return torch.cat([matching.kept, destinations, matching.merged], dim=1)


def _follow(
    state: TokenState, weights: Tensor, split: Split, order: Tensor, matching: Matching | None
) -> SourceMap | None:
    """The source map after the merge: soft where the state has a soft one; hard only where the forward pass
    is hard."""
    source, prefix, live = state.source, state.num_prefix, state.num_active
    if source is None or (source.weights is None and matching is None):
        return None
    if source.weights is None:
        assert matching is not None
        slots = torch.arange(state.tokens.shape[1], device=weights.device).repeat(weights.shape[0], 1)
        slots[:, :live] = slots_after(matching, split, prefix, live)
        return source.then(slots)
    mass = source.weights
    sources = mass[:, :, split.sources]
    destinations = mass[:, :, split.destinations] + sources @ weights
    sources = sources * _clamp_straight_through(1 - weights.sum(dim=-1))[:, None, :]
    changed = torch.cat([sources, destinations], dim=-1)
    changed = changed.gather(-1, order[:, None, :].expand_as(changed))
    return SourceMap(weights=torch.cat([mass[..., :prefix], changed, mass[..., live:]], dim=-1))


def _clamp_straight_through(share: Tensor) -> Tensor:
    """Value in [0, 1], gradient of the identity."""
    return share + (share.clamp(0.0, 1.0) - share).detach()
