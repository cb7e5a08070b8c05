"""What rests receives zeros, whatever its gradient is."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.parts import BASE, HEAD
from pipeline.train.gate import GradientGate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [1.5, -0.25, torch.inf, -torch.inf, torch.nan])
def test_a_resting_kind_receives_zeros_and_an_open_one_its_gradient(number, dtype):
    resting, learning = (nn.Parameter(torch.ones(3, dtype=dtype)) for _ in range(2))
    groups = [{"kind": BASE, "params": [resting]}, {"kind": HEAD, "params": [learning]}]
    gate, factor = GradientGate(groups, torch.device("cpu")), torch.tensor([1.0, number, 2.0], dtype=dtype)
    for kinds, (closed, opened) in {HEAD: (resting, learning), BASE: (learning, resting)}.items():
        gate.open(frozenset({kinds}))
        closed.grad = opened.grad = None
        ((resting + learning) * factor).sum().backward()
        assert torch.equal(closed.grad, torch.zeros(3, dtype=dtype))
        torch.testing.assert_close(opened.grad, factor, rtol=0, atol=0, equal_nan=True)


def test_a_kind_that_never_rests_costs_nothing():
    """One pass over each gradient is as much as the gradient's own write."""
    parameters = {kind: nn.Parameter(torch.ones(3)) for kind in (BASE, HEAD)}
    gate = GradientGate([{"kind": k, "params": [p]} for k, p in parameters.items()], torch.device("cpu"))

    def fills(*kinds: str) -> int:
        gate.open(frozenset(kinds))
        with CountsFills() as counted:
            sum(parameters.values()).sum().backward()
        return counted.fills

    assert fills(BASE, HEAD) == 0
    assert fills(HEAD) == 1
    assert fills(BASE, HEAD) == 1, "what rested once has its hook"


class CountsFills(TorchDispatchMode):
    fills = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.fills += func.overloadpacket.__name__ == "masked_fill"
        return func(*args, **kwargs or {})
