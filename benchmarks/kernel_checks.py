"""Whether our Triton kernels give on a device what PyTorch's operators give: match, move, attention with
sizes, and the softmaxes of a relaxed merge with their gradient. A check raises AssertionError.

B batch, M tokens.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.backbone.attention import proportional_attention
from pipeline.kernels.choice import HAS_TRITON
from pipeline.merging.apply import apply
from pipeline.merging.matching import match_by
from pipeline.merging.soft_assignment import soft_assignment
from pipeline.token_state import TokenState

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests/helpers"))
from clear_metric import clear_metric  # noqa: E402

SHAPES = ((1, 197, 1, 16), (64, 197, 1, 16), (2, 577, 1, 288))
"""B, M, tokens of the prefix, r: DeiT at two batch sizes, and what two launches match."""
SMALL = ((2, 19, 1, 5),)
"""For the interpreter."""
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Largest distance of a result, by norm."""
VARIABLES = ("DTEM_KERNELS", "DTEM_ATTENTION")


def kernel_checks(device: torch.device) -> dict[str, Callable[[], None]]:
    """Name of a check -> the check."""
    return {
        f"kernel of {what}, {str(dtype).removeprefix('torch.')}, {shape}": lambda c=check, d=dtype, s=shape: (
            c(device, d, s)
        )
        for what, check in {"match and move": same_merge, "attention": same_attention}.items()
        for dtype in ROUNDING
        for shape in (SHAPES if device.type == "cuda" else SMALL)
    } | {
        f"kernel of soft assignment, {shape}": lambda s=shape: same_shares(device, s)
        for shape in (SHAPES if device.type == "cuda" else SMALL)
    }


@torch.no_grad()
def same_merge(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    batch, num_tokens, prefix, r = shape
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randn(batch, num_tokens, 384, generator=draws).to(device, dtype)
    size = torch.randint(1, 4, (batch, num_tokens), generator=draws).float().to(device)
    state = TokenState(tokens, size, (1, num_tokens - prefix), prefix, num_tokens)
    metric = clear_metric(batch, num_tokens, prefix).to(device, dtype)
    with by("eager"):
        wanted = match_by(metric, state, r)
        after = apply(state, wanted)
    with by("triton"):
        found = match_by(metric, state, r)
        moved, again = apply(state, wanted), apply(state, wanted)
    for name in ("keep", "source", "slot"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), f"{name} differs"
    assert torch.equal(moved.size, after.size), "sizes differ"
    assert torch.equal(moved.tokens, again.tokens), "a result does not repeat to the last bit"
    near(moved.tokens, after.tokens)


@torch.no_grad()
def same_attention(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    batch, num_tokens, _, _ = shape
    draws = torch.Generator().manual_seed(0)
    packed = (
        torch.randn(batch, num_tokens, 3, 6, 64, generator=draws).to(device, dtype).permute(2, 0, 3, 1, 4)
    )
    size = torch.randint(1, 30, (batch, num_tokens), generator=draws).float().to(device)
    q, k, v = packed.unbind(0)
    with by("triton"):
        found = proportional_attention(q, k, v, size, scale=0.125, packed=packed)
    exact = proportional_attention(*(x.double() for x in (q, k, v, size)), scale=0.125)
    near(found, exact)


def same_shares(device: torch.device, shape: tuple[int, int, int, int]) -> None:
    batch, num_tokens, _, r = shape
    draws = torch.Generator().manual_seed(0)
    scores = (torch.randn(3, batch, num_tokens // 2, generator=draws) * 0.3).to(device).requires_grad_()
    probe = torch.randn(scores.shape, generator=draws).to(device)
    results: dict[str, tuple[Tensor, Tensor]] = {}
    for way in ("eager", "triton"):
        with by(way):
            share = soft_assignment(scores, None, r, 0.2, 0.5)
            results[way] = share.detach(), torch.autograd.grad((share * probe).sum(), scores)[0]
    for found, wanted in zip(results["triton"], results["eager"], strict=True):
        near(found, wanted, 1e-4)


def near(found: Tensor, wanted: Tensor, most: float = 0.0) -> None:
    """By norm. most: 0 for the rounding of the dtype."""
    distance = float((found.double() - wanted.double()).norm() / wanted.double().norm())
    most = most or ROUNDING[found.dtype]
    assert distance <= most, f"off by {distance:.2g}, more than {most:.2g}"


@contextmanager
def by(way: str) -> Iterator[None]:
    """`eager`, or `triton`: the operators of PyTorch, or our kernels."""
    assert HAS_TRITON, "triton is not installed"
    before: dict[str, Any] = {name: os.environ.get(name) for name in VARIABLES}
    os.environ |= {"DTEM_KERNELS": way, "DTEM_ATTENTION": "auto" if way == "eager" else way}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
