"""The backbone against an independent, plain writing of DTEM's release and of ToMe (oracle.py)."""

import pytest
import torch
from oracle import eval_forward, soft_weights, train_forward
from tiny import IMG, PREFIXES, SIZES, images, tiny_vit
from torch import nn

from pipeline.backbone.build import create_vit
from pipeline.backbone.load import load_weights


def pair(variant, prefix="class token", img_size=IMG, **sizes):
    """Our backbone, timm's model with the same weights, and the metric layers of both. Weights large enough that tokens differ."""
    model = tiny_vit(variant, prefix=prefix, img_size=img_size, timm_options=sizes).requires_grad_(False)
    name, timm_options = PREFIXES[prefix]
    torch.manual_seed(1)
    vit = create_vit(name, img_size=img_size, timm_options=SIZES | timm_options | sizes).requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for parameter in vit.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    load_weights(model, vit.state_dict())
    metrics = None
    if model.blocks[0].metric is not None:
        metrics = [block.metric for block in model.blocks]
        for metric in metrics:
            metric.requires_grad_()
            nn.init.normal_(metric.weight, std=0.2)
            nn.init.normal_(metric.bias, std=0.2)
    return model, vit, metrics


@pytest.mark.parametrize(
    ("sizes", "img_size", "r"),
    [({"depth": 4}, 64, 3), ({"depth": 4}, 64, 8), ({"depth": 4}, 64, 16), ({"depth": 12, "patch_size": 16}, 224, 16)],
)
def test_training_forward_and_metric_gradients_are_those_of_the_release(sizes, img_size, r):
    """One image, so that both sides multiply matrices of the same shape: a rounding apart, two nearly equal sizes may swap places."""
    model, vit, metrics = pair("dtem_reference", img_size=img_size, **sizes)
    batch = images(1, img_size)
    state = model.train()(batch, reduction=r).final
    tokens, size, live = train_forward(vit, metrics, batch, r)
    assert state.num_active == live
    torch.testing.assert_close(state.size, size, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state.tokens, tokens, atol=1e-4, rtol=1e-4)
    probe = torch.randn(tokens.shape)
    leaves = [parameter for metric in metrics for parameter in (metric.weight, metric.bias)]
    ours = torch.autograd.grad((state.tokens * probe).sum() + state.size.pow(2).sum(), leaves)
    theirs = torch.autograd.grad((tokens * probe).sum() + size.pow(2).sum(), leaves)
    for got, wanted in zip(ours, theirs, strict=True):
        assert wanted.norm() > 0
        assert (got - wanted).norm() <= 1e-3 * wanted.norm()


@pytest.mark.parametrize("r", [3, 8, 16, 40])
@pytest.mark.parametrize("variant", ["dtem_reference", "dtem_soft", "dtem_straight_through"])
def test_inference_of_every_dtem_is_that_of_the_release(variant, r):
    model, vit, metrics = pair(variant)
    with torch.no_grad():
        state = model.eval()(images(4), reduction=r).final
        tokens, size, slots = eval_forward(vit, metrics, images(4), r)
    torch.testing.assert_close(state.tokens, tokens, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state.size, size, atol=0, rtol=0)
    assert torch.equal(state.source.slots, slots)


@pytest.mark.parametrize("r", [5, 16])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("prefix", ["class token", "distilled", "no prefix, average pooling", "registers", "query and key norm"])
def test_tome_is_tome(prefix, training, r):
    model, vit, _ = pair("tome", prefix)
    with torch.no_grad():
        state = model.train(training)(images(), reduction=r).final
        tokens, size, slots = eval_forward(vit, None, images(), r)
    torch.testing.assert_close(state.tokens, tokens, atol=1e-4, rtol=1e-4)
    assert torch.equal(state.size, size) and torch.equal(state.source.slots, slots)


def test_dtem_with_the_keys_as_metric_is_tome():
    """The mean over heads of the keys is a linear function of the normed tokens: as the embedding, it makes DTEM into ToMe."""
    dtem, vit, metrics = pair("dtem")
    tome, _, _ = pair("tome")
    for block, metric in zip(dtem.blocks, metrics, strict=True):
        keys_weight, keys_bias = block.attn.qkv.weight[48:96], block.attn.qkv.bias[48:96]
        with torch.no_grad():
            metric.weight.copy_(keys_weight.view(3, 16, 48).mean(0))
            metric.bias.copy_(keys_bias.view(3, 16).mean(0))
    with torch.no_grad():
        one, other = dtem.eval()(images()).final, tome.eval()(images()).final
    torch.testing.assert_close(one.tokens, other.tokens, atol=1e-5, rtol=1e-5)
    assert torch.equal(one.source.slots, other.source.slots)


def test_the_oracle_itself_knows_the_published_weights():
    """The same hand-made case as in tests/merging/test_soft.py, so that both sides of the comparison are anchored."""
    weights = soft_weights(torch.tensor([[0.9, 0.1, 0.3], [0.8, 0.85, -0.2]]), 2)
    torch.testing.assert_close(weights, torch.tensor([[0.99326, 0, 0], [0.00669, 0.99331, 0]]), atol=1e-5, rtol=0)
