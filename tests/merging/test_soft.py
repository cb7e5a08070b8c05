"""DTEM's relaxed merge, by hand."""

import math

import pytest
import torch
from tiny import all_edges, dense, source_map
from tiny import merged as merged_by

from pipeline.errors import ConfigError
from pipeline.merging.apply import apply
from pipeline.merging.matching import Split
from pipeline.merging.policies import POLICIES
from pipeline.merging.soft import give_shares, relaxed_top_r, straight_through
from pipeline.merging.unmerge import unmerge_tokens
from pipeline.token_state import TokenState


def relaxed_dense(scores, r, **options):
    return dense(relaxed_top_r(scores, r, **options), scores.shape[-1])


def merge_soft(state, weights, split, r):
    return apply(state, give_shares(state, all_edges(weights), split, r))


@pytest.mark.parametrize(
    ("r", "expected"),
    [(1, [[0.42693, 0.15706], [0.25895, 0.15706]]), (2, [[0.73106, 0.26894], [0.57018, 0.34583]])],
)
def test_weights_at_temperature_one(r, expected):
    scores = torch.tensor([[[1.0, 0.0], [0.5, 0.0]]])
    weights = relaxed_dense(scores, r, candidates=2, tau1=1.0, tau2=1.0)
    torch.testing.assert_close(weights, torch.tensor([expected]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("r", "expected"),
    [(1, [[0.99326, 0, 0], [0.00005, 0.00669, 0]]), (2, [[0.99326, 0, 0], [0.00669, 0.99331, 0]])],
)
def test_weights_at_the_temperatures_of_the_paper(r, expected):
    scores = torch.tensor([[[0.9, 0.1, 0.3], [0.8, 0.85, -0.2]]])
    weights = relaxed_dense(scores, r, candidates=3, tau1=0.1, tau2=0.1)
    torch.testing.assert_close(weights, torch.tensor([expected]), atol=1e-5, rtol=0)


def test_a_source_has_so_many_candidates_only():
    weights = relaxed_dense(torch.randn(2, 6, 5), 3, candidates=2, tau1=1.0, tau2=1.0)
    assert ((weights > 0).sum(dim=-1) == 2).all()


def test_the_row_sums_are_clipped_to_one():
    """Two sources far ahead of the rest, and four merges: the best edges are chosen again and again."""
    scores = torch.zeros(1, 6, 6)
    scores[0, :2, 0] = 9
    weights = relaxed_dense(scores, 4, candidates=3, tau1=1.0, tau2=1.0)
    torch.testing.assert_close(weights.sum(dim=-1)[0, :2], torch.ones(2), atol=1e-3, rtol=0)
    assert (weights.sum(dim=-1) <= 1 + 1e-6).all() and weights.sum() < 4


def test_the_weights_sum_to_r_where_nothing_is_clipped():
    weights = relaxed_dense(torch.rand(4, 10, 10), 4, candidates=3, tau1=1.0, tau2=1.0)
    assert (weights.sum(dim=-1) < 1).all()
    torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.full((4,), 4.0), atol=1e-4, rtol=0)


def by_hand(weights):
    """Sources 8, 4 of size 1, 1; destinations 2, 1 of size 1, 2; a class token in front."""
    tokens = torch.tensor([[[5.0], [8.0], [2.0], [4.0], [1.0]]])
    size = torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0]])
    state = TokenState(tokens, size, (1, 4), 1, 5)
    return merge_soft(state, weights, Split.of_release(5, 1), 1)


def test_a_soft_merge_by_hand():
    """Destinations become 4 (size 1.5) and 1.7778 (2.25); the sources stay as they are, with sizes 0.25 and
    1; largest first."""
    merged = by_hand(torch.tensor([[[0.5, 0.25], [0.0, 0.0]]]))
    torch.testing.assert_close(merged.size, torch.tensor([[1.0, 2.25, 1.5, 1.0, 0.25]]))
    torch.testing.assert_close(merged.tokens[..., 0], torch.tensor([[5.0, 4 / 2.25, 4.0, 4.0, 8.0]]))
    assert merged.num_active == 4
    torch.testing.assert_close(merged.size[:, 1:].sum(), torch.tensor(5.0))
    torch.testing.assert_close((merged.size[..., None] * merged.tokens)[:, 1:].sum(), torch.tensor(16.0))


def test_a_soft_source_map_by_hand():
    """Rows: input positions; columns: slots in the order [class, 2.25, 1.5, 1, 0.25]. Row sums 1; sizes of
    the start count once."""
    merged = by_hand(torch.tensor([[[0.5, 0.25], [0.0, 0.0]]]))
    expected = [[1, 0, 0, 0, 0], [0, 0.25, 0.5, 0, 0.25], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]
    torch.testing.assert_close(source_map(merged), torch.tensor([expected], dtype=torch.float32))


def test_a_row_that_was_used_up_leaves_size_zero_with_a_gradient():
    weights = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    merged = by_hand(weights)
    assert merged.size[0, -1] == 0
    grad = torch.autograd.grad(merged.size[0, -1], weights)[0]
    assert torch.equal(grad, torch.tensor([[[-1.0, -1.0], [0.0, 0.0]]]))


COLD = {"tau1": 0.5, "tau2": 1e-7}
"""Temperature zero for float64: scores that differ by 1e-6 get weights of 1 and e^-20."""


def start(num_tokens, prefix, dtype=torch.float32):
    tokens = torch.randn(2, num_tokens, 4, dtype=dtype)
    return TokenState(
        tokens, torch.ones(2, num_tokens, dtype=dtype), (1, num_tokens - prefix), prefix, num_tokens
    )


