"""Frozen layers in training: results and gradients are those of the layers, and little is kept for them."""

import pytest
import torch
from timm.layers.mlp import Mlp
from tiny import images, tiny_vit
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from pipeline.backbone import frozen_linear, packed_linear
from pipeline.backbone.frozen_linear import FEWEST_ROWS
from pipeline.backbone.hosts.feed_forward import through
from pipeline.backbone.packed_linear import linear

pytestmark = pytest.mark.skipif(not packed_linear._FASTER, reason="oneDNN is no faster on this processor")
HIDDEN = 40
RUN = {"layer": linear, "mlp": through}
BOTH = pytest.mark.parametrize("kind", RUN)


def part_and_input(kind, bias=True):
    torch.manual_seed(0)
    part = nn.Linear(12, HIDDEN, bias=bias) if kind == "layer" else Mlp(12, HIDDEN, bias=bias)
    x = torch.randn(2, FEWEST_ROWS // 2, 12, requires_grad=True)
    return part.requires_grad_(False).eval(), x


def frozen(y):
    """Whether a function of ours is in the graph of y."""
    found, left = set(), [y.grad_fn]
    while left:
        if (node := left.pop()) is not None:
            found.add(node.name())
            left += [behind for behind, _ in node.next_functions]
    return any("Frozen" in name for name in found)


def close(found, wanted):
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    assert 0 < wanted.norm() and (found - wanted).norm() <= 2e-6 * wanted.norm()


def derivatives(y, x):
    """The first, and one of the second."""
    (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    return first, torch.autograd.grad(first.sin().sum(), x)[0]


@BOTH
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [frozen_linear.CHUNK, 300 * HIDDEN, 1])
def test_results_and_derivatives_are_those_of_the_layers(kind, bias, chunk, monkeypatch):
    monkeypatch.setattr(frozen_linear, "CHUNK", max(chunk, 100 * HIDDEN))
    part, x = part_and_input(kind, bias)
    ours, plain = RUN[kind](part, x), part(x)
    assert frozen(ours) and not frozen(plain)
    close(ours, plain)
    for found, wanted in zip(derivatives(ours, x), derivatives(plain, x), strict=True):
        close(found, wanted)
    ours, plain = (torch.autograd.grad(y.sin().sum(), x)[0] for y in (RUN[kind](part, x), part(x)))
    close(ours, plain)
    plus = torch.randn_like(part(x))
    close(RUN[kind](part, x, plus=plus), plus + part(x))


@BOTH
def test_nothing_is_kept_but_the_input_of_a_gelu(kind):
    part, x = part_and_input(kind)
    own, kept = {parameter.data_ptr() for parameter in part.parameters()}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda y: kept.append(y) or y, lambda y: y):
        RUN[kind](part, x)
    others = sum(y.numel() for y in kept if y.data_ptr() not in own)
    assert kept and others == (0 if kind == "layer" else FEWEST_ROWS * HIDDEN)


@BOTH
def test_no_change_of_a_weight_is_missed(kind):
    part, x = part_and_input(kind)
    RUN[kind](part, x)
    for parameter in part.parameters():
        parameter.data.mul_(2)
        close(RUN[kind](part, x), part(x))
    y = RUN[kind](part, x)
    next(part.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@BOTH
def test_activation_checkpointing_gives_the_same(kind):
    part, x = part_and_input(kind)
    direct, again = RUN[kind](part, x), checkpoint(RUN[kind], part, x, use_reentrant=False)
    assert frozen(again)
    assert torch.equal(*(torch.autograd.grad(y.sin().sum(), x)[0] for y in (direct, again)))


def learning(part):
    next(part.parameters()).requires_grad_()


def learning_bias(part):
    list(part.parameters())[-1].requires_grad_()


def hooked(part):
    next(layer for layer in part.modules() if isinstance(layer, nn.Linear)).register_forward_hook(
        lambda *_: None
    )


def rebuilt(part):
    for layer in [layer for layer in part.modules() if isinstance(layer, nn.Linear)]:
        nn.utils.parametrizations.weight_norm(layer).requires_grad_(False)


@BOTH
@pytest.mark.parametrize("change", [learning, learning_bias, hooked, rebuilt, nn.Module.double])
def test_what_learns_or_is_no_plain_layer_is_called_as_it_is(kind, change):
    part, x = part_and_input(kind)
    change(part)
    x = x.to(next(part.parameters()).dtype)
    ours = RUN[kind](part, x)
    assert not frozen(ours) and torch.equal(ours, part(x))


@BOTH
def test_it_is_off_in_other_passes(kind, monkeypatch):
    part, x = part_and_input(kind)
    run = RUN[kind]
    for context in (torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False)):
        with context:
            assert not frozen(run(part, x))
    assert not frozen(run(part, x[:, 1:])), "few rows"
    mapped = torch.vmap(lambda own: run(part, own))(x[:, None].expand(-1, 2, -1, -1))
    close(mapped[:, 1], part(x))
    compiled = torch.compile(lambda own: run(part, own), backend="eager", fullgraph=True)
    assert not frozen(compiled(x))
    with forward_ad.dual_level():
        dual = run(part, forward_ad.make_dual(x.detach(), torch.ones_like(x)))
        assert forward_ad.unpack_dual(dual).tangent is not None
    monkeypatch.setenv(packed_linear.SWITCH, "0")
    assert not frozen(run(part, x))


@pytest.mark.parametrize("variant", ["dtem_reference", "dtem_straight_through"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_backbone_gives_the_gradients_that_it_gave(variant, checkpointing, monkeypatch):
    """One merge, before which nothing differs: near ties of a second one could go another way."""
    model = tiny_vit(variant, reduction=[8, 0, 0], grad_checkpointing=checkpointing).eval()
    model.requires_grad_(False)
    leaves = list(model.blocks[0].metric.requires_grad_().parameters())
    x, gradients = images(FEWEST_ROWS // 65 + 1), []
    for switch in ("0", "1"):
        monkeypatch.setenv(packed_linear.SWITCH, switch)
        tokens = model(x, training=True).final.tokens
        assert checkpointing or frozen(tokens) == (switch == "1")
        gradients.append(torch.autograd.grad(tokens.sin().sum(), leaves))
    for found, wanted in zip(*gradients, strict=True):
        assert 0 < wanted.norm() and (found - wanted).norm() <= 1e-4 * wanted.norm()
