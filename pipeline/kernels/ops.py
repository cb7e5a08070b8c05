"""The kernels as functions of tensors, which torch.compile takes as operators `dtem::NAME`.

Triton is imported at the first call. Shapes: see `match_rows` and `move_rows` in match.py and move.py.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

MOST_CHANNELS = 128
"""Channels of a head up to which a program of `attend_by_weight` keeps its part in registers."""


def match_rows(
    metric: Tensor, num_prefix: int, first_source: int, first_destination: int, r: int
) -> tuple[Tensor, Tensor, Tensor]:
    """keep, source, slot of an Assignment, from a metric [B, M, F]."""
    # an operator costs microseconds of Python, which a compiled graph saves elsewhere
    run = torch.ops.dtem.match_rows if torch.compiler.is_compiling() else _match
    return run(metric, num_prefix, first_source, first_destination, r)


def move_rows(
    values: Tensor, size: Tensor, keep: Tensor, source: Tensor, slot: Tensor, least: float
) -> tuple[Tensor, Tensor]:
    """Means of the values [B, M, C], weighted by size [B, M], and the new sizes."""
    run = torch.ops.dtem.move_rows if torch.compiler.is_compiling() else _move
    return run(values, size, keep, source, slot, least)


def attend_by_weight(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T + weight of the key) v, without gradient; see `attention.attend_by_weight`."""
    watched = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()  # which sees operators alone
    run = torch.ops.dtem.attend_by_weight if watched else _attend
    return run(q, k, v, weight, scale)


def _match(
    metric: Tensor, num_prefix: int, first_source: int, first_destination: int, r: int
) -> tuple[Tensor, Tensor, Tensor]:
    from pipeline.kernels import match

    return match.match_rows(metric, num_prefix, first_source, first_destination, r)


def _move(
    values: Tensor, size: Tensor, keep: Tensor, source: Tensor, slot: Tensor, least: float
) -> tuple[Tensor, Tensor]:
    from pipeline.kernels import move

    return move.move_rows(values, size, keep, source, slot, least)


def _attend(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, scale: float) -> Tensor:
    from pipeline.kernels import attention

    return attention.attend_by_weight(q, k, v, weight, scale)


_match_op = torch.library.custom_op("dtem::match_rows", _match, mutates_args=())
_move_op = torch.library.custom_op("dtem::move_rows", _move, mutates_args=())

_attend_op = torch.library.custom_op("dtem::attend_by_weight", _attend, mutates_args=())


@_match_op.register_fake
def _(
    metric: Tensor, num_prefix: int, first_source: int, first_destination: int, r: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_tokens, _ = metric.shape
    shapes = (num_tokens - r, r, r)
    keep, source, slot = (metric.new_empty(batch, n, dtype=torch.int64) for n in shapes)
    return keep, source, slot


@_move_op.register_fake
def _(
    values: Tensor, size: Tensor, keep: Tensor, source: Tensor, slot: Tensor, least: float
) -> tuple[Tensor, Tensor]:
    return values.new_empty(*keep.shape, values.shape[-1]), size.new_empty(*keep.shape)


@_attend_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, scale: float) -> Tensor:
    batch, heads, num_queries, channels = q.shape
    return q.new_empty(batch, num_queries, heads, channels).transpose(1, 2)
