"""The comparison of targets with TL-Align's code fails where they differ, and says what did not run."""

import argparse

import labels_vs_peer
import pytest
import torch

GIVEN = argparse.Namespace(images=4, peer={"tl_align": "nowhere"})


@pytest.fixture
def one_draw(monkeypatch):
    monkeypatch.setattr("labels_vs_peer.DRAWS", 1)
    return monkeypatch


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1e-3, 0.0), (0.0, 1.0)])
def test_targets_and_logits_have_to_be_the_same(one_draw, shift):
    def again(weights, folder, batch):
        found = labels_vs_peer.by_ours(weights, batch)
        return tuple(own + more for own, more in zip(found, shift, strict=True))

    one_draw.setattr("labels_vs_peer.by_authors", again)
    if any(shift):
        with pytest.raises(RuntimeError, match="targets differ by"):
            list(labels_vs_peer.compared(GIVEN))
        return
    (found,) = labels_vs_peer.compared(GIVEN)
    scores = found["scores"]
    assert scores["largest difference of targets"] == 0
    assert 0 < scores["share of the partner"] < 1, "a rectangle was drawn"
    assert scores["largest difference from targets by area"] > 10 * labels_vs_peer.SAME


def test_a_peer_that_fails_or_is_not_given_is_left_out(one_draw, capsys):
    assert not list(labels_vs_peer.compared(GIVEN))
    assert "peer tl_align does not run here" in capsys.readouterr().out
    assert not list(labels_vs_peer.compared(argparse.Namespace(images=2, peer={})))


def test_targets_are_distributions():
    batch = labels_vs_peer.mixed_batch(2, 0)
    weights = labels_vs_peer.uneven_weights()
    targets, logits = labels_vs_peer.by_ours(weights, batch)
    torch.testing.assert_close(targets.sum(1), torch.ones(2))
    assert logits.shape == targets.shape
