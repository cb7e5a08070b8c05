"""The kernels of the relaxed merge's softmaxes give what PyTorch's operators give."""

import pytest
import torch
from interpreter import DEVICE

from pipeline.merging.soft_assignment import soft_assignment

DEIT = pytest.param((3, 128, 98), 16, marks=pytest.mark.cuda)


@pytest.mark.parametrize("with_quota", [False, True])
@pytest.mark.parametrize(("shape", "r"), [((3, 2, 7), 5), ((1, 1, 4), 1), ((4, 3, 16), 9), DEIT])
def test_shares_and_their_gradient_are_those_of_the_operators(shape, r, with_quota, monkeypatch):
    scores = (torch.randn(shape, device=DEVICE) * 0.3).requires_grad_()
    quota = torch.arange(shape[1], device=DEVICE) + 1 if with_quota else None
    probe = torch.randn(shape, device=DEVICE)
    results = {}
    for way in ("eager", "triton"):
        monkeypatch.setenv("DTEM_KERNELS", way)
        share = soft_assignment(scores, quota, r, 0.2, 0.5)
        results[way] = share, torch.autograd.grad((share * probe).sum(), scores)[0]
    for ours, theirs in zip(results["triton"], results["eager"], strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-4)


def test_a_source_that_is_used_up_has_no_gradient_that_is_not_a_number(monkeypatch):
    monkeypatch.setenv("DTEM_KERNELS", "triton")
    scores = torch.tensor([[[9.0, 0.0, 0.1]]], device=DEVICE, requires_grad=True)
    share = soft_assignment(scores, None, 3, 0.1, 0.1)
    grad = torch.autograd.grad(share[0, 0, 1], scores)[0]
    assert share[0, 0, 0] == 1 and grad.isfinite().all()
