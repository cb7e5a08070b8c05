"""Density peaks: the acceptance checks of the system's specification."""

import math

import pytest
import torch
from tiny import merged

from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.ailurus import densities, distances, grid_distances, peaks
from pipeline.merging.unmerge import slots, unmerge_tokens
from pipeline.token_state import TokenState

LINE = torch.tensor([[[0.0], [0.1], [0.2], [5.0], [5.1]]], dtype=torch.float64)


def test_densities_and_peaks_of_five_points_on_a_line():
    apart = distances(LINE)
    density = densities(apart, 3)
    scores = peaks(apart, density).exp()
    wanted = torch.tensor([[0.9835, 0.9934, 0.9835, 0.00046, 0.00033]], dtype=torch.float64)
    torch.testing.assert_close(density.exp(), wanted, atol=1e-4, rtol=0.02)
    delta = torch.tensor([[0.1, 5.1, 0.1, 4.8, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(scores / density.exp(), delta, atol=1e-6, rtol=0)
    wanted = torch.tensor([[0.0983, 5.066, 0.0983, 0.0022, 0.00003]], dtype=torch.float64)
    torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=0.02)
    first, second = scores[0].argsort(descending=True).tolist()[:2]
    assert first == 1 and second in (0, 2)


def test_equal_densities_are_ranked_by_position():
    """With two neighbours the first three are alike, so the first is the peak, and a copy is none."""
    apart = distances(LINE)
    density = densities(apart, 2).round(decimals=9)
    assert density[0, 0] == density[0, 1] == density[0, 2]
    assert peaks(apart, density)[0].argmax() == 0
    twins = distances(torch.tensor([[[3.0, 1.0], [3.0, 1.0], [0.0, 2.0], [9.0, 9.0]]]))
    assert twins[0, 0, 1] == 0 and peaks(twins, densities(twins, 2))[0, 1] == -torch.inf


def clustered(tokens, grid, *reductions, **options):
    state = TokenState.start(tokens, grid, 0)
    for r in reductions:
        state = merged(POLICIES.build("ailurus", **options), state, state.tokens, r)
    return state


def test_a_token_joins_the_nearest_centre_and_a_centre_itself():
    tokens = torch.randn(1, 24, 5, dtype=torch.float64)
    state = clustered(tokens, (4, 6), 12, spatial=0.0)
    apart = distances(tokens)[0]
    centres = state.merges[0].keep[0].tolist()
    score = peaks(apart[None], densities(apart[None], 5))[0]
    assert set(centres) == set(score.argsort(descending=True)[:12].tolist())
    slot = slots(state)[0].tolist()
    for token in range(24):
        assert centres[slot[token]] == min(centres, key=lambda centre: apart[token, centre])
    assert state.size.sum() == 24


def test_a_constant_image_comes_back_constant():
    tokens = torch.full((1, 16, 3), 0.7)
    state = clustered(tokens, (4, 4), 8, 4)
    assert torch.equal(unmerge_tokens(state.tokens, state.merges), tokens)


@pytest.mark.parametrize("of", ["pairs", "cells"])
def test_without_the_grid_equal_tokens_meet(of):
    """With it they need not: dense places have several centres before a lonely token is one."""
    values = torch.randint(-8, 8, (2, 2, 4, 5)).float()
    tokens = values.repeat_interleave(2, dim=2)[:, :, :4].repeat_interleave(2, dim=1).flatten(1, 2)
    if of == "pairs":
        tokens = torch.randint(-8, 8, (2, 8, 5)).float().repeat_interleave(2, dim=1)
    state = clustered(tokens, (4, 4), 8, spatial=0.0)
    assert torch.equal(unmerge_tokens(state.tokens, state.merges), tokens)


def test_clusters_become_compact_where_the_grid_counts_more():
    """The mean distance on the grid from a patch to the centre of its cluster."""
    tokens = torch.randn(1, 64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y, x = (torch.arange(64) // 8).double(), (torch.arange(64) % 8).double()
    spans = []
    for spatial in (0.0, 1.0, 5.0, 100.0):
        state = clustered(tokens, (8, 8), 32, spatial=spatial)
        centre = state.merges[0].keep[0][slots(state)[0]]
        spans.append(torch.hypot(y - y[centre], x - x[centre]).mean().item())
    assert spans == sorted(spans, reverse=True) and spans[-1] < spans[0] / 2


def test_unfolding_gathers_by_the_composed_map():
    state = clustered(torch.randn(2, 16, 3, dtype=torch.float64), (4, 4), 8, 4)
    wanted = state.tokens.gather(1, slots(state)[..., None].expand(-1, -1, 3))
    assert torch.equal(unmerge_tokens(state.tokens, state.merges), wanted)
    assert state.size.sum(dim=1).tolist() == [16, 16]


def test_a_merged_token_lies_at_the_mean_of_its_patches():
    state = TokenState.start(torch.randn(1, 7, 3), (2, 3), 1)
    diagonal = math.hypot(1, 2)
    torch.testing.assert_close(
        grid_distances(state)[0, 0], torch.tensor([0, 1, 2, 1, 2**0.5, 5**0.5]) / diagonal
    )
    state = merged(POLICIES.build("grid_average"), state, state.tokens, 2)
    # [0, 1], [2], [3, 4], [5], where a pair lies at 0.5
    assert slots(state)[0].tolist() == [0, 1, 1, 2, 3, 3, 4]
    torch.testing.assert_close(
        grid_distances(state)[0, 0], torch.tensor([0, 1.5, 1, math.hypot(1, 1.5)]) / diagonal
    )


@pytest.mark.parametrize("options", [{"neighbours": 0}, {"spatial": -0.5}, {"spatial": math.inf}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigError, match=f"ailurus: {next(iter(options))} is"):
        POLICIES.build("ailurus", **options)
