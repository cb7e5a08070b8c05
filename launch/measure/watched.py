"""What one inference does on a device: the kernel of its attention, and the memory of its tensors."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KERNELS = {
    "_scaled_dot_product_flash_attention_for_cpu": "fused (CPU)",
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_efficient_attention": "memory-efficient",
    "_scaled_dot_product_cudnn_attention": "cuDNN",
    "_scaled_dot_product_attention_math": "math",
    "attend_by_weight": "Triton",
    "flex_attention": "flex",
}
"""Operations of attention, torch's and ours -> what they are called."""
MATH = "math"
MIB = 2**20


class Watched(TorchDispatchMode):
    """A context that notes what runs in it, where it is not compiled."""

    supports_higher_order_operators = True  # as flex_attention is

    def __init__(self) -> None:
        super().__init__()
        self.kernels: set[str] = set()
        self.peak = 0
        """The most bytes that tensors made in it had at once; views of what was there before are none."""
        self._softmax = False
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._alive = {key: own for key, own in self._alive.items() if not own[0].expired()}
        # a view of a weight, or of an input, is no memory of the call
        before = {_storage(x).cdata for x in _tensors((args, kwargs))} - self._alive.keys()
        found = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        self._softmax |= name in ("_softmax", "_safe_softmax")
        if name in KERNELS:
            self.kernels.add(KERNELS[name])
        for tensor in _tensors(found):
            own = _storage(tensor)
            if own.cdata not in before:
                self._alive.setdefault(own.cdata, (own, tensor.untyped_storage().nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return found

    @property
    def attention(self) -> str:
        """The kernels of attention. `math`, which has none of its own, is a softmax without a kernel."""
        return " and ".join(sorted(self.kernels)) or (MATH if self._softmax else "none")


def _tensors(found: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


@torch.no_grad()
def watched(call: Callable[[], object], context: Any = None) -> Watched:
    """What a call does, under a context such as autocast."""
    with context or nullcontext(), Watched() as seen:
        call()
    return seen


def peak_mib(call: Callable[[], object], device: torch.device) -> float:
    """The most memory that tensors have during one call, in MiB: on a GPU with all that was there before,
    such as weights; on a CPU that of the tensors which it makes."""
    on_gpu = peak_on_gpu(call, device)
    return watched(call).peak / MIB if on_gpu is None else on_gpu


def peak_on_gpu(call: Callable[[], object], device: torch.device) -> float | None:
    """The same on a GPU, where the call may be compiled; None on another device."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / MIB
