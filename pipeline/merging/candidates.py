"""The best destinations of each source. B batch, Na sources, Nb destinations, k candidates."""

from typing import Any

import torch
from torch import Tensor


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
    rest, rows, count = (
        scores.clone(memory_format=torch.contiguous_format),
        _first_of_rows(scores),
        scores.shape[-1],
    )
    # the reduction to the highest value is vectorised, that to its place is not
    places, is_best = torch.arange(count, 0, -1, dtype=scores.dtype), torch.empty_like(rest)
    target = torch.empty(k, *scores.shape[:-1], dtype=torch.int64)
    score = scores.new_empty(target.shape)
    for best, highest in zip(target, score, strict=True):
        torch.amax(rest, dim=-1, out=highest)
        torch.ge(rest, highest[..., None], out=is_best)
        torch.sub(count, is_best.mul_(places).amax(dim=-1).long(), out=best)
        rest.view(-1)[rows + best] = -torch.inf
    return score, target


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
