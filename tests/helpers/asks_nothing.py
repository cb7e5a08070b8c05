"""What would make the host wait for a GPU, found on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class AsksNothing(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU: reading a value, shapes that depend on values, and copies
    of the host's own numbers."""

    WAITS = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "_unique2", "equal", "bincount")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.WAITS, f"{func} waits for the device"
        return func(*args, **kwargs or {})

    @classmethod
    def within(cls, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with cls():
                return function(*args, **options)

        return call


@contextmanager
def never_waits() -> Iterator[None]:
    """On a GPU: CUDA's own check. What makes the host wait for the device raises RuntimeError."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
