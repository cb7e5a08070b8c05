"""The backbone against an independent, plain writing of DTEM's release and of ToMe (oracle.py).

Which tokens merge is a chain of choices over blocks, and a rounding may turn any of them into another one. So
whole models are compared in float64, where no two choices are as near as a rounding. Float32 is compared
block by block, from states in common, on images whose choices are clear.
"""

import copy
from dataclasses import replace

import pytest
import torch
from oracle import (
    Margin,
    eval_block,
    eval_forward,
    move,
    release_scores,
    slots,
    soft_weights,
    train_block,
    train_forward,
)
from tiny import IMG, PREFIXES, SEED, SIZES, all_edges, dense, generator, images, tiny_vit
from torch import nn

from pipeline.backbone.attention import Place
from pipeline.backbone.build import create_vit
from pipeline.backbone.weights.load import load_weights
from pipeline.merging.apply import apply
from pipeline.merging.matching import Split
from pipeline.merging.soft import give_shares, relaxed_top_r
from pipeline.merging.unmerge import slots as slots_of

DEEP = {"depth": 12, "patch_size": 16}
CLEAR = 1e-5
"""Of a score: some tens of the rounding of a float32 score, so that every kernel chooses alike."""
SHARP = 1e-4
"""Of a weight in [0, 1]: a hundred times the rounding of a score, by which temperatures of 0.1 and 0.1
multiply it."""


def pair(variant, prefix="class token", img_size=IMG, **sizes):
    """Our backbone, timm's model with the same weights, and the metric layers of both, in float64.

    The weights are large enough that tokens differ.
    """
    model = (
        tiny_vit(variant, prefix=prefix, img_size=img_size, timm_options=sizes).double().requires_grad_(False)
    )
    name, timm_options = PREFIXES[prefix]
    torch.manual_seed(SEED + 1)
    vit = create_vit(name, img_size=img_size, timm_options=SIZES | timm_options | sizes).double()
    vit.requires_grad_(False)
    draws = generator(2)
    for parameter in vit.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.05)
    load_weights(model, vit.state_dict())
    metrics = None
    if model.blocks[0].metric is not None:
        metrics = [block.metric for block in model.blocks]
        for metric in metrics:
            metric.requires_grad_()
            nn.init.normal_(metric.weight, std=0.2)
            nn.init.normal_(metric.bias, std=0.2)
    return model, vit, metrics


def pair_with_close_scores(sizes, img_size):
    """With scores so close together that few sources are used up or left whole.

    Two live sizes then differ by 1e-7 or more, or not at all.
    """
    model, vit, metrics = pair("dtem_reference", img_size=img_size, **sizes)
    for metric in metrics:
        nn.init.normal_(metric.bias, std=4.0)
    return model, vit, metrics


@pytest.mark.parametrize(
    ("sizes", "img_size", "r"),
    [({"depth": 4}, 64, 3), ({"depth": 4}, 64, 8), ({"depth": 4}, 64, 16), (DEEP, 224, 16)],
)
def test_training_forward_and_metric_gradients_are_those_of_the_release(sizes, img_size, r):
    model, vit, metrics = pair_with_close_scores(sizes, img_size)
    batch = images(2, img_size).double()
    state = model.train()(batch, reduction=r).final
    tokens, size, live = train_forward(vit, metrics, batch, r)
    assert state.num_active == live
    torch.testing.assert_close(state.size, size, atol=1e-9, rtol=0)
    torch.testing.assert_close(state.tokens[:, :live], tokens[:, :live], atol=1e-9, rtol=0)
    leaves = [parameter for metric in metrics for parameter in (metric.weight, metric.bias)]
    both = (state.tokens, state.size), (tokens, size)
    got, wanted = (
        torch.stack(list(map(symmetric, *each))) for each in both
    )  # what has left may stand in any order
    torch.testing.assert_close(got, wanted, atol=1e-9, rtol=0)
    probe = torch.randn_like(tokens[:, :live])
    ours = torch.autograd.grad((state.tokens[:, :live] * probe).sum() + got.sum(), leaves)
    theirs = torch.autograd.grad((tokens[:, :live] * probe).sum() + wanted.sum(), leaves)
    for got, wanted in zip(ours, theirs, strict=True):
        assert wanted.norm() > 0
        assert (got - wanted).norm() <= 1e-8 * wanted.norm()


