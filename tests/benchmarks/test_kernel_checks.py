"""The checks of our kernels that `benchmarks/gpu.sh` makes on a GPU pass here, in Triton's interpreter where
there is none, and fail where a kernel is wrong."""

import pytest
from interpreter import DEVICE
from kernel_checks import kernel_checks
from torch import device

from pipeline.kernels import ops

CHECKS = kernel_checks(device(DEVICE))


@pytest.mark.parametrize("name", CHECKS)
def test_a_kernel_passes(name):
    CHECKS[name]()


def test_a_wrong_kernel_fails(monkeypatch):
    def heavier(values, size, *rest):
        means, sizes = ops.move_rows(values, size, *rest)
        return means, sizes + 1

    monkeypatch.setattr("pipeline.merging.on_gpu.move_rows", heavier)
    merge = next(name for name in CHECKS if "match and move" in name)
    with pytest.raises(AssertionError, match="sizes differ"):
        CHECKS[merge]()
