"""Hard matching and merging, by hand: ToMe's checks."""

import math

import pytest
import torch
from tiny import merged as merged_by

from pipeline.merging.matching import Split
from pipeline.merging.policies import POLICIES
from pipeline.merging.unmerge import slots, unmerge, unmerge_tokens
from pipeline.token_state import TokenState


def match_and_merge(state, metric, r):
    return merged_by(POLICIES.build("tome"), state, metric, r)


def start(tokens, prefix=0):
    return TokenState.start(tokens, (1, tokens.shape[1] - prefix), prefix)


def on_circle(*degrees):
    return torch.tensor([[[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees]])


def test_neighbours_on_the_circle_merge():
    tokens = torch.tensor([[[1.0], [3.0], [10.0], [30.0]]])
    merged = match_and_merge(start(tokens), on_circle(0, 1, 90, 89), 2)
    assert merged.tokens.tolist() == [[[2.0], [20.0]]] and merged.size.tolist() == [[2.0, 2.0]]
    assert slots(merged).tolist() == [[0, 0, 1, 1]]


def test_the_most_similar_pair_merges_first():
    """2 -> 3 is closer (1 degree) than 0 -> 1 (10 degrees); the order is [kept sources, destinations]."""
    tokens = torch.tensor([[[1.0], [3.0], [10.0], [30.0]]])
    merged = match_and_merge(start(tokens), on_circle(0, 10, 90, 89), 1)
    assert merged.tokens.tolist() == [[[1.0], [3.0], [20.0]]]
    assert slots(merged).tolist() == [[0, 1, 2, 2]]


def test_several_sources_may_share_a_destination_and_merged_tokens_count_by_size():
    """Sources 0, 2, 4 are all nearest to token 3."""
    tokens = torch.tensor([[[0.0], [100.0], [3.0], [6.0], [9.0], [200.0]]])
    metric = on_circle(1, 120, 0, 2, 3, 240)
    first = match_and_merge(start(tokens), metric, 3)
    assert first.tokens.tolist() == [[[100.0], [4.5], [200.0]]] and first.size.tolist() == [[1.0, 4.0, 1.0]]
    second = match_and_merge(first, on_circle(0, 1, 90), 1)
    torch.testing.assert_close(second.tokens, torch.tensor([[[200.0], [(100 + 4 * 4.5) / 5]]]))
    assert slots(second).tolist() == [[1, 1, 1, 1, 1, 0]]


def test_a_destination_never_leaves_and_the_class_token_is_never_matched():
    """Every token points the same way, so nothing but the rules keeps anything apart."""
    tokens = torch.randn(1, 9, 4)
    merged = match_and_merge(start(tokens, prefix=1), torch.ones(1, 9, 4), 4)
    assert torch.equal(merged.tokens[:, 0], tokens[:, 0]) and merged.size[0, 0] == 1
    places = slots(merged)[0]
    assert (places == 0).sum() == 1 and len(set(places[1::2].tolist())) == 4


@pytest.mark.parametrize("num_prefix", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("num_live", [4, 5, 8, 9, 17])
def test_both_splits_cut_the_patches_in_two(num_prefix, num_live):
    positions = list(range(num_live))
    for split in (Split.by_parity(num_live, num_prefix), Split.of_release(num_live, num_prefix)):
        sources, destinations = positions[split.sources], positions[split.destinations]
        assert sorted(sources + destinations) == positions[num_prefix:]
        assert not set(sources) & set(destinations)
    parity = Split.by_parity(num_live, num_prefix)
    assert all(i % 2 == 0 for i in positions[parity.sources]) and all(
        i % 2 == 1 for i in positions[parity.destinations]
    )


def test_the_splits_of_inference_and_of_the_release_in_training_are_each_other_swapped():
    parity, release = Split.by_parity(9, 1), Split.of_release(9, 1)
    assert (parity.sources, parity.destinations) == (release.destinations, release.sources)


@pytest.mark.parametrize("num_tokens", [16, 17])
@pytest.mark.parametrize(("r", "left"), [(0, 0), (1, 1), (7, 7), (8, 8), (9, 8), (100, 8)])
def test_more_than_half_is_capped(num_tokens, r, left):
    tokens = torch.randn(2, num_tokens, 3)
    assert match_and_merge(start(tokens), tokens, r).tokens.shape[1] == num_tokens - left


def test_what_was_not_merged_comes_back_as_it_was_and_the_rest_as_the_mean():
    tokens = torch.randn(2, 17, 3)
    state = start(tokens, prefix=1)
    merged = match_and_merge(state, tokens, 5)
    back = unmerge_tokens(merged.tokens, merged.merges)
    assert back.shape == tokens.shape
    places = slots(merged)
    for image in range(2):
        for position in range(17):
            group = (places[image] == places[image, position]).nonzero()[:, 0]
            torch.testing.assert_close(back[image, position], tokens[image, group].mean(0))
            if len(group) == 1:
                assert torch.equal(back[image, position], tokens[image, position])
    assert unmerge(merged).shape == (2, 3, 1, 16)


def test_the_source_map_names_the_place_that_merging_gave():
    """Token values are their own position, metric random: what stays must be found where the map says."""
    tokens = torch.arange(17.0).view(1, 17, 1).repeat(3, 1, 1)
    merged = match_and_merge(start(tokens, prefix=2), torch.randn(3, 17, 4), 4)
    (merge,) = merged.merges
    kept = merge.keep % 17
    assert torch.equal(slots(merged).gather(1, kept), torch.arange(13).expand(3, -1))
    alone = merged.size == 1
    assert torch.equal(merged.tokens[..., 0][alone], kept[alone].float())


def test_two_merges_compose_as_their_maps_do():
    tokens = torch.randn(2, 33, 4)
    first = match_and_merge(start(tokens, prefix=1), tokens, 8)
    second = match_and_merge(first, first.tokens, 8)
    of_second = match_and_merge(start(first.tokens, prefix=1), first.tokens, 8).merges
    stepwise = unmerge_tokens(unmerge_tokens(second.tokens, of_second), first.merges)
    assert torch.equal(stepwise, unmerge_tokens(second.tokens, second.merges))
