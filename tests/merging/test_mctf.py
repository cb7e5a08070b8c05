"""MCTF by hand: its scores, its matching in two passes, and the one merge that both become."""

import pytest
import torch
from tiny import MCTF_BEHIND, evidence_of, generator, merged, random_state

from pipeline.errors import ConfigError
from pipeline.merging.apply import apply
from pipeline.merging.evidence import Evidence
from pipeline.merging.matching import Split, match_both_ways, match_by, parity_split
from pipeline.merging.policies import POLICIES
from pipeline.merging.policy import merge
from pipeline.merging.unmerge import slots, unmerge_tokens
from pipeline.token_state import TokenState


def build(**options):
    return POLICIES.build("mctf", **options)


def state_of(tokens, size=None, prefix=0):
    """In float64, one image. tokens [M, C], size [M]."""
    tokens = torch.tensor(tokens, dtype=torch.float64)[None]
    size = torch.ones(tokens.shape[1]) if size is None else torch.tensor(size)
    return TokenState(tokens, size.double()[None], (1, tokens.shape[1] - prefix), prefix, tokens.shape[1])


def members(state):
    """The groups of the first image's positions, in the order of slots."""
    place = slots(state)[0].tolist()
    return [[i for i, slot in enumerate(place) if slot == wanted] for wanted in sorted(set(place))]


@pytest.mark.parametrize("r", [1, 4, 7])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_without_its_criteria_and_one_way_it_is_tome_of_the_tokens(r, prefix):
    state = random_state(17, prefix, dtype=torch.float64, dim=7)
    policy = build(t_attention=None, t_size=None, both_ways=False, **MCTF_BEHIND)
    ours = policy.choose(evidence_of(state.tokens), state, r, relaxed=False)
    tome = match_by(state.tokens, state, r)
    for name in ("keep", "source", "slot"):
        assert torch.equal(getattr(ours, name), getattr(tome, name))
    assert ours.weight is None and not policy.ahead


@pytest.mark.parametrize(
    ("tokens", "received", "size", "expected"),
    [
        ([[1, 0], [0, 1], [1, 0]], [1, 1, 1], [1, 1, 1], 0.5),
        ([[1, 0], [1, 0], [1, 0]], [2, 2, 1], [1, 1, 1], 0.25 ** (1 / 20)),
        ([[1, 0], [1, 0], [1, 0]], [1, 1, 1], [2, 2, 1], 0.25 ** (1 / 40)),
        ([[1, 0], [0, 1], [1, 0]], [6, 3, 1.5], [4, 3, 1], 0.5 * 8 ** (-1 / 20) * 12 ** (-1 / 40)),
        ([[1, 0], [-1, 0], [1, 0]], [1, 1, 1], [1, 1, 1], 0.0),
    ],
)
def test_scores_by_hand(tokens, received, size, expected):
    """The third token takes no part in the pair; of all tokens it is the least."""
    state = state_of(tokens, size)
    received = torch.tensor([received], dtype=torch.float64)
    found = build().scores(state, received, Split(slice(0, 1, 2), slice(1, 2, 2)))
    torch.testing.assert_close(found, torch.tensor([[[expected]]], dtype=torch.float64))
    assert 0.25 ** (1 / 20) == pytest.approx(0.933, abs=5e-4)


def test_padding_is_no_part_of_the_scores():
    split, found = Split(slice(0, 2, 2), slice(1, 2, 2)), []
    for last in (0.0, 1.0):
        state = state_of([[1, 0], [1, 1], [1, 0]], [2, 1, last])
        received = torch.tensor([[0.5, 0.25, last]], dtype=torch.float64)
        found.append(build().scores(state, received, split))
    torch.testing.assert_close(*found)


def test_of_equal_pairs_the_largest_is_chosen_last():
    tokens = torch.eye(3).repeat_interleave(2, dim=0).tolist()
    state = state_of(tokens, [1, 1, 1, 4, 1, 1])
    policy = build(both_ways=False, t_attention=None)
    shown = evidence_of(state.tokens)
    after = merge(policy, shown, state, 2, relaxed=False)
    assert members(after) == [[2], [0, 1], [3], [4, 5]]
    assert members(merge(policy, shown, state, 3, relaxed=False)) == [[0, 1], [2, 3], [4, 5]]


def test_informative_tokens_are_chosen_last():
    """Of pairs that are alike, that which receives least attention comes first."""
    tokens = torch.eye(3).repeat_interleave(2, dim=0)[None].double()
    keys = torch.tensor([2.0, 2.0, 0.0, 0.0, 1.0, 1.0]).view(1, 1, 6, 1).double()
    shown = Evidence(tokens, torch.ones_like(keys), keys, scale=1.0)
    state = state_of(tokens[0].tolist())
    assert members(merge(build(both_ways=False), shown, state, 1)) == [[0], [4], [1], [2, 3], [5]]
    assert members(merge(build(both_ways=False), shown, state, 2)) == [[0], [1], [2, 3], [4, 5]]


@pytest.mark.parametrize(("r", "one_way", "other_way"), [(1, 0, 1), (2, 1, 1), (5, 2, 3), (8, 4, 4)])
def test_half_of_the_merges_go_each_way(r, one_way, other_way):
    state = random_state(17, dtype=torch.float64)
    split, scores = parity_split(state), torch.rand(2, 8, 8, generator=generator(1)).double()
    merge_of_both = match_both_ways(state, scores, split, r)
    for source in merge_of_both.source % 17:
        assert sum(int(i) in range(17)[split.sources] for i in source) == one_way
        assert sum(int(i) in range(17)[split.destinations] for i in source) == other_way


