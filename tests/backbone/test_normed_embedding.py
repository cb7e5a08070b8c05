"""An embedding of normalised tokens keeps those before the norm; its result and gradients are the layer's."""

import pytest
import torch
from timm.layers.norm import LayerNorm
from torch import nn

from pipeline.backbone.metric import EMBEDDINGS, EmbeddingSpec
from pipeline.backbone.normed_embedding import embed_normed


def parts(kind="shared", norm=LayerNorm, dtype=torch.float64):
    torch.manual_seed(0)
    norm = norm(12).to(dtype).requires_grad_(False)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    metric = EmbeddingSpec(kind, ("birds", "cars")).build(12, 5).to(dtype)
    for parameter in metric.parameters():
        nn.init.normal_(parameter)
    return norm, metric, torch.randn(2, 7, 12, dtype=dtype)


def kept_by(run):
    """The tensors that a call keeps for its backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        return run(), kept


@pytest.mark.parametrize("kind", EMBEDDINGS)
@pytest.mark.parametrize("norm", [nn.LayerNorm, LayerNorm])
def test_it_is_the_layer_and_keeps_no_normalised_tokens(kind, norm):
    norm, metric, before = parts(kind, norm)
    x = norm(before)
    ours, kept = kept_by(lambda: embed_normed(metric, "cars", norm, before, x))
    assert any(y.data_ptr() == before.data_ptr() for y in kept)
    assert not any(y.data_ptr() == x.data_ptr() for y in kept)
    plain, leaves = metric(x, task="cars"), list(metric.parameters())
    torch.testing.assert_close(ours, plain)
    for found, wanted in zip(
        *(torch.autograd.grad(y.sin().sum(), leaves, allow_unused=True) for y in (ours, plain)), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_its_second_derivative_is_the_layers():
    norm, metric, before = parts()

    def second(y):
        first = torch.autograd.grad(y.sin().sum(), metric.weight, create_graph=True)[0]
        return torch.autograd.grad(first.sin().sum(), metric.weight)[0]

    x = norm(before)
    torch.testing.assert_close(second(embed_normed(metric, None, norm, before, x)), second(metric(x)))


def hooked(norm, metric):
    norm.register_forward_hook(lambda *_: None)


def hooked_metric(norm, metric):
    metric.register_forward_hook(lambda *_: None)


def learning(norm, metric):
    norm.requires_grad_()


@pytest.mark.parametrize("change", [hooked, hooked_metric, learning])
def test_what_learns_or_is_hooked_is_called_as_it_is(change):
    norm, metric, before = parts()
    change(norm, metric)
    x = norm(before).detach()
    ours, kept = kept_by(lambda: embed_normed(metric, None, norm, before, x))
    assert any(y.data_ptr() == x.data_ptr() for y in kept) and torch.equal(ours, metric(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert embed_normed(metric, None, norm, before, x).dtype == metric(x).dtype
