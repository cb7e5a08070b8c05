"""vid-TLDR: what is background, and what is left of it, by hand."""

from dataclasses import replace

import pytest
import torch
from tiny import random_state

from pipeline.merging.apply import apply
from pipeline.merging.evidence import Evidence
from pipeline.merging.matching import match_by
from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.vid_tldr import saliency
from pipeline.merging.policy import merge
from pipeline.merging.schedule import resolve_schedule
from pipeline.token_state import TokenState

POLICY = POLICIES.build("vid_tldr")


def two_levels(tokens, uniform):
    """Evidence in which the named tokens attend to all alike, and each other one to itself alone."""
    count = tokens.shape[1]
    q = 99 * torch.eye(count).expand(len(tokens), 1, -1, -1).clone()
    q[:, :, uniform] = 0
    return Evidence(tokens, q, torch.eye(count).expand_as(q), scale=1.0)


def test_saliency_is_sharpness_above_the_mean():
    """Entropies 3, 2, 1, 0 are sharpness 0, 1/3, 2/3, 1, whose mean is 1/2; the prefix takes no part."""
    state = TokenState.start(torch.zeros(1, 5, 2), (2, 2), 1)
    found = saliency(torch.tensor([[77.0, 3, 2, 1, 0]]), state)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0, 0, 1 / 3, 1]]))
    shifted = saliency(torch.tensor([[0.0, 8, 6, 4, 2]]), state)
    torch.testing.assert_close(shifted, found, msg="neither unit nor zero of entropies counts")


def test_padding_takes_no_part():
    state = TokenState.start(torch.zeros(1, 6, 2), (1, 6), 0)
    state = replace(state, size=torch.tensor([[1.0, 1, 1, 1, 0, 0]]), padded=True)
    found = saliency(torch.tensor([[3.0, 2, 1, 0, 50, -50]]), state)
    torch.testing.assert_close(found[:, :4], torch.tensor([[0.0, 0, 1 / 3, 1]]))


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_where_all_attend_alike_it_is_tome_by_the_tokens(noise):
    """Uniform attention, and entropies that rounding tells apart."""
    state = random_state(33, prefix=0)
    flat = torch.zeros(2, 3, 33, 8)
    evidence = Evidence(state.tokens, flat, flat, scale=1.0)
    ours, tome = merge(POLICY, evidence, state, 7), apply(state, match_by(state.tokens, state, 7))
    assert torch.equal(ours.tokens, tome.tokens) and torch.equal(ours.size, tome.size)
    entropy = evidence.mean_entropy + noise * torch.randn(2, 33)
    assert torch.equal(saliency(entropy, state), torch.ones(2, 33))


def test_background_leaves_its_destination_as_it_is():
    """Of the two most similar pairs, one has a source that attends to all alike."""
    tokens = torch.tensor([[[1.0, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 1], [-1, 0, 0]]])
    state = TokenState.start(tokens, (2, 3), 0)
    after = merge(POLICY, two_levels(tokens, [2, 4, 5]), state, 2)
    (done,) = after.merges
    assert sorted(done.source[0].tolist()) == [0, 2]
    torch.testing.assert_close(after.tokens[0, 1], (tokens[0, 0] + tokens[0, 1]) / 2)
    assert torch.equal(after.tokens[0, 2], tokens[0, 3])
    assert after.size.tolist() == [[1.0, 2.0, 1.0, 1.0]]


def test_a_destination_grows_by_the_saliency_of_its_sources():
    state = TokenState.start(torch.randn(2, 21, 6), (4, 5), 1)
    evidence = Evidence(state.tokens, *torch.randn(2, 2, 3, 21, 8), scale=1.0)
    after, (done,) = (merged := merge(POLICY, evidence, state, 8)), merged.merges
    salient = saliency(evidence.mean_entropy, state)
    given = salient.flatten()[done.source]
    assert 0 <= given.min() and given.max() <= 1 and (given == 0).any() and (given > 0).any()
    grown = torch.ones(2, 13).flatten().index_add(0, done.slot.flatten(), given.flatten()).view(2, 13)
    torch.testing.assert_close(after.size, grown)
    assert after.size.sum() < 42


def test_a_quarter_of_eight_are_two_and_at_most_half_leave():
    assert resolve_schedule(0.75, 1, 8, 0) == (2,)
    assert resolve_schedule([6], 1, 8, 0) == (4,)
