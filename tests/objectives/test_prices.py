"""The price of a merge: what the formula says is what a small step towards the merge does to the
predictions."""

from dataclasses import replace

import pytest
import torch
from tiny import generator
from torch.nn import functional as F

from pipeline.merging.matching import Split, match, similarity
from pipeline.objectives.merge_cost import drawn_projection
from pipeline.objectives.prices import cost_with_slope, expected_cost, pair_costs
from pipeline.token_state import MergePoint, TokenState

NUM_TOKENS, DIM, CLASSES = 7, 5, 4
SPLIT = Split.by_parity(NUM_TOKENS, 1)


@pytest.fixture
def setting():
    """Tokens of different sizes and a smooth model of them: logits [B, K] of tokens [B, M, C], in float64."""
    draws = generator(0)
    tokens = torch.randn(2, NUM_TOKENS, DIM, generator=draws, dtype=torch.float64)
    size = torch.randint(1, 4, (2, NUM_TOKENS), generator=draws).double()
    mix = torch.randn(CLASSES, NUM_TOKENS, DIM, generator=draws, dtype=torch.float64)
    return tokens, size, lambda x: torch.einsum("knc,bnc->bk", mix, torch.tanh(x))


def towards_merge(tokens, size, a, b, share):
    """Tokens a and b moved by `share` of the way to their size-weighted mean."""
    mean = (size[:, a, None] * tokens[:, a] + size[:, b, None] * tokens[:, b]) / (size[:, a] + size[:, b])[
        :, None
    ]
    moved = tokens.clone()
    moved[:, a] += share * (mean - tokens[:, a])
    moved[:, b] += share * (mean - tokens[:, b])
    return moved


def test_cost_is_the_divergence_of_a_small_step_towards_the_merge(setting):
    tokens, size, model = setting
    tokens.requires_grad_()
    log_p = F.log_softmax(model(tokens), dim=-1)
    expected = torch.zeros(2, 3, 3, dtype=torch.float64)
    for label in range(CLASSES):
        (grad,) = torch.autograd.grad(log_p[:, label].sum(), tokens, retain_graph=True)
        expected += log_p[:, label].exp().detach()[:, None, None] * pair_costs(
            tokens.detach(), size, grad, SPLIT
        )
    share = 1e-3
    for i, a in enumerate(range(NUM_TOKENS)[SPLIT.sources]):
        for j, b in enumerate(range(NUM_TOKENS)[SPLIT.destinations]):
            moved = F.log_softmax(model(towards_merge(tokens.detach(), size, a, b, share)), dim=-1)
            divergence = (log_p.exp() * (log_p - moved)).sum(dim=-1).detach() / share**2
            torch.testing.assert_close(expected[:, i, j], divergence, rtol=2e-2, atol=1e-4)


def test_equal_tokens_merge_for_nothing(setting):
    tokens, size, _ = setting
    grad = torch.randn_like(tokens)
    same = tokens[:, :1].expand_as(tokens)
    assert pair_costs(same, size.float(), grad, SPLIT).abs().max() < 1e-10


@pytest.mark.parametrize("shared", [0.0, 100.0, 3000.0])
def test_what_all_tokens_share_does_not_blur_the_price_of_their_difference(setting, shared):
    """ViTs have channels that are thousands in every token."""
    tokens, size, _ = setting
    grad = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = (tokens + shared * torch.eye(DIM, dtype=torch.float64)[0]).float()
    costs, x, s = pair_costs(tokens, size.float(), grad.float(), SPLIT), tokens.double(), size
    for i, a in enumerate(range(NUM_TOKENS)[SPLIT.sources]):
        for j, b in enumerate(range(NUM_TOKENS)[SPLIT.destinations]):
            moved = (s[:, b, None] * grad[:, a] - s[:, a, None] * grad[:, b]) * (x[:, b] - x[:, a])
            exact = (moved.sum(-1) / (s[:, a] + s[:, b])).square() / 2
            assert (costs[:, i, j] - exact).abs().max() <= 1e-5 * costs.mean()


def point_of(metric, tokens):
    state = TokenState.start(tokens, (2, 3), num_prefix=1)
    return MergePoint(state, metric, torch.zeros_like(tokens))


SHARES = pytest.mark.parametrize("share", [None, 0.0, 0.2, 0.5])


@SHARES
def test_expected_cost_falls_along_its_gradient_and_is_one_for_an_indifferent_metric(setting, share):
    tokens = setting[0].float()
    grad = torch.randn(tokens.shape, generator=generator(1))
    indifferent = expected_cost(point_of(torch.ones(2, NUM_TOKENS, 3), tokens), grad, 0.05, share)
    torch.testing.assert_close(indifferent, torch.tensor(1.0))
    metric = torch.randn(2, NUM_TOKENS, 3, generator=generator(2)).requires_grad_()
    before = expected_cost(point_of(metric, tokens), grad, 0.5, share)
    (slope,) = torch.autograd.grad(before, metric)
    assert expected_cost(point_of(metric - 0.1 * slope, tokens), grad, 0.5, share) < before


