"""The comparison of targets with TL-Align's code fails where they differ, and says what did not run."""

import argparse

import labels_vs_peer
import pytest
import torch
from labels_vs_peer import SAME, by_ours, mixed_batch, result_of, uneven_weights


@pytest.fixture(scope="module")
def made():
    """A mixed batch, and our targets and logits for it."""
    batch = mixed_batch(4, 0)
    return batch, by_ours(uneven_weights(), batch)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1e-3, 0.0), (0.0, 1.0)])
def test_targets_and_logits_have_to_be_the_same(made, shift):
    batch, mine = made
    theirs = mine[0] + shift[0], mine[1] + shift[1]
    if any(shift):
        with pytest.raises(RuntimeError, match="draw 0: targets differ by"):
            result_of(0, batch, mine, theirs)
        return
    scores = result_of(0, batch, mine, theirs)["scores"]
    assert scores["largest difference of targets"] == 0
    assert 0 < scores["share of the partner"] < 1, "a rectangle was drawn"
    assert scores["largest difference from targets by area"] > 10 * SAME
    torch.testing.assert_close(mine[0].sum(1), torch.ones(4))


def test_a_peer_that_fails_or_is_not_given_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr("labels_vs_peer.uneven_weights", lambda: None)
    assert not list(labels_vs_peer.compared(argparse.Namespace(images=2, peer={"tl_align": "nowhere"})))
    assert "peer tl_align does not run here" in capsys.readouterr().out
    assert not list(labels_vs_peer.compared(argparse.Namespace(images=2, peer={})))
