"""PiToMe against its equations, written out."""

import math

import pytest
import torch
from tiny import random_state

from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.pitome import energies
from pipeline.merging.policy import merge
from pipeline.merging.unmerge import slots


def evidence_at(depth, metric):
    return Evidence(metric, metric[:, None], metric[:, None], scale=1.0, depth=depth)


def test_the_energy_is_the_mean_of_elus():
    alike = torch.tensor([[[1.0, 0.5, -0.5], [0.5, 1.0, 0.2], [-0.5, 0.2, 1.0]]])
    below = {x: 2.0 * (math.exp(x - 0.4) - 1) for x in (-0.5, 0.2)}
    wanted = [
        (0.6 + 0.1 + below[-0.5]) / 3,
        (0.1 + 0.6 + below[0.2]) / 3,
        (below[-0.5] + below[0.2] + 0.6) / 3,
    ]
    torch.testing.assert_close(energies(alike, 0.4, 2.0), torch.tensor([wanted]))
    without = energies(alike, 0.4, 2.0, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(without, torch.tensor([[0.35, 0.35, -torch.inf]]))


def test_tokens_that_stand_alone_are_protected():
    """By angle: seven tokens within twelve degrees, and three alone."""
    angles = torch.deg2rad(torch.tensor([0.0, 100, 2, 4, 190, 6, 8, 280, 10, 12], dtype=torch.float64))
    tokens = torch.stack([angles.cos(), angles.sin()], dim=1)[None]
    state = random_state(num_tokens=10, prefix=0, batch=1, dim=2, dtype=torch.float64)
    after = merge(POLICIES.build("pitome", until=0), evidence_at(0.0, tokens), state, 3)
    held = slots(after)[0].bincount()
    for alone in (1, 4, 7):
        assert held[slots(after)[0, alone]] == 1


@pytest.mark.parametrize(("depth", "until"), [(0.0, 0), (0.5, 0.5), (11 / 12, 0.5)])
def test_the_most_energetic_merge_in_turns_and_the_margin_falls_with_depth(depth, until):
    state = random_state(num_tokens=15, prefix=1, batch=1, dim=4, dtype=torch.float64)
    keys, r = state.tokens[0, 1:], 4
    unit = keys / keys.norm(dim=1, keepdim=True)
    cosine, margin = (unit @ unit.T).tolist(), 0.9 * (1 - depth)
    energy = [
        sum(x - margin if x >= margin else math.exp(x - margin) - 1 for x in row) / len(row) for row in cosine
    ]
    ranked = sorted(range(14), key=lambda i: -energy[i])[: 2 * r]
    wanted = set(range(14)) - set(ranked[::2])
    after = merge(POLICIES.build("pitome", until=until), evidence_at(depth, state.tokens), state, r)
    slot = slots(after)[0].tolist()
    for giving in ranked[::2]:
        receiving = max(ranked[1::2], key=lambda i: cosine[giving][i])
        assert slot[1 + giving] == slot[1 + receiving]
    assert len({slot[1 + patch] for patch in wanted}) == len(wanted)


@pytest.mark.parametrize("patches", [14, 13])
def test_early_blocks_merge_the_most_similar_of_all_that_are_parted_by_energy(patches):
    state = random_state(num_tokens=patches + 1, prefix=1, batch=1, dim=4, dtype=torch.float64)
    unit = state.tokens[0, 1:] / state.tokens[0, 1:].norm(dim=1, keepdim=True)
    alike = unit @ unit.T
    ranked = energies(alike[None], 0.9, 1.0)[0].argsort(descending=True).tolist()
    best = {a: max(ranked[1::2], key=lambda b, a=a: float(alike[a, b])) for a in ranked[::2]}
    first = sorted(best, key=lambda a: -float(alike[a, best[a]]))[:4]
    after = merge(POLICIES.build("pitome"), evidence_at(0.0, state.tokens), state, 4)
    slot = slots(after)[0].tolist()
    for giving in first:
        assert slot[1 + giving] == slot[1 + best[giving]]
    assert len(set(slot)) == patches + 1 - 4


@pytest.mark.parametrize("options", [{"margin": 1.5}, {"alpha": -1.0}, {"alpha": math.nan}, {"until": 2.0}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigError, match=f"pitome: {next(iter(options))} is"):
        POLICIES.build("pitome", **options)