def greedy(state, metric, r, first):
    """Hard top r of the best pairs, plainly: sources at first, first + 2, ... -> sizes and tokens of
    [others..., removed]."""
    unit = metric / metric.norm(dim=-1, keepdim=True)
    results = []
    for tokens, size, vectors in zip(state.tokens, state.size.tolist(), unit, strict=True):
        live = range(state.num_prefix, len(tokens))
        sources = [i for i in live if (i - first) % 2 == 0]
        destinations = [i for i in live if i not in sources]
        best = {i: max(destinations, key=lambda j: float(vectors[i] @ vectors[j])) for i in sources}
        removed = sorted(sources, key=lambda i: -float(vectors[i] @ vectors[best[i]]))[:r]
        groups = {
            i: [i] + [j for j in removed if best[j] == i] for i in range(len(tokens)) if i not in removed
        }
        results.append(
            [
                (sum(size[j] for j in group), sum(tokens[j] * size[j] for j in group) / len(group))
                for group in groups.values()
            ]
        )
    return results


@pytest.mark.parametrize(("split", "first"), [("reference", 1), ("parity", 2)])
@pytest.mark.parametrize("r", [1, 3, 5])
def test_at_temperature_zero_the_soft_merge_is_the_greedy_hard_one(split, first, r):
    state = start(17, prefix=1, dtype=torch.float64)
    metric = torch.randn(2, 17, 8, dtype=torch.float64)
    policy = POLICIES.build("dtem", split=split, relaxation="soft", **COLD)
    merged = merged_by(policy, state, metric, r, training=True)
    live = merged.num_active
    assert live == 17 - r
    assert merged.size[:, live:].abs().max() < 1e-6
    for image, groups in enumerate(greedy(state, metric, r, first)):
        got = torch.cat([merged.size[image, :live, None], merged.tokens[image, :live]], dim=1)
        wanted = torch.tensor([(size, *token.tolist()) for size, token in groups], dtype=torch.float64)
        by_value = [rows[rows[:, 1].argsort()] for rows in (got, wanted)]
        torch.testing.assert_close(*by_value, atol=1e-5, rtol=0)
    weights = source_map(merged)
    torch.testing.assert_close(weights, weights.round(), atol=1e-6, rtol=0)
    slots = weights.argmax(dim=2)
    gathered = merged.tokens.gather(1, slots[..., None].expand_as(merged.tokens))
    torch.testing.assert_close(unmerge_tokens(merged.tokens, merged.merges), gathered, atol=1e-5, rtol=0)


@pytest.mark.parametrize("relaxation", ["soft", "straight_through"])
def test_training_in_parity_puts_the_live_tokens_where_inference_has_them(relaxation):
    """At temperature zero, and with straight-through at any: the first n tokens of training are those of
    inference, in order."""
    state, metric = start(17, prefix=1, dtype=torch.float64), torch.randn(2, 17, 8, dtype=torch.float64)
    tau = COLD if relaxation == "soft" else {}
    policy = POLICIES.build("dtem", split="parity", relaxation=relaxation, **tau)
    trained = merged_by(policy, state, metric, 5, training=True)
    hard = TokenState.start(state.tokens, (1, 16), 1)
    inferred = merged_by(policy, hard, metric, 5, training=False)
    torch.testing.assert_close(trained.tokens[:, :12], inferred.tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(trained.size[:, :12], inferred.size, atol=1e-5, rtol=0)
    assert trained.size[:, 12:].abs().max() < 1e-6


def test_straight_through_has_the_values_of_hard_and_the_gradient_of_soft():
    scores = torch.randn(2, 6, 5, requires_grad=True)
    soft = relaxed_top_r(scores, 3, candidates=3, tau1=0.1, tau2=0.1)
    ranked = soft.score[..., 0].argsort(dim=-1, descending=True)
    hard = dense(straight_through(soft, ranked, 3), 5)
    assert torch.equal(hard.round(), hard.detach()) and torch.equal(
        hard.sum(dim=(1, 2)), torch.full((2,), 3.0)
    )
    assert set(hard.unique().tolist()) == {0.0, 1.0} and (hard.sum(dim=2) <= 1).all()
    state, metric, probe = start(13, prefix=1), torch.randn(2, 13, 8), torch.randn(2, 13)
    gradients = []
    for relaxation in ("soft", "straight_through"):
        metric = metric.detach().requires_grad_()
        policy = POLICIES.build("dtem", split="parity", relaxation=relaxation)
        merged = merged_by(policy, state, metric, 3, training=True)
        gradients.append(torch.autograd.grad((merged.size * probe).sum(), metric)[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_unmerge_of_a_soft_merge_has_the_gradient_of_its_definition():
    """In float64, where no row sum passes 1, so that the clips, which the gradient leaves out on purpose, do
    nothing."""
    size = torch.ones(1, 9, dtype=torch.float64)
    tokens = torch.randn(1, 9, 2, dtype=torch.float64)
    split = Split.of_release(9, 1)

    def unmerged(scores):
        state = TokenState(tokens, size, (2, 4), 1, 9)
        weights = relaxed_dense(scores, 2, candidates=3, tau1=1.0, tau2=1.0)
        merged = merge_soft(state, weights, split, 2)
        return unmerge_tokens(state.tokens, merged.merges), weights.sum(dim=-1).max()

    scores = torch.rand(1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert unmerged(scores)[1] < 1
    assert torch.autograd.gradcheck(lambda s: unmerged(s)[0], scores)


@pytest.mark.parametrize(
    "options",
    [
        {"split": "odd"},
        {"relaxation": "gumbel"},
        {"split": "reference", "relaxation": "straight_through"},
        {"split": "reference", "partition": "nearest"},
        {"candidates": 0},
        {"tau1": 0},
        {"tau1": math.nan},
        {"tau2": -1},
    ],
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ConfigError, match="dtem"):
        POLICIES.build("dtem", **options)
