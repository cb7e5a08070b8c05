"""The r successive softmaxes of DTEM's relaxed merge as one operation.

What was chosen of a source lowers the logits of all its candidates alike. So the softmax among the candidates
of one source stays as it is, and the mass of each source is all that changes from step to step: a recursion
over [B, Na]. Nothing of the steps is kept for the backward pass, which runs the recursion again.

B batch, Na sources, k candidates of each, r steps. Scores are planes [k, B, Na], as reductions over a small
last dim are slow.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.kernels.choice import Results, by_kernel, close, magnitude

LEAST = torch.finfo(torch.float32).eps
"""Least part of a source that is left, in the logarithm; also for float64, as in the authors' release."""
MOST_PAIRS = 2**20
"""Candidates times sources of an image, each up to a power of two, that one program of a kernel holds."""


@torch.library.custom_op("dtem::soft_assignment", mutates_args=())
def soft_assignment(scores: Tensor, quota: Tensor | None, r: int, tau1: float, tau2: float) -> Tensor:
    """Shares [k, B, Na] of the scores [k, B, Na], float32 or float64: the sum of r successive softmaxes over
    all pairs of an image, clipped to a sum of 1 for each source.

    quota [B] int64: images take so many of the steps; None: all. tau1 divides the scores, tau2 the logits of
    each softmax. The clip has no gradient. There is no second derivative.
    """
    rest = (scores, quota, r, tau1, tau2)
    return _by_kernel("shares_of", r, rest, lambda: _shares(*rest))


def _shares(scores: Tensor, quota: Tensor | None, r: int, tau1: float, tau2: float) -> Tensor:
    among, mass = _start(scores, tau1 * tau2)
    chosen, picked = torch.zeros_like(mass), torch.empty_like(mass)
    for step in range(r):
        _pick(mass, quota, step, out=picked)
        chosen += picked
        _lower(mass, picked, tau2)
    return among.mul_(chosen.clamp_(max=1.0))


@soft_assignment.register_fake
def _(scores: Tensor, quota: Tensor | None, r: int, tau1: float, tau2: float) -> Tensor:
    return torch.empty_like(scores)


@torch.library.custom_op("dtem::soft_assignment_backward", mutates_args=())
def _backward(grad: Tensor, scores: Tensor, quota: Tensor | None, r: int, tau1: float, tau2: float) -> Tensor:
    """The gradient of the scores [k, B, Na], from that of the shares."""
    rest = (grad, scores, quota, r, tau1, tau2)
    return _by_kernel("gradient_of", r, rest, lambda: _gradient(*rest))


def _gradient(grad: Tensor, scores: Tensor, quota: Tensor | None, r: int, tau1: float, tau2: float) -> Tensor:
    among, mass = _start(scores, tau1 * tau2)
    picked = mass.new_empty(r, *mass.shape)  # r <= Na: not more than the gradient of all similarities
    for step in range(r):
        _pick(mass, quota, step, out=picked[step])
        _lower(mass, picked[step], tau2)
    chosen = picked.sum(dim=0)
    weighted = grad.contiguous() * among
    of_source = weighted.sum(dim=0)
    of_mass = _through_steps(of_source / chosen.clamp(min=1.0), picked, tau2)
    of_among = weighted.sub_(among * of_source).mul_(chosen.clamp_(max=1.0))
    return of_among.addcmul_(among, of_mass).div_(tau1 * tau2)


@_backward.register_fake
def _(grad: Tensor, scores: Tensor, quota: Tensor | None, r: int, tau1: float, tau2: float) -> Tensor:
    return torch.empty_like(scores)


def _by_kernel(name: str, r: int, arguments: tuple[Any, ...], eager: Callable[[], Tensor]) -> Tensor:
    """What `eager` gives, on a GPU by the kernels' function of this name where that is faster."""

    def kernel() -> Results:
        from pipeline.kernels import soft_assignment as kernels

        return (getattr(kernels, name)(*arguments),)

    candidates, _, sources = arguments[0].shape
    if magnitude(candidates) + magnitude(sources) > magnitude(MOST_PAIRS):
        return eager()
    key = (name, magnitude(r), magnitude(candidates))
    # each step feeds its rounding to the next one
    return by_kernel(lambda: (eager(),), kernel, [arguments[0][0]], key, partial(close, most=1e-3))[0]


def _start(scores: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """The softmax [k, B, Na] among the candidates of each source, and the logarithm [B, Na] of the mass of
    each source, up to a constant for each image."""
    logits = scores / tau
    best = logits.amax(dim=0)
    among = logits.sub_(best).exp_()
    total = among.sum(dim=0)
    return among.div_(total), total.log_().add_(best.sub_(best.amax(dim=-1, keepdim=True)))


def _pick(mass: Tensor, quota: Tensor | None, step: int, *, out: Tensor) -> None:
    """Writes what one step chooses of each source, [B, Na]."""
    torch.softmax(mass, dim=-1, out=out)
    if quota is not None:
        out.mul_((quota > step)[:, None])


def _lower(mass: Tensor, picked: Tensor, tau2: float) -> None:
    """Adds what the next step knows of this one: log(max(1 - picked, LEAST)) / tau2."""
    mass.add_(picked.neg().log1p_().clamp_(min=math.log(LEAST)), alpha=1 / tau2)


def _through_steps(of_chosen: Tensor, picked: Tensor, tau2: float) -> Tensor:
    """The gradient of the first mass, from that of the sum of picked [r, B, Na]; all [B, Na]."""
    slope = (picked - 1).mul_(tau2).reciprocal_().masked_fill_(picked > 1 - LEAST, 0.0)
    of_mass = torch.zeros_like(of_chosen)
    for step in reversed(range(len(picked))):
        # where the quota is used up, `picked` is 0, and so is the gradient
        of_picked = torch.addcmul(of_chosen, of_mass, slope[step]).mul_(picked[step])
        of_mass += of_picked
        of_mass.addcmul_(picked[step], of_picked.sum(dim=-1, keepdim=True), value=-1)
    return of_mass


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    scores, quota, *ctx.rest = inputs
    ctx.save_for_backward(scores, quota)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    return _backward(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None


soft_assignment.register_autograd(_gradients, setup_context=_save)
