"""Which way is taken."""

import re

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pipeline.errors import ConfigError
from pipeline.kernels import choice
from pipeline.kernels.choice import asked, close, fastest, is_measured


def test_a_way_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("DTEM_KERNELS", "cuda")
    with pytest.raises(ConfigError, match="DTEM_KERNELS is 'cuda'; give one of auto, eager, triton"):
        asked("DTEM_KERNELS", ("eager", "triton"))
    for value in ("", "auto"):
        monkeypatch.setenv("DTEM_KERNELS", value)
        assert asked("DTEM_KERNELS", ("eager",)) == "auto"


def broken():
    raise RuntimeError("out of resource: shared memory")


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (broken, r"triton cannot be used here \(RuntimeError: out of resource: shared memory\)"),
        (lambda: (torch.zeros(2),), "triton gives another result"),
    ],
)
def test_a_kernel_that_fails_or_is_wrong_here_is_left_out_with_a_warning(kernel, said, monkeypatch, caplog):
    monkeypatch.setattr(choice, "_fastest", {})
    runs = []

    def eager():
        runs.append(1)
        return (torch.ones(2),)

    ways = {"eager": eager, "triton": kernel}
    for _ in range(3):
        assert fastest("a shape", ways, close, torch.ones(2)) == "eager"
    assert len(runs) == 1 and len(caplog.records) == 1
    assert re.search(said, caplog.text)


def test_shapes_of_a_class_share_an_answer():
    of = [choice.classes(torch.zeros(shape)) for shape in [(33, 130, 3), (64, 197, 3), (65, 197, 3)]]
    assert of[0] == of[1] != of[2]


def test_results_are_the_same_by_norm():
    """A mean of large numbers is small where they cancel, and then its rounding is none of its own size."""
    wanted = torch.cat([torch.full((3, 999), 50.0), torch.full((3, 1), 1e-6)], dim=1)
    rounded = wanted + torch.finfo(torch.float32).eps * 50 * torch.tensor([1.0, -1.0]).repeat(500)
    assert close((wanted, rounded), (rounded, wanted)) and close((rounded,), (wanted,), dim=-1)
    wrong = wanted.clone()
    wrong[2] += 5e-3
    assert not close((wanted, wrong), (wanted, wanted)) and close((wrong,), (wanted,), most=1e-3)
    small, twice = torch.tensor([[1e6], [1.0]]), torch.tensor([[1e6], [1.5]])
    assert close((twice,), (small,)) and not close((twice,), (small,), dim=-1)
    assert not close((small * torch.nan,), (small,))


def test_nothing_is_measured_where_results_have_to_repeat():
    with FakeTensorMode():
        x = torch.empty(2, device="cuda")
    assert is_measured(x) and not is_measured(torch.empty(2))
    torch.use_deterministic_algorithms(True)
    try:
        assert not is_measured(x)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.cuda
def test_ways_run_on_the_device_of_their_tensors(monkeypatch):
    if torch.cuda.device_count() < 2:
        pytest.skip("it takes two devices")
    monkeypatch.setattr(choice, "_fastest", {})
    x, seen = torch.ones(2, device="cuda:1"), set()

    def way():
        seen.add(torch.cuda.current_device())
        return (x * 2,)

    fastest("a shape", {"eager": way, "triton": way}, close, x)
    assert seen == {1} and torch.cuda.current_device() == 0
