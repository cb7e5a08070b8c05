"""Rates as distributions: the forward pass is the hard merge, and gradients reach every rate."""

import pytest
import torch
from tiny import images, tiny_vit

from pipeline.backbone.policies_of_blocks import merging_by
from pipeline.merging.apply import apply
from pipeline.merging.learned_rate import BlockRates, LearnedRate, Rate
from pipeline.merging.policies import POLICIES
from pipeline.merging.schedule import mergeable
from pipeline.token_state import Assignment, TokenState

CPU = torch.device("cpu")
RANKS = [name for name in POLICIES.names() if POLICIES.build(name).ranks]
SCHEDULE, PRUNED = (11, 7, 4), (5, 4, 2)


def surely(number: int) -> Rate:
    """A rate of exactly this number."""
    rate = Rate(number, 64, CPU)
    rate.logits.data.fill_(-1e3)
    rate.logits.data[number] = 0.0
    return rate


def test_a_rate_is_the_mean_of_its_distribution():
    rate = Rate(5.0, 64, CPU)
    shares = rate.logits[:21].softmax(dim=0)
    assert torch.allclose(rate.mean(20), (shares * torch.arange(21)).sum())
    more = rate.more_than(20)
    assert more.shape == (20,) and (more.diff() <= 0).all()
    torch.testing.assert_close(more[3], shares[4:].sum())
    assert surely(7).mean(20) == 7 and surely(7).more_than(20).tolist() == [1.0] * 7 + [0.0] * 13


def test_what_stays_is_rounded_up_with_the_gradient_of_the_mean():
    rates = BlockRates(Rate(5.0, 64, CPU))
    mean, removed = rates.mean(20), rates.removed(20)
    torch.testing.assert_close(removed, mean.floor())
    assert removed < mean
    grads = [torch.autograd.grad(number, rates.logits)[0] for number in (mean, removed)]
    assert torch.equal(*grads) and grads[0].any()
    assert BlockRates(surely(0)).removed(20) == 1, "or no gradient of a loss would reach it"
    assert BlockRates(surely(0)).removed(0) == 0


def test_the_larger_of_two_rates_says_how_many_leave():
    rates = BlockRates(surely(3), surely(5))
    assert rates.removed(9) == 5 and rates.leaves(9).tolist() == [1.0] * 5 + [0.0] * 4
    assert rates.arrives(9).tolist() == [0.0] * 5 + [1.0] * 4
    assert BlockRates(surely(3)).arrives(9) is None


def model_with_rates(policy, rates):
    options = {"pruned": [p / r for p, r in zip(PRUNED, SCHEDULE, strict=True)]}
    model = tiny_vit(policy, **(options if policy == "diffrate" else {})).eval().double()
    return model, [LearnedRate(model.policy, own) for own in rates]


@pytest.mark.parametrize("policy", RANKS)
def test_the_relaxed_pass_is_the_hard_merge(policy):
    two = POLICIES.build(policy).prunes_first
    numbers = zip(SCHEDULE, PRUNED, strict=True)
    rates = [BlockRates(surely(r), surely(p) if two else None) for r, p in numbers]
    model, policies = model_with_rates(policy, rates)
    with torch.no_grad():
        hard = model(images().double(), reduction=list(SCHEDULE)).final
        with merging_by(model, policies):
            relaxed = model(images().double(), reduction=list(SCHEDULE), relaxed=True).final
    live = hard.num_active
    assert relaxed.num_active == live and relaxed.tokens.shape[1] == 65
    torch.testing.assert_close(relaxed.tokens[:, :live], hard.tokens, atol=1e-9, rtol=0)
    torch.testing.assert_close(relaxed.size[:, :live], hard.size, atol=1e-9, rtol=0)
    assert not relaxed.size[:, live:].any()


@pytest.mark.parametrize("policy", RANKS)
def test_a_gradient_reaches_the_rates_of_each_block(policy):
    two = POLICIES.build(policy).prunes_first
    rates = [BlockRates(Rate(r, 64, CPU), Rate(r / 2, 64, CPU) if two else None) for r in SCHEDULE]
    model, policies = model_with_rates(policy, rates)
    with merging_by(model, policies):
        tokens = model(images().double(), reduction=list(SCHEDULE), relaxed=True).final.tokens[:, 0]
    (tokens * torch.linspace(-1, 1, 48).double()).sum().backward()
    # the last block's merges reach no class token
    grads = [logits.grad for own in rates[:-1] for logits in own.logits]
    assert all(grad is not None and grad.isfinite().all() and grad.any() for grad in grads)


def test_a_share_of_which_a_part_arrives():
    state = TokenState.start(torch.tensor([[[0.0], [4.0]]]), (1, 2), 0)
    share, part = (torch.tensor([[value]], requires_grad=True) for value in (0.5, 0.25))
    rows = torch.tensor([[0, 1]])
    after = apply(state, Assignment(rows, rows[:, :1], rows[:, 1:], 2, 1, share=share, part=part))
    torch.testing.assert_close(after.size, torch.tensor([[0.5, 1.125]]))
    torch.testing.assert_close(after.tokens[0, :, 0], torch.tensor([0.0, 4 / 1.125]))
    after.size[0, 1].backward()
    assert (share.grad, part.grad) == (0.25, 0.5)


@pytest.mark.parametrize("policy", RANKS)
def test_what_leaves_with_less_leaves_with_more(policy):
    """The first sources of a larger merge are those of a smaller one, in their order."""
    sources = []
    for r in (5, mergeable(65, 1)):
        model = tiny_vit(policy, reduction=[r, 0, 0]).eval().double()
        with torch.no_grad():
            sources.append(model(images().double()).final.merges[0].source)
    assert torch.equal(sources[0], sources[1][:, :5])
