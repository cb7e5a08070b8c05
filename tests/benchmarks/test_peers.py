"""Others' code beside ours: what fails of theirs is named and left out. And the memory of a process."""

import pytest
import torch
from measure import _resident
from peers import working


def builds(fails):
    def build():
        if fails == "building":
            raise ImportError("no such thing\nand more")

        def call():
            if fails == "calling":
                raise ZeroDivisionError("by zero")

        return call

    return build


@pytest.mark.parametrize("when", ["building", "calling"])
def test_a_peer_that_fails_is_left_out_by_name(when, capsys):
    found = working({"ours": builds(""), "release modular": builds(when)}, others=["release modular"])
    assert list(found) == ["ours"] and "peer release modular does not run here" in capsys.readouterr().out
    with pytest.raises((ImportError, ZeroDivisionError)):
        working({"ours": builds(when)}, others=["release modular"])


def test_the_most_memory_counts_what_was_given_back():
    before = _resident("VmRSS")
    torch.ones(1 << 26)  # 256 MiB
    assert _resident("VmHWM") - before > 200 << 20
