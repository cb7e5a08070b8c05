"""Moving tokens on a CPU, where memory is what a move costs: only the rows that receive others are computed.

B batch, M tokens, K slots, E pairs of a source and a slot, C channels.
"""

import torch
from torch import Tensor

from pipeline.merging.rows import SMALLEST_WEIGHT, of_largest
from pipeline.token_state import Assignment, widened


def moves_plainly(tokens: Tensor, size: Tensor, assignment: Assignment) -> bool:
    """Whether each source gives to one slot, parts of it count by sizes alone, and nothing learns.
    size [B, M]: what counts of each token."""
    a, learns = assignment, torch.is_grad_enabled() and (tokens.requires_grad or size.requires_grad)
    weighed = a.weight is not None and a.part is not None
    plain = a.is_hard and a.spread is None and not a.keeps_norm and not weighed
    return plain and not learns


def moves_on_cpu(tokens: Tensor, size: Tensor, assignment: Assignment) -> bool:
    """Whether `moved_on_cpu` computes this."""
    return tokens.device.type == "cpu" and moves_plainly(tokens, size, assignment)


def moved_on_cpu(tokens: Tensor, size: Tensor, assignment: Assignment, least: float) -> tuple[Tensor, Tensor]:
    """Tokens [B, K, C] and sizes [B, K] after a merge. tokens [B, M, C], size [B, M]; least: bound of a
    divisor, where weights are sizes.

    Each source draws its slot's token towards itself, by its part of the slot's weight. Of several sources
    each draws it from where it was, so that the sum is the mean of all. Where all tokens of a slot have size
    0 (padding), its own stays; other ways give 0 there.
    """
    keep, source, slot = assignment.keep.flatten(), assignment.source.flatten(), assignment.slot.flatten()
    given, total = _summed(size, keep, source, slot)
    whole = total
    if assignment.weight is not None:
        least = SMALLEST_WEIGHT
        given, whole = _summed(of_largest(assignment.weight), keep, source, slot)
    part = given.div_(whole.index_select(0, slot).clamp_(min=least))
    rows = tokens.flatten(0, 1)
    own = widened(rows.index_select(0, keep))
    drawn = widened(rows.index_select(0, source)).sub_(own.index_select(0, slot))
    own.index_add_(0, slot, drawn.mul_(part[:, None]))
    moved = own if own.dtype == tokens.dtype else own.to(tokens.dtype)
    return moved.view(*assignment.keep.shape, tokens.shape[-1]), total.view(assignment.keep.shape)


def _summed(weight: Tensor, keep: Tensor, source: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
    """What each source gives, [B E], and what each slot then has, [B K]. weight [B, M]."""
    flat = weight.flatten()
    given = flat.index_select(0, source)
    return given, flat.index_select(0, keep).index_add_(0, slot, given)