@pytest.mark.parametrize("r", [1, 2, 3])
def test_at_a_low_temperature_the_price_is_that_of_the_hard_merge(setting, r):
    """In float64, where a temperature of 1e-7 is above the rounding of a score and below the difference of
    any two."""
    tokens, size, _ = setting
    state = replace(point_of(None, tokens).state, size=size)
    grad, metric = (
        torch.randn(2, NUM_TOKENS, n, generator=generator(n), dtype=torch.float64) for n in (DIM, 3)
    )
    costs = pair_costs(tokens, size, grad, SPLIT)
    merge = match(state, similarity(metric, SPLIT), SPLIT, r)
    merged = (merge.source % NUM_TOKENS - SPLIT.sources.start) // 2
    target = merge.slot % merge.num_active - (merge.num_active - SPLIT.counts[1])
    expected = torch.stack([costs[i, merged[i], target[i]].mean() for i in range(2)]).mean() / costs.mean()
    priced = expected_cost(
        MergePoint(state, metric, torch.zeros_like(tokens)), grad, 1e-7, r / (NUM_TOKENS - 1)
    )
    torch.testing.assert_close(priced, expected, rtol=1e-4, atol=1e-6)


def test_positions_of_later_blocks_are_further_channels(setting):
    tokens, rope = setting[0], torch.randn(2, NUM_TOKENS, 2, 3, generator=generator(4), dtype=torch.float64)
    grad, of_rope = (torch.randn(x.shape, generator=generator(x.ndim)).double() for x in (tokens, rope))
    metric = torch.randn(2, NUM_TOKENS, 3, generator=generator(2), dtype=torch.float64)
    apart = expected_cost(point_of(metric, tokens), grad, 0.1, positions=[(rope, of_rope)])
    both = (torch.cat([x, y.flatten(2)], dim=-1) for x, y in ((tokens, rope), (grad, of_rope)))
    joined = next(both)
    torch.testing.assert_close(apart, expected_cost(point_of(metric, joined), next(both), 0.1))


@SHARES
def test_a_gradient_that_is_taken_at_once_is_that_of_the_cost(setting, share):
    tokens = setting[0]
    grad, metric = (
        torch.randn(2, NUM_TOKENS, n, generator=generator(n), dtype=torch.float64) for n in (DIM, 3)
    )
    found = []
    for price in (expected_cost, cost_with_slope):
        own = metric.clone().requires_grad_()
        cost = price(point_of(2 * own, tokens), grad, 0.3, share)
        found.append((cost.detach(), *torch.autograd.grad(3 * cost, own)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)
    assert found[0][1].abs().max() > 0


def test_of_a_price_nothing_but_its_gradient_in_the_metric_waits_for_the_backward_pass(setting):
    metric = torch.randn(2, NUM_TOKENS, 3, requires_grad=True)
    tokens = setting[0].float()
    cost = cost_with_slope(point_of(metric, tokens), tokens, 0.3)
    node = cost.grad_fn
    assert [saved.shape for saved in node.saved_tensors] == [metric.shape]
    leaves = [after for after, _ in node.next_functions if after is not None]
    assert [leaf.variable is metric for leaf in leaves] == [True]


def test_no_gradient_reaches_the_tokens(setting):
    tokens = setting[0].float().requires_grad_()
    metric = torch.randn(2, NUM_TOKENS, 3, requires_grad=True)
    cost = expected_cost(point_of(metric, tokens), torch.randn(tokens.shape), 0.05)
    assert torch.autograd.grad(cost, tokens, allow_unused=True) == (None,)


def test_a_block_whose_tokens_no_longer_matter_costs_nothing(setting):
    tokens = setting[0].float()
    metric = torch.randn(2, NUM_TOKENS, 3, requires_grad=True)
    cost = expected_cost(point_of(metric, tokens), torch.zeros_like(tokens), 0.05)
    cost.backward()
    assert cost == 0 and torch.isfinite(metric.grad).all()


def test_of_features_the_price_is_half_their_squared_move():
    """By the mean over drawn noise, for features that are linear in the tokens, where this is no
    approximation."""
    draws = generator(3)
    tokens = torch.randn(1, NUM_TOKENS, DIM, generator=draws, dtype=torch.float64, requires_grad=True)
    size = torch.randint(1, 4, (1, NUM_TOKENS), generator=draws).double()
    mix = torch.randn(6, NUM_TOKENS, DIM, generator=draws, dtype=torch.float64)
    features = torch.einsum("knc,bnc->bk", mix, tokens)
    torch.manual_seed(0)
    found = torch.zeros(1, 3, 3, dtype=torch.float64)
    for _ in range(1500):
        (grad,) = torch.autograd.grad(drawn_projection(features), tokens, retain_graph=True)
        found += pair_costs(tokens.detach(), size, grad, SPLIT) / 1500
    for i, a in enumerate(range(NUM_TOKENS)[SPLIT.sources]):
        for j, b in enumerate(range(NUM_TOKENS)[SPLIT.destinations]):
            moved = torch.einsum("knc,bnc->bk", mix, towards_merge(tokens.detach(), size, a, b, 1))
            half = (moved - features.detach()).square().sum() / 2
            # the mean of 1500 squares of normal numbers: a deviation of 3.7 %
            torch.testing.assert_close(found[0, i, j], half, rtol=0.25, atol=1e-9)
