"""Triton kernels of the relaxed merge's softmaxes: one program for each image, which takes all steps in its
registers. The mathematics is that of `pipeline.merging.soft_assignment`.

B batch, Na sources, k candidates of each, r steps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.kernels.launch import launch

LEAST = tl.constexpr(torch.finfo(torch.float32).eps)


@triton.jit
def _start(scores, batch, num_sources, num_candidates, tau, BLOCK_A: tl.constexpr, BLOCK_K: tl.constexpr):
    """The softmax [BLOCK_K, BLOCK_A] among the candidates of each source of an image, the logarithm [BLOCK_A]
    of each source's mass, and where the candidates lie."""
    source, candidate = tl.arange(0, BLOCK_A), tl.arange(0, BLOCK_K)
    plane = batch.to(tl.int64) * num_sources
    places = candidate[:, None] * plane + tl.program_id(0).to(tl.int64) * num_sources + source[None, :]
    here = (candidate[:, None] < num_candidates) & (source[None, :] < num_sources)
    logits = tl.load(scores + places, mask=here, other=float("-inf")) / tau
    is_source = source < num_sources
    best = tl.where(is_source, tl.max(logits, axis=0), 0.0)
    among = tl.exp(logits - best[None, :])
    total = tl.where(is_source, tl.sum(among, axis=0), 1.0)
    highest = tl.max(tl.where(is_source, best, float("-inf")), axis=0)
    mass = tl.where(is_source, tl.log(total) + best - highest, float("-inf"))
    return among / total[None, :], mass, places, here


@triton.jit
def _pick(mass, takes_part):
    """What one step chooses of each source."""
    weight = tl.exp(mass - tl.max(mass, axis=0))
    return tl.where(takes_part, weight / tl.sum(weight, axis=0), 0.0)


@triton.jit
def _choose(mass, limit, steps, tau2, room, KEEPS: tl.constexpr, BLOCK_A: tl.constexpr):
    """What all steps together choose of each source. room: where KEEPS, what each step chose is written
    there."""
    chosen = tl.zeros([BLOCK_A], tl.float32)
    for step in range(steps):
        picked = _pick(mass, step < limit)
        if KEEPS:
            tl.store(room + step * BLOCK_A, picked)
        chosen += picked
        mass += tl.log(tl.maximum(1.0 - picked, LEAST)) / tau2
    return chosen


@triton.jit
def _forward(
    scores,
    quota,
    shares,
    batch,
    num_sources,
    num_candidates,
    steps,
    tau1,
    tau2,
    HAS_QUOTA: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    among, mass, places, here = _start(  # pyright: ignore[reportGeneralTypeIssues]
        scores, batch, num_sources, num_candidates, tau1 * tau2, BLOCK_A, BLOCK_K
    )
    limit = tl.load(quota + tl.program_id(0)) if HAS_QUOTA else steps
    chosen = _choose(mass, limit, steps, tau2, None, False, BLOCK_A)
    tl.store(shares + places, among * tl.minimum(chosen, 1.0)[None, :], mask=here)


@triton.jit
def _backward(
    grad,
    scores,
    quota,
    steps_of,
    of_scores,
    batch,
    num_sources,
    num_candidates,
    steps,
    tau1,
    tau2,
    HAS_QUOTA: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """steps_of [B, r, BLOCK_A]: room for what each step chose."""
    among, mass, places, here = _start(  # pyright: ignore[reportGeneralTypeIssues]
        scores, batch, num_sources, num_candidates, tau1 * tau2, BLOCK_A, BLOCK_K
    )
    limit = tl.load(quota + tl.program_id(0)) if HAS_QUOTA else steps
    room = steps_of + tl.program_id(0).to(tl.int64) * steps * BLOCK_A + tl.arange(0, BLOCK_A)
    chosen = _choose(mass, limit, steps, tau2, room, True, BLOCK_A)
    tl.debug_barrier()  # a thread may read what another one wrote
    weighted = tl.load(grad + places, mask=here, other=0.0) * among
    of_source = tl.sum(weighted, axis=0)
    of_chosen = of_source / tl.maximum(chosen, 1.0)
    of_mass = tl.zeros([BLOCK_A], tl.float32)
    for back in range(steps):
        picked = tl.load(room + (steps - 1 - back) * BLOCK_A)
        used_up = picked > 1.0 - LEAST
        slope = tl.where(used_up, 0.0, 1.0 / (tl.where(used_up, -1.0, picked - 1.0) * tau2))
        of_picked = (of_chosen + of_mass * slope) * picked
        of_mass += of_picked - picked * tl.sum(of_picked, axis=0)
    change = (weighted - among * of_source[None, :]) * tl.minimum(chosen, 1.0)[None, :]
    tl.store(of_scores + places, (change + among * of_mass[None, :]) / (tau1 * tau2), mask=here)


def shares_of(scores: Tensor, quota: Tensor | None, r: int, tau1: float, tau2: float) -> Tensor:
    """Shares [k, B, Na] of the scores [k, B, Na], float32."""
    scores, shares = scores.contiguous(), torch.empty_like(scores, memory_format=torch.contiguous_format)
    launch(
        _forward,
        (scores.shape[1],),
        scores,
        quota,
        shares,
        *_sizes(scores, r),
        tau1,
        tau2,
        **_blocks(scores, quota),
    )
    return shares


def gradient_of(
    grad: Tensor, scores: Tensor, quota: Tensor | None, r: int, tau1: float, tau2: float
) -> Tensor:
    """The gradient of the scores, from that of the shares; both [k, B, Na] float32."""
    grad, scores, blocks = grad.contiguous(), scores.contiguous(), _blocks(scores, quota)
    of_scores = torch.empty_like(scores)
    room = scores.new_empty(scores.shape[1], r, blocks["BLOCK_A"])
    launch(
        _backward,
        (scores.shape[1],),
        grad,
        scores,
        quota,
        room,
        of_scores,
        *_sizes(scores, r),
        tau1,
        tau2,
        **blocks,
    )
    return of_scores


def _sizes(scores: Tensor, r: int) -> tuple[int, int, int, int]:
    candidates, batch, sources = scores.shape
    return batch, sources, candidates, r


def _blocks(scores: Tensor, quota: Tensor | None) -> dict[str, int]:
    candidates, _, sources = scores.shape
    lengths = {"BLOCK_A": sources, "BLOCK_K": candidates}
    powers = {name: 1 << (count - 1).bit_length() for name, count in lengths.items()}
    return {"HAS_QUOTA": quota is not None, **powers}
