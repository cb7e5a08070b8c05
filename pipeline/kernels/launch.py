"""Starts a kernel on the device of its tensors."""

from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *rest: object, **options: object) -> None:
    """Runs `kernel` of triton.jit with these arguments, a program for each place of the grid."""
    with torch.cuda.device_of(first):
        kernel[grid](first, *rest, **options)


def block_of(count: int, most: int) -> int:
    """Length of a program's block for `count` numbers: a power of two, 16 to `most`."""
    return min(most, max(16, 1 << (count - 1).bit_length()))
