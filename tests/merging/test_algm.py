"""Local merges in windows, then global ones."""

from itertools import combinations

import pytest
import torch
from tiny import merged

from pipeline.merging.matching import match_by
from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.algm import window_likeness, windows
from pipeline.merging.unmerge import slots
from pipeline.token_state import TokenState

CPU = torch.device("cpu")


def at(*angles):
    turns = torch.deg2rad(torch.tensor(angles, dtype=torch.float64))
    return torch.stack([turns.cos(), turns.sin()], dim=-1)


def test_windows_of_an_odd_grid_are_smaller_at_its_edge():
    window, first = windows((3, 5), CPU)
    assert window.view(3, 5).tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert first.view(3, 5).tolist() == [[0, 0, 2, 2, 4], [0, 0, 2, 2, 4], [10, 10, 12, 12, 14]]


def test_the_likeness_of_a_window_is_the_mean_cosine_of_its_pairs():
    vectors = torch.randn(2, 15, 7, dtype=torch.float64)
    alike, window = window_likeness(vectors, (3, 5)), windows((3, 5), CPU)[0][0]
    for image in range(2):
        for number in range(5):
            members = vectors[image, window == number]
            cosines = [torch.cosine_similarity(a, b, dim=0) for a, b in combinations(members, 2)]
            torch.testing.assert_close(alike[image, number], torch.stack(cosines).mean())
    torch.testing.assert_close(alike[:, 5], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("r", "wanted"),
    [
        (1, {11: 10}),
        (3, {11: 10, 14: 10, 15: 10}),
        (5, {11: 10, 14: 10, 15: 10, 1: 0, 4: 0}),
        (8, {11: 10, 14: 10, 15: 10, 1: 0, 4: 0, 5: 0, 3: 2, 6: 2}),
    ],
)
def test_the_most_alike_windows_merge_first_and_the_last_one_in_part(r, wanted):
    """A grid of 4 x 4: the last window's patches are equal, the first one's nearly, the second one's less."""
    grid = at(0, 3, 90, 110, 3, 0, 110, 90, 200, 250, 30, 30, 300, 350, 30, 30)
    state = TokenState.start(grid[None], (4, 4), 0)
    slot = slots(merged(POLICIES.build("algm"), state, state.tokens, r))[0].tolist()
    for patch in range(16):
        assert slot[patch] == slot[wanted.get(patch, patch)]
    assert len(set(slot)) == 16 - r


def test_later_blocks_merge_globally():
    policy = POLICIES.build("algm")
    state = TokenState.start(torch.randn(2, 17, 6, dtype=torch.float64), (4, 4), 1)
    once = merged(policy, state, state.tokens, 4)
    metric = torch.randn(2, 13, 6, dtype=torch.float64)
    twice, wanted = merged(policy, once, metric, 3), match_by(metric, once, 3)
    assert torch.equal(twice.merges[1].keep, wanted.keep) and torch.equal(twice.merges[1].slot, wanted.slot)
