"""The softmaxes of the relaxed merge as one operation, against a plain loop over all pairs."""

import pytest
import torch

from pipeline.merging import candidates
from pipeline.merging.candidates import best_candidates
from pipeline.merging.soft import relaxed_top_r
from pipeline.merging.soft_assignment import LEAST, soft_assignment


def plainly(scores, quota, r, tau1, tau2):
    """As the authors publish it, by autograd: `r` softmaxes over all pairs. scores [k, B, Na]."""
    logits = scores / tau1
    share = torch.zeros_like(logits)
    for step in range(r):
        picked = (logits / tau2).transpose(0, 1).flatten(1).softmax(dim=-1).view_as(logits.transpose(0, 1))
        picked = picked.transpose(0, 1)
        if quota is not None:
            picked = picked * (quota > step)[:, None]
        share = share + picked
        logits = logits + torch.log((1 - picked.sum(dim=0)).clamp(min=LEAST))
    return share / share.detach().sum(dim=0).clamp(min=1.0)


def draw(k=3, batch=2, sources=7, spread=0.6):
    return (torch.randn(k, batch, sources, dtype=torch.float64) * spread).requires_grad_()


QUOTA = torch.tensor([2, 6])


@pytest.mark.parametrize("quota", [None, QUOTA], ids=["all steps", "a quota"])
@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("r", [1, 2, 6])
def test_it_is_the_published_loop_with_its_gradient(r, tau, quota):
    """At a temperature of 0.1 some sources are used up, so that both the least and the clip are reached."""
    scores = draw()
    got = soft_assignment(scores, quota, r, tau, tau)
    wanted = plainly(scores, quota, r, tau, tau)
    torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)
    probe = torch.randn_like(got)
    ours, theirs = (torch.autograd.grad((share * probe).sum(), scores)[0] for share in (got, wanted))
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_sources_that_were_used_up_were_among_those_compared():
    scores = draw()
    picked = (scores / 0.01).transpose(0, 1).flatten(1).softmax(dim=-1)
    assert 1 - picked.max() < LEAST
    assert soft_assignment(scores, None, 6, 0.1, 0.1).sum(dim=0).max() > 1 - 1e-12


def test_the_gradient_is_that_of_its_definition():
    """Where no source reaches a sum of 1, whose clip has no gradient on purpose."""
    scores = draw(sources=5)
    assert soft_assignment(scores, None, 3, 1.0, 1.0).sum(dim=0).max() < 1
    assert torch.autograd.gradcheck(lambda s: soft_assignment(s, None, 3, 1.0, 1.0), scores)


@pytest.mark.parametrize("quota", [None, QUOTA])
def test_pytorch_finds_nothing_wrong_in_the_operations(quota):
    torch.library.opcheck(soft_assignment, (draw(), quota, 4, 0.5, 0.5))
    torch.library.opcheck(best_candidates, (draw(5), 3))


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_r():
    def kept(r):
        scores, found = torch.randn(2, 40, 40, requires_grad=True), []

        def note(tensor):
            found.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            relaxed_top_r(scores, r, candidates=3, tau1=0.1, tau2=0.1)
        return sum(found)

    assert 0 < kept(2) == kept(32) < 2 * 40 * 40 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_second_call_gives_the_same_bits(dtype):
    scores = torch.randn(2, 30, 30, dtype=dtype, requires_grad=True)

    def once():
        share = relaxed_top_r(scores, 9, candidates=3, tau1=0.1, tau2=0.1).share
        return share, torch.autograd.grad(share.square().sum(), scores)[0]

    for one, other in zip(once(), once(), strict=True):
        assert torch.equal(one, other) and one.dtype == dtype


@pytest.mark.parametrize(("count", "k"), [(9, 3), (9, 9), (256, 4), (257, 2)])
def test_candidates_are_the_best_in_order(count, k):
    scores = torch.randn(2, 5, count).requires_grad_()
    score, target = best_candidates(scores, k)
    wanted = scores.topk(k, dim=-1)
    assert torch.equal(target.movedim(0, -1), wanted.indices)
    assert torch.equal(score.movedim(0, -1), wanted.values)
    probe = torch.randn_like(score)
    ours = torch.autograd.grad((score * probe).sum(), scores)[0]
    theirs = torch.autograd.grad((wanted.values * probe.movedim(0, -1)).sum(), scores)[0]
    assert torch.equal(ours, theirs)


def test_of_equal_scores_the_first_is_the_better_one():
    """As for the hard merge, of whose pairs the relaxed one gives the gradient."""
    _, target = best_candidates(torch.zeros(1, 2, 5), 3)
    assert target[:, 0, 0].tolist() == [0, 1, 2]
    assert torch.equal(target[0], torch.zeros(1, 2, 5).argmax(dim=-1))


def test_a_score_that_is_no_number_shows():
    scores = torch.randn(1, 4, 6)
    scores[:, :, 2] = torch.nan
    assert relaxed_top_r(scores, 2, candidates=3, tau1=0.1, tau2=0.1).share.isnan().all()


def test_candidates_of_a_batch_are_those_of_each_image(monkeypatch):
    """However many images a CPU computes at once; here two, so that the last one is alone."""
    scores = torch.randn(5, 4, 6)
    monkeypatch.setattr(candidates, "BLOCK", 2 * 4 * 6 + 1)
    score, target = best_candidates(scores, 3)
    for image in range(len(scores)):
        one, place = best_candidates(scores[image : image + 1], 3)
        assert torch.equal(one[:, 0], score[:, image]) and torch.equal(place[:, 0], target[:, image])
    wanted = scores.topk(3, dim=-1)
    assert torch.equal(target.movedim(0, -1), wanted.indices)
    assert best_candidates(scores[:0], 3)[0].shape == (3, 0, 4)
