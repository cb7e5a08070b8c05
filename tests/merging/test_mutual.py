"""Mutual nearest pairs by hand, by angles on the circle."""

import pytest
import torch
from tiny import merged, random_state

from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.mutual import ends
from pipeline.merging.unmerge import slots


def groups(angles, r):
    turns = torch.deg2rad(torch.tensor(angles, dtype=torch.float64))
    metric = torch.stack([turns.cos(), turns.sin()], dim=1)[None]
    state = random_state(num_tokens=len(angles), prefix=0, batch=1, dim=2, dtype=torch.float64)
    slot = slots(merged(POLICIES.build("mutual"), state, metric, r))[0].tolist()
    found = {}
    for position, group in enumerate(slot):
        found.setdefault(group, []).append(position)
    return [group for group in found.values() if len(group) > 1]


@pytest.mark.parametrize(
    ("r", "wanted"),
    [(1, [[0, 1]]), (2, [[0, 1], [3, 4]]), (3, [[0, 1, 2], [3, 4]])],
    ids=["the nearest pair", "all mutual pairs", "then those whose nearest has a pair"],
)
def test_mutual_pairs_merge_first(r, wanted):
    assert groups([0.0, 1.0, 5.0, 90.0, 92.0, 200.0], r) == wanted


def test_a_pair_that_is_not_mutual_waits_however_similar_it_is():
    """The third is nearer to the second than the last two are to each other."""
    assert groups([0.0, 1.0, 2.5, 90.0, 95.0, 180.0], 2) == [[0, 1], [3, 4]]


def test_a_chain_ends_at_its_mutual_pair():
    assert groups([0.0, 1.0, 3.0, 7.0, 15.0, 170.0], 3) == [[0, 1, 2, 3]]
    assert ends(torch.tensor([[0, 0, 1, 2, 3]]), 4).tolist() == [[0, 0, 0, 0, 0]]
