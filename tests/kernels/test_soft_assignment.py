"""The kernels of the relaxed merge's softmaxes give what PyTorch's operators give."""

import pytest
import torch
from interpreter import DEVICE

from pipeline.kernels import choice
from pipeline.kernels import soft_assignment as kernels
from pipeline.merging import soft_assignment as merging
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


def test_lengths_of_one_power_of_two_are_one_class(monkeypatch):
    """A range of reductions has another number of sources and of steps in each block of each draw."""
    keys = set()
    monkeypatch.setattr(choice, "is_measured", lambda x: True)
    monkeypatch.setattr(choice, "fastest", lambda key, *rest: keys.add(key) or "eager")
    monkeypatch.setenv("DTEM_KERNELS", "auto")
    for sources in range(33, 65):
        for r in (9, 12, 16):
            soft_assignment(torch.randn(3, 2, sources, device=DEVICE), None, r, 0.2, 0.5)
    assert len(keys) == 1
    soft_assignment(torch.randn(3, 2, 65, device=DEVICE), None, 17, 0.2, 0.5)
    assert len(keys) == 2


def test_more_pairs_than_a_program_holds_are_the_operators(monkeypatch):
    monkeypatch.setenv("DTEM_KERNELS", "triton")
    monkeypatch.setattr(kernels, "shares_of", None)  # who calls it fails
    monkeypatch.setattr(merging, "MOST_PAIRS", 64)
    soft_assignment(torch.randn(4, 2, 17, device=DEVICE), None, 2, 0.2, 0.5)
    with pytest.raises(TypeError):
        soft_assignment(torch.randn(4, 2, 16, device=DEVICE), None, 2, 0.2, 0.5)
