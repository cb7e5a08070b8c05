"""Matching and moving by the kernels of `pipeline.kernels`, where they are faster than PyTorch's operators.

B batch, M tokens, F channels of the metric, C channels, K slots, r merges.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.kernels.choice import Results, by_kernel, close, magnitude
from pipeline.kernels.ops import match_rows, move_rows
from pipeline.merging.on_cpu import moves_plainly
from pipeline.token_state import Assignment, widened

MOST_TOKENS = 8192
"""M up to which a kernel ranks the sources of an image."""


def matched(
    metric: Tensor, num_prefix: int, firsts: tuple[int, int], r: int, eager: Callable[[], Assignment]
) -> Assignment:
    """The hard merge of r pairs by the metric [B, M, F]: what `eager` gives, up to the choice between equal
    scores. firsts: the first source and the first destination; every other token from each on is one too."""
    batch, num_tokens, _ = metric.shape
    if num_tokens > MOST_TOKENS or torch.is_grad_enabled():
        return eager()

    def rows() -> Results:
        chosen = eager()
        return chosen.keep, chosen.source, chosen.slot

    def same(ours: Results, theirs: Results) -> bool:
        return _is_order(ours, batch * num_tokens) and torch.allclose(
            _similarity(metric, ours), _similarity(metric, theirs), atol=1e-3 * r
        )

    keep, source, slot = by_kernel(
        rows, lambda: match_rows(metric, num_prefix, *firsts, r), [metric], ("match",), same
    )
    return Assignment(keep, source, slot, num_tokens, num_tokens - r)


def moved(
    tokens: Tensor, size: Tensor, assignment: Assignment, least: float, eager: Callable[[], Results]
) -> Results:
    """Tokens [B, K, C] and sizes [B, K] after a merge: what `eager` gives, which may be called several times.
    least: bound of a divisor."""
    a = assignment
    if a.weight is not None or not moves_plainly(tokens, size, a):
        return eager()
    return by_kernel(
        eager,
        lambda: move_rows(tokens, size, a.keep, a.source, a.slot, least),
        [tokens, size],
        ("move", magnitude(a.source.shape[1])),
        partial(close, dim=-1),
    )


def _is_order(rows: Results, count: int) -> bool:
    """Whether each of the rows stays or gives."""
    keep, source, _ = rows
    every = torch.cat([keep.flatten(), source.flatten()]).sort().values
    return torch.equal(every, torch.arange(count, device=every.device))


def _similarity(metric: Tensor, rows: Results) -> Tensor:
    """[B]: the similarities of all pairs of an image, added up."""
    keep, source, slot = rows
    flat = widened(metric).flatten(0, 1)
    return F.cosine_similarity(flat[source], flat[keep.flatten()[slot]], dim=-1).sum(dim=-1)
