"""Which way is taken."""

import re

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.kernels import choice
from pipeline.kernels.choice import asked, fastest


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
        assert fastest("a shape", ways, lambda ours, right: torch.equal(ours[0], right[0])) == "eager"
    assert len(runs) == 1 and len(caplog.records) == 1
    assert re.search(said, caplog.text)


def test_shapes_of_a_class_share_an_answer():
    of = [choice.classes(torch.zeros(shape)) for shape in [(33, 130, 3), (64, 197, 3), (65, 197, 3)]]
    assert of[0] == of[1] != of[2]
