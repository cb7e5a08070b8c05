"""The best destinations of each source. B batch, Na sources, Nb destinations, k candidates."""

import math
from typing import Any

import torch
from torch import Tensor

BLOCK = 2**18
"""Scores at once on a CPU. Fresh memory for copies of all would cost more than what is computed in it; with
far fewer at once the operations are too small."""


@torch.library.custom_op("dtem::best_candidates", mutates_args=())
def best_candidates(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best destinations of each source, the best one first: their scores, which have a gradient, and
    int64 positions. Both are planes [k, B, Na]. scores [B, Na, Nb]; k <= Nb.

    PyTorch's `topk` for the CPU takes three times as long for a few of a hundred.
    """
    few = k <= 4 and scores.shape[-1] <= 256
    if not few or scores.device.type != "cpu" or bool(scores.sum().isnan()):
        score, target = scores.topk(k, dim=-1)
        return score.movedim(-1, 0).contiguous(), target.movedim(-1, 0).contiguous()
    return _one_by_one(scores, k)


def _one_by_one(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    score = scores.new_empty(k, *scores.shape[:-1])
    target = torch.empty_like(score, dtype=torch.int64)
    images = max(1, BLOCK // max(1, math.prod(scores.shape[1:])))
    room = scores.new_empty(2, min(images, len(scores)), *scores.shape[1:])
    for first in range(0, len(scores), images):
        here = slice(first, first + images)
        rest, is_best = room[:, : len(scores[here])]
        _best_of_block(rest.copy_(scores[here]), is_best, score[:, here], target[:, here])
    return score, target


def _best_of_block(rest: Tensor, is_best: Tensor, score: Tensor, target: Tensor) -> None:
    """Writes score and target [k, B, Na]. rest [B, Na, Nb]: the scores, which are spoiled; is_best: room."""
    rows, count = _first_of_rows(rest), rest.shape[-1]
    # the reduction to the highest value is vectorised, that to its place is not
    places = torch.arange(count, 0, -1, dtype=rest.dtype)
    for best, highest in zip(target, score, strict=True):
        torch.amax(rest, dim=-1, out=highest)
        torch.ge(rest, highest[..., None], out=is_best)
        torch.sub(count, is_best.mul_(places).amax(dim=-1).long(), out=best)
        rest.view(-1)[rows + best] = -torch.inf


def _first_of_rows(scores: Tensor) -> Tensor:
    """[B, Na]: where the rows of scores [B, Na, Nb] begin in the flattened tensor."""
    shape = scores.shape
    return torch.arange(0, scores.numel(), shape[-1], device=scores.device).view(shape[:-1])


@best_candidates.register_fake
def _(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    score = scores.new_empty(k, *scores.shape[:-1])
    return score, torch.empty_like(score, dtype=torch.int64)


@torch.library.custom_op("dtem::best_candidates_backward", mutates_args=())
def _backward(grad: Tensor, target: Tensor, count: int) -> Tensor:
    """The gradient of the scores [B, Na, Nb], from that of the candidates' [k, B, Na]."""
    of_scores = grad.new_zeros(*grad.shape[1:], count)
    of_scores.view(-1)[_first_of_rows(of_scores) + target] = grad
    return of_scores


@_backward.register_fake
def _(grad: Tensor, target: Tensor, count: int) -> Tensor:
    return grad.new_empty(*grad.shape[1:], count)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.count = inputs[0].shape[-1]
    ctx.save_for_backward(output[1])


def _gradients(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None]:
    return _backward(grad, *ctx.saved_tensors, ctx.count), None


best_candidates.register_autograd(_gradients, setup_context=_save)
