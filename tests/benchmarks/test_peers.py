"""Others' code beside ours: what fails of theirs is named and left out, what fails of ours ends the script."""

import pytest
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


def test_the_most_memory_is_at_least_what_is_held():
    assert _resident("VmHWM") >= _resident("VmRSS") > 1 << 20