CHAIN = torch.tensor([[[0.1, 0.9, 0.2], [0.3, 0.8, 0.1], [0.5, 0.0, 0.1]]]).double()
"""Sources 0, 2, 4; destinations 1, 3, 5. Of two merges 0 goes to 3; then 3 to 2, and takes along what it
received."""


def test_what_was_received_goes_on_with_the_one_that_received_it():
    state = state_of([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]], [1, 2, 3, 4, 5, 6])
    assignment = match_both_ways(state, CHAIN, parity_split(state), 2)
    after = apply(state, assignment)
    assert members(after) == [[0, 2, 3], [4], [1], [5]]
    assert after.size.tolist() == [[8, 5, 2, 6]]
    torch.testing.assert_close(after.tokens[0, 0, 0].item(), (1 * 1 + 3 * 3 + 4 * 4) / 8)
    back = unmerge_tokens(after.tokens, after.merges)[0, :, 0]
    assert back[0] == back[2] == back[3] == after.tokens[0, 0, 0] and back[[1, 4, 5]].tolist() == [2, 5, 6]


def in_two_passes(state, scores, split, r, weight):
    """The groups by the definition, one pass after the other, of one image."""
    every = list(range(state.num_active))
    sources, destinations = every[split.sources], every[split.destinations]
    groups = {i: [i] for i in range(state.num_active)}
    best = scores.max(dim=-1)
    for a in best.values.argsort(descending=True)[: r // 2].tolist():
        groups[destinations[int(best.indices[a])]] += groups.pop(sources[a])
    left = [a for a, source in enumerate(sources) if source in groups]
    best = scores[left].max(dim=0)
    ranked = best.values.argsort(descending=True).tolist()
    for b in ranked[: r - r // 2]:
        groups[sources[left[int(best.indices[b])]]] += groups.pop(destinations[b])
    order = [*range(state.num_prefix), *sources, *(destinations[b] for b in ranked)]
    kept = [groups[i] for i in order if i in groups]
    tokens = [
        sum(weight[i] * state.tokens[0, i] for i in group) / sum(weight[i] for i in group) for group in kept
    ]
    return [sorted(group) for group in kept], torch.stack(tokens)


@pytest.mark.parametrize("pooling", ["attention", "size"])
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("r", [1, 2, 5, 7])
def test_both_passes_are_one_merge(r, prefix, pooling):
    state = random_state(17, prefix, batch=1, dtype=torch.float64, dim=7)
    policy, shown, split = build(pooling=pooling), evidence_of(state.tokens), parity_split(state)
    received = shown.received.mean(dim=1)
    weight = (received * state.size if pooling == "attention" else state.size)[0]
    groups, tokens = in_two_passes(state, policy.scores(state, received, split)[0], split, r, weight)
    after = merge(policy, shown, state, r)
    assert members(after) == groups
    torch.testing.assert_close(after.tokens[0], tokens)
    back = unmerge_tokens(after.tokens, after.merges)[0]
    for group, token in zip(groups, after.tokens[0], strict=True):
        assert torch.equal(back[group], token.expand(len(group), -1))
    total = torch.tensor([state.size[0, group].sum() for group in groups])
    torch.testing.assert_close(after.size[0], total.double())


@pytest.mark.parametrize(("patches", "padding", "r"), [(9, 3, 5), (8, 1, 4), (3, 1, 2), (4, 5, 4), (2, 6, 4)])
@pytest.mark.parametrize("prefix", [0, 1])
def test_an_image_with_padding_merges_as_without(patches, padding, r, prefix):
    """Also where the sources have less padding than would make up for what they keep."""
    tokens = torch.randn(1, prefix + patches + padding, 5, generator=generator(2), dtype=torch.float64)
    size = torch.ones(1, prefix + patches + padding).double()
    size[:, prefix + patches :] = 0
    live, own = prefix + patches, min(r, patches // 2)
    scores = torch.rand(1, tokens.shape[1], tokens.shape[1], generator=generator(3)).double()
    found = []
    for count, quota in ((tokens.shape[1], torch.tensor([own])), (live, None)):
        state = TokenState(
            tokens[:, :count], size[:, :count], (1, count - prefix), prefix, count, quota=quota
        )
        split = parity_split(state)
        pairs = scores[:, split.sources, split.destinations]
        found.append(apply(state, match_both_ways(state, pairs, split, r if quota is not None else own)))
    padded, alone = found
    torch.testing.assert_close(padded.tokens[:, : live - own], alone.tokens)
    assert padded.size.shape[1] == prefix + patches + padding - r
    assert torch.equal(padded.size[:, : live - own], alone.size) and not padded.size[:, live - own :].any()
    assert torch.equal(slots(padded)[:, :live], slots(alone))


def test_nothing_of_the_choice_has_a_gradient():
    state = random_state(17)
    tokens = state.tokens.requires_grad_()
    keys = torch.randn(2, 1, 17, 5, requires_grad=True)
    after = merge(build(), Evidence(tokens, keys, keys, scale=1.0), state, 5)
    assert torch.autograd.grad(after.tokens.square().sum(), keys, allow_unused=True) == (None,)
    (weight,) = (assignment.weight for assignment in after.merges)
    assert not weight.requires_grad and after.tokens.requires_grad


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"t_size": 0}, "t_size is 0; give a number above 0, or None"),
        ({"t_attention": "20"}, "t_attention is '20'"),
        ({"t_similarity": float("nan")}, "t_similarity is nan"),
        ({"pooling": "max"}, "pooling is 'max'; give one of attention, size"),
        ({"both_ways": 1}, "both_ways is 1; give a value of type bool"),
        ({"tau": 1}, "tau"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        build(**options)


def test_an_infinite_temperature_is_none():
    state = random_state(17)
    one, other = (merged(build(t_size=value), state, state.tokens, 5) for value in (None, float("inf")))
    assert torch.equal(one.tokens, other.tokens)
