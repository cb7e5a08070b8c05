"""Other roundings than this machine's: what another matrix kernel, another number of threads or another
processor might give.

Each result of an operator that sums, or that approximates a function, is moved by a few roundings. The moves
depend on the operator, the shape and a seed. So a call that is repeated gives the same again, as it does on
one machine.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

MOVED = set(
    "mm addmm bmm baddbmm convolution convolution_backward _softmax _softmax_backward_data _log_softmax "
    "_log_softmax_backward_data _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_flash_attention_for_cpu_backward native_layer_norm native_layer_norm_backward "
    "native_batch_norm native_batch_norm_backward sum mean linalg_vector_norm exp log tanh "
    "gelu gelu_backward sigmoid logsumexp upsample_bilinear2d upsample_bilinear2d_backward".split()
)
"""Operators of aten whose kernels differ. Sums and products of two numbers are rounded alike everywhere."""


@functools.lru_cache(maxsize=4096)
def _moves(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """-1, 0 or 1 for each number of a result."""
    generator = torch.Generator().manual_seed(hash((seed, shape, *name.encode())) % 2**63)
    return torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)


def _picks_rows(left: Tensor, right: Tensor) -> bool:
    """A product with one number per row or column is exact, as that with the identity."""
    return bool((left.count_nonzero(-1) <= 1).all() or (right.count_nonzero(-2) <= 1).all())


class _OtherRounding(TorchDispatchMode):
    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in MOVED or (name in ("mm", "bmm") and _picks_rows(*args)):
            return result
        return tree_map_only(Tensor, lambda x: self._moved(name, x), result)

    def _moved(self, name: str, x: Tensor) -> Tensor:
        """Whole numbers stay: sums of whole numbers are exact in any order."""
        if not x.is_floating_point() or x.device.type != "cpu" or not x.numel():
            return x
        roundings = (
            4.0 if x.dtype in (torch.float32, torch.float64) else 0.75
        )  # shorter ones are summed in float32
        moves = roundings * torch.finfo(x.dtype).eps * _moves(self.seed, name, tuple(x.shape))
        return torch.where(x == x.round(), x, (x + moves * x.abs()).to(x.dtype))


@contextmanager
def other_rounding(seed: int) -> Iterator[None]:
    """0: this machine's own."""
    if not seed:
        yield
        return
    with _OtherRounding(seed):
        yield
