"""Counts what a pass computes."""

from collections import Counter
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = ("aten::detach", "aten::promote_types", "aten::_unsafe_view")


class Kernels(TorchDispatchMode):
    """Counts the aten operators that compute something: on a GPU each is at least one launch."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func.name().split(".")[0] not in VIEWS:
            self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def kernels(run: Callable[[], object]) -> Counter[str]:
    """Operators of a call without gradients, by name."""
    with torch.no_grad(), Kernels() as seen:
        run()
    return seen.counts
