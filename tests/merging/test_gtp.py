"""GTP-ViT: the graph, and what it adds to the neighbours of a pruned patch, by hand."""

import math
from itertools import product

import pytest
import torch
from tiny import images, merged, random_state, tiny_vit

from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.gtp import GRAPH, normalised, semantic_neighbours, spatial_neighbours
from pipeline.merging.policy import merge
from pipeline.merging.unmerge import slots
from pipeline.token_state import TokenState

CPU = torch.device("cpu")


def weights_of(grid):
    return normalised(spatial_neighbours(grid, CPU), torch.float32)[0]


def evidence_against(tokens, unwanted):
    """Evidence in which no token attends to one of them."""
    keys = torch.ones(*tokens.shape[:2], 1)
    keys[:, unwanted] = -9.0
    return Evidence(tokens, torch.ones_like(keys)[:, None], keys[:, None], scale=1.0)


def test_the_last_patch_of_four_goes_to_the_others():
    """In a grid of 2x2 each patch is a neighbour of the three others."""
    weights = weights_of((2, 2))
    torch.testing.assert_close(weights, (1 - torch.eye(4)) / 3)
    tokens = torch.randn(1, 4, 5)
    policy, state = POLICIES.build("gtp", graph="spatial", alpha=0.3), TokenState.start(tokens, (2, 2), 0)
    after = merge(policy, evidence_against(tokens, 3), policy.start(state), 1)
    torch.testing.assert_close(after.tokens, tokens[:, :3] + 0.1 * tokens[:, 3:])
    torch.testing.assert_close(after.size, torch.full((1, 3), 1.1))
    torch.testing.assert_close(after.carried[GRAPH].values[0], weights[:3, :3], msg="it is not made anew")


def test_weights_in_a_grid_of_nine():
    """The corner has 3 neighbours, an edge 5, the centre 8."""
    near, weights = spatial_neighbours((3, 3), CPU)[0], weights_of((3, 3))
    assert near.sum(dim=-1).tolist() == [3, 5, 3, 5, 8, 5, 3, 5, 3]
    assert weights[0, 4].item() == pytest.approx(1 / math.sqrt(24)) and weights[0, 8] == 0
    assert weights[4, 1].item() == pytest.approx(1 / math.sqrt(40))


def test_neighbours_in_a_grid_touch():
    height, width = 3, 5
    near = spatial_neighbours((height, width), CPU)[0]
    places = list(product(range(height), range(width)))
    for (i, (row, column)), (j, (other, beside)) in product(enumerate(places), repeat=2):
        assert near[i, j].item() == (i != j and abs(row - other) <= 1 and abs(column - beside) <= 1)


def test_semantic_neighbours_are_the_most_similar_ones():
    """Of each patch, so that the graph is not symmetric."""
    patches = torch.randn(2, 12, 6)
    near = semantic_neighbours(patches, 3)
    assert (near.sum(dim=-1) == 3).all() and not near.diagonal(dim1=1, dim2=2).any()
    scores = torch.cosine_similarity(patches[:, :, None], patches[:, None], dim=-1)
    scores.diagonal(dim1=1, dim2=2).fill_(-2)
    for row, own in zip(scores.flatten(0, 1), near.flatten(0, 1), strict=True):
        assert row[own].min() > row[~own].max()
    assert not torch.equal(near, near.mT)
    assert semantic_neighbours(patches[:, :2], 8).sum() == 4, "no more than there are"


def test_a_mixed_graph_has_the_edges_of_both():
    state = TokenState.start(torch.randn(2, 17, 6), (4, 4), 1)
    graphs = {
        kind: POLICIES.build("gtp", graph=kind, neighbours=3).start(state).carried[GRAPH].values > 0
        for kind in ("spatial", "semantic", "mixed")
    }
    assert torch.equal(graphs["mixed"], graphs["spatial"] | graphs["semantic"])
    assert not torch.equal(graphs["mixed"], graphs["spatial"])
    for graph in graphs.values():
        assert not graph[:, 0].any() and not graph[:, :, 0].any(), "the prefix has no neighbours"
        assert not graph.diagonal(dim1=1, dim2=2).any()


def test_without_alpha_it_prunes_by_its_importance():
    state = random_state(33)
    after = merged(POLICIES.build("gtp", alpha=0.0), state, state.tokens, 7)
    evidence = Evidence(state.tokens, state.tokens[:, None], state.tokens[:, None], scale=1.0)
    importance = (evidence.own_attention * evidence.received)[:, 0, 1:]
    least = importance.argsort(dim=-1)[:, :7] + 1
    stays = torch.ones(2, 33, dtype=torch.bool).scatter(1, least, False)
    assert torch.equal(after.tokens.flatten(0, 1), state.tokens[stays])
    assert torch.equal(after.size.flatten(), state.size[stays])


def test_a_pruned_patch_is_read_from_its_closest_neighbour():
    """That of the largest weight; of those that are as close, the most alike; without one, the most alike."""
    tokens = torch.randn(1, 16, 5)
    policy, state = POLICIES.build("gtp", graph="spatial"), TokenState.start(tokens, (4, 4), 0)
    evidence = evidence_against(tokens, [0, 1, 4, 5])
    after = merge(policy, evidence, policy.start(state), 4)
    weights, slot = weights_of((4, 4)), slots(after)[0]
    kept = [i for i in range(16) if i not in (0, 1, 4, 5)]
    for gone in (1, 4, 5):
        among = weights[kept][:, gone]
        assert among[slot[gone]] == among.max() > 0
    assert weights[kept][:, 0].max() == 0 and 0 <= slot[0] < 12


def test_images_of_a_batch_lose_patches_of_their_own_and_show_no_graph():
    model = tiny_vit("gtp", reduction=[9, 0, 7]).eval()
    with torch.no_grad():
        output = model(images(), taps=(0, 1))
    assert [state.tokens.shape[1] for state in (*output.taps, output.final)] == [56, 56, 49]
    first = output.final.merges[0].source % 65
    assert not torch.equal(first[0].sort().values, first[1].sort().values)
    assert not any(state.carried for state in (output.final, *output.taps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graph": "temporal"}, "gtp: graph is 'temporal'; give one of spatial, semantic, mixed"),
        ({"alpha": -0.1}, "gtp: alpha is -0.1; give a number of 0 or more"),
        ({"alpha": math.nan}, "gtp: alpha is nan; give a number of 0 or more"),
        ({"neighbours": 0}, "gtp: neighbours is 0; give a whole number above 0"),
        ({"neighbours": 2.5}, "neighbours is 2.5; give a value of type int"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        POLICIES.build("gtp", **options)