@pytest.mark.parametrize("r", [3, 8, 16, 40])
@pytest.mark.parametrize("variant", ["dtem_reference", "dtem_soft", "dtem_straight_through"])
def test_inference_of_every_dtem_is_that_of_the_release(variant, r):
    model, vit, metrics = pair(variant)
    with torch.no_grad():
        state = model.eval()(images(4).double(), reduction=r).final
        tokens, size, places = eval_forward(vit, metrics, images(4).double(), r)
    torch.testing.assert_close(state.tokens, tokens, atol=1e-9, rtol=0)
    assert torch.equal(state.size, size) and torch.equal(slots_of(state), places)


@pytest.mark.parametrize("r", [5, 16])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    "prefix", ["class token", "distilled", "no prefix, average pooling", "registers", "query and key norm"]
)
def test_tome_is_tome(prefix, training, r):
    model, vit, _ = pair("tome", prefix)
    with torch.no_grad():
        state = model.train(training)(images().double(), reduction=r).final
        tokens, size, places = eval_forward(vit, None, images().double(), r)
    torch.testing.assert_close(state.tokens, tokens, atol=1e-9, rtol=0)
    assert torch.equal(state.size, size) and torch.equal(slots_of(state), places)


def states_in_common(model, img_size, r):
    """[(block, state)]: float32 states of single images before each block but the first, rounded from a
    float64 pass."""
    taps = model(images(8, img_size).double(), reduction=r, taps=range(model.depth)).taps
    for i, state in enumerate(taps[:-1], start=1):
        for tokens, size in zip(state.tokens.float(), state.size.float(), strict=True):
            yield i, replace(state, tokens=tokens[None], size=size[None], merges=())


def symmetric(tokens, size):
    """[F]: a smooth function of tokens [N, C] with sizes [N] that does not depend on their order, as equal
    sizes have none."""
    directions = torch.randn(tokens.shape[-1], 16, generator=torch.Generator().manual_seed(3)).to(tokens)
    return torch.cat([size @ torch.tanh(tokens @ directions), (size**2) @ tokens])


@pytest.mark.parametrize(
    ("sizes", "img_size", "r"), [({"depth": 4}, 64, 3), ({"depth": 4}, 64, 16), (DEEP, 224, 16)]
)
def test_a_float32_training_block_and_its_gradient_are_those_of_the_release(sizes, img_size, r):
    model, vit, metrics = pair_with_close_scores(sizes, img_size)
    single = copy.deepcopy(model).float()
    clear = 0
    for i, state in states_in_common(model.train().requires_grad_(False), img_size, r):
        margin, layer = Margin(), metrics[i].requires_grad_()
        start = state.tokens[0].double(), state.size[0].double(), state.num_active
        x, size, live = train_block(vit.blocks[i], layer, *start, r, margin)
        if margin.least < CLEAR:
            continue
        clear += 1
        weight = single.blocks[i].metric.weight.requires_grad_()
        after = single.blocks[i](
            state, r, Place(state.size, exact=single.policy.exact_attention), relaxed=True
        )
        assert after.num_active == live and after.tokens.dtype == torch.float32
        sizes_in_order = after.size.sort().values[0].double(), size.sort().values
        torch.testing.assert_close(*sizes_in_order, atol=1e-3, rtol=0)
        torch.testing.assert_close(after.tokens[0, 0].double(), x[0], atol=1e-5, rtol=1e-5)
        got, wanted = symmetric(after.tokens[0], after.size[0]), symmetric(x, size)
        assert (got - wanted).norm() <= 1e-4 * wanted.norm()
        (ours,) = torch.autograd.grad(got.sum(), weight)
        (theirs,) = torch.autograd.grad(wanted.sum(), layer.weight)
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm()
    assert clear >= model.depth, "too few images whose choices are clear"


