"""A comparison with others' code says that logits are the same where they are, and fails elsewhere."""

import argparse

import pytest
import torch
from policies_vs_peers import CASES, SAME, Case, compared, logits, our_model, random_weights, result_of


def ours_again(weights, folder, *, r):
    return our_model(weights, Case("opentome", ours_again, "tome", r))


@pytest.mark.parametrize("departs", [None, "they do"])
def test_what_is_said_of_a_case_has_to_be_so(departs):
    case, mine = Case("opentome", ours_again, "tome", [8] * 12, departs=departs), torch.zeros(2, 5)
    for apart in (0.0, 10 * SAME):
        if (apart < SAME) == (departs is None):
            found = result_of("a", case, mine, mine + apart, mine + 1)
            assert found["scores"]["largest difference"] == pytest.approx(apart)
            assert found.get("departs") == departs
        else:
            with pytest.raises(RuntimeError, match="a: logits differ by"):
                result_of("a", case, mine, mine + apart, mine + 1)


def test_a_peer_with_our_rule_has_our_logits_and_the_merge_changes_them(monkeypatch):
    monkeypatch.setattr("policies_vs_peers.CASES", {"ToMe": Case("opentome", ours_again, "tome", [8] * 12)})
    args = argparse.Namespace(images=1, peer={"opentome": "nowhere"})
    (found,) = compared(args)
    assert found["scores"]["largest difference"] == 0
    assert found["scores"]["largest difference from the unmerged model"] > 100 * SAME
    args.peer = {}
    assert not list(compared(args))


def test_a_peer_that_fails_is_named_and_left_out(monkeypatch, capsys):
    def fails(weights, folder, *, r):
        raise ImportError("no such thing")

    monkeypatch.setattr("policies_vs_peers.CASES", {"x": Case("opentome", fails, "tome", [0] * 12)})
    assert not list(compared(argparse.Namespace(images=1, peer={"opentome": "nowhere"})))
    assert "peer x does not run here" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["PiToMe, all blocks", "vid-TLDR, first two blocks"])
def test_our_side_has_the_weights_exactly(name):
    """Of the models with and without a class token."""
    weights, images = random_weights(CASES[name].model), torch.randn(1, 3, 224, 224, dtype=torch.float64)
    model = our_model(weights, CASES[name], merges=False)
    ours, theirs = logits(model, images).double(), logits(weights, images)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
