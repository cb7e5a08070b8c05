"""The floor under a time: its multiply-accumulates (MACs), or its bytes, over what this device does at best.

Both rates are measured in the run that they are compared with, by matrix products and a copy.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from measure import rounded
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

SHAPES = ((3152, 384, 1536), (3152, 1536, 384), (2048, 2048, 2048), (8192, 4096, 4096))
"""(rows, inner, columns) of the products: the layers of DeiT-small for 16 images, and squares. On a CPU all
but the last."""
COPIED = {"cpu": 2**28, "cuda": 2**31}
"""Bytes that are copied: more than the caches hold."""
SECONDS = 0.3
"""For which each shape is tried."""


@dataclass(frozen=True)
class Floor:
    """What the device does at best. macs: of matrix products per second, in one dtype. bandwidth: bytes per
    second, those read and those written together."""

    macs: float
    bandwidth: float

    def seconds(self, macs: float = 0.0, nbytes: float = 0.0) -> float:
        """The least time of work that the device cannot do without."""
        return max(macs / self.macs, nbytes / self.bandwidth)


def floor_of(device: torch.device, dtype: torch.dtype) -> Floor:
    """Measures the device, about two seconds. With the number of threads that is set."""
    shapes = SHAPES if device.type == "cuda" else SHAPES[:-1]
    return Floor(max(_product(shape, device, dtype) for shape in shapes), _copy(device))


def _product(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> float:
    rows, inner, columns = shape
    left, right = torch.ones(rows, inner, device=device), torch.ones(inner, columns, device=device)
    left, right = left.to(dtype), right.to(dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    return rows * inner * columns / _fastest(lambda: torch.mm(left, right, out=out), device)


def _copy(device: torch.device) -> float:
    source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _fastest(lambda: target.copy_(source), device)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """The lowest seconds of a call: a rate at best. On a GPU, of calls that are queued together."""
    together = 20 if device.type == "cuda" else 1
    call()
    seconds, begun = [], time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        started = _now(device)
        for _ in range(together):
            call()
        seconds.append((_now(device) - started) / together)
    return min(seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def counted_macs(call: Callable[[], object]) -> float:
    """MACs of the matrix products of a call, backward included. Attention runs without fused kernels, of
    which torch cannot count that of the CPU."""
    with sdpa_kernel(SDPBackend.MATH), _Counting() as counting:
        call()
    return counting.flops / 2


class _Counting(TorchDispatchMode):
    """Adds up the operations that torch can count. Its own `FlopCounterMode` hooks modules, which
    `autograd.grad` does not allow."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=output)
        return output


def shares(
    result: dict[str, Any],
    floor: Floor,
    seconds: list[float],
    *,
    macs: float = 0.0,
    nbytes: float = 0.0,
    mac_ratio: float | None = None,
) -> dict[str, Any]:
    """The result with what it is measured against: the share of the least time in the seconds of our side,
    and that of the ratio of MACs in the speed-up."""
    least = floor.seconds(macs, nbytes)
    result |= {
        "floor": {
            "seconds": rounded(least),
            "share": round(least / median(seconds), 3),
            "GMAC/s": round(floor.macs / 1e9, 1),
            "GB/s": round(floor.bandwidth / 1e9, 1),
        }
    }
    if mac_ratio is not None:
        share = result["ratio"]["median"] / mac_ratio
        result |= {"mac_ratio": round(mac_ratio, 3), "share_of_mac_ratio": round(share, 3)}
    return result