@pytest.mark.parametrize("r", [3, 8, 16])
def test_a_float32_merge_at_sharp_scores_is_that_of_the_release(r):
    """Here a few edges take almost all, and a rounding of the scores moves sizes by a thousandth. So the two
    halves are held to the release each: from the same scores the same weights, and from the same weights the
    same merge and gradient."""
    model, vit, metrics = pair("dtem_reference")
    sharpest = 0.0
    for i, state in states_in_common(model.train().requires_grad_(False), IMG, r):
        x, size, live = state.tokens[0].double(), state.size[0].double(), state.num_active
        scores = release_scores(metrics[i](vit.blocks[i].norm1(x)).detach(), live).float()
        ours = dense(relaxed_top_r(scores[None], r, candidates=3, tau1=0.1, tau2=0.1), scores.shape[-1])[0]
        wanted = soft_weights(scores.double(), r)
        sharpest = max(sharpest, wanted.max().item())
        torch.testing.assert_close(ours.double(), wanted, atol=SHARP, rtol=0)

        weights = wanted.float().requires_grad_()
        same = weights.detach().double().requires_grad_()
        after = apply(state, give_shares(state, all_edges(weights[None]), Split.of_release(live, 1), r))
        moved, sizes, left = move(x, size, live, same, r)
        assert after.num_active == left
        torch.testing.assert_close(
            after.size[0].sort().values.double(), sizes.sort().values, atol=1e-5, rtol=1e-6
        )
        got, expected = symmetric(after.tokens[0], after.size[0]), symmetric(moved, sizes)
        assert (got - expected).norm() <= 1e-5 * expected.norm()
        (of_ours,), (of_theirs,) = (
            torch.autograd.grad(got.sum(), weights),
            torch.autograd.grad(expected.sum(), same),
        )
        assert (of_ours - of_theirs).norm() <= 1e-4 * of_theirs.norm()
    assert sharpest > 0.8, "no scores were sharp"


@pytest.mark.parametrize("variant", ["dtem", "tome"])
@pytest.mark.parametrize("r", [3, 16])
def test_a_float32_block_of_inference_merges_as_in_float64(variant, r):
    model, vit, metrics = pair(variant)
    single = copy.deepcopy(model).float()
    clear = 0
    with torch.no_grad():
        for i, state in states_in_common(model.eval(), IMG, r):
            margin, holds = Margin(), [[j] for j in range(state.num_active)]
            start = state.tokens[0].double(), state.size[0].double(), holds
            x, size, holds = eval_block(vit.blocks[i], metrics and metrics[i], *start, r, 1, margin)
            if margin.least < CLEAR:
                continue
            clear += 1
            after = single.blocks[i](state, r, Place(state.size), relaxed=False)
            torch.testing.assert_close(after.tokens[0].double(), x, atol=1e-5, rtol=1e-5)
            assert torch.equal(after.size[0].double(), size) and torch.equal(slots_of(after)[0], slots(holds))
    assert clear >= model.depth, "too few images whose choices are clear"


def test_dtem_with_the_keys_as_metric_is_tome():
    """The mean over heads of the keys is a linear function of the normed tokens: as the embedding, it makes
    DTEM into ToMe."""
    dtem, vit, metrics = pair("dtem")
    tome, _, _ = pair("tome")
    for block, metric in zip(dtem.blocks, metrics, strict=True):
        keys_weight, keys_bias = block.attn.qkv.weight[48:96], block.attn.qkv.bias[48:96]
        with torch.no_grad():
            metric.weight.copy_(keys_weight.view(3, 16, 48).mean(0))
            metric.bias.copy_(keys_bias.view(3, 16).mean(0))
    with torch.no_grad():
        one, other = dtem.eval()(images().double()).final, tome.eval()(images().double()).final
    torch.testing.assert_close(one.tokens, other.tokens, atol=1e-9, rtol=0)
    assert torch.equal(slots_of(one), slots_of(other))


def test_the_oracle_itself_knows_the_published_weights():
    """The same hand-made case as in tests/merging/test_soft.py, so that both sides of the comparison are
    anchored."""
    weights = soft_weights(torch.tensor([[0.9, 0.1, 0.3], [0.8, 0.85, -0.2]]), 2)
    torch.testing.assert_close(
        weights, torch.tensor([[0.99326, 0, 0], [0.00669, 0.99331, 0]]), atol=1e-5, rtol=0
    )
