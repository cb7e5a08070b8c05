"""Packed weights of inference: they give what the layer gives, are never stale, and are on no module."""

import copy
import pickle

import pytest
import torch
from tiny import images, tiny_vit
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pipeline.backbone import packed_linear, packed_weights
from pipeline.backbone.metric import EMBEDDINGS, EmbeddingSpec, beside_of
from pipeline.backbone.packed_linear import Beside, can_pack, linear, linear_beside, linear_rows

pytestmark = pytest.mark.skipif(not packed_linear._FASTER, reason="oneDNN is no faster on this processor")
DTYPES = pytest.mark.parametrize("dtype", packed_linear._FASTER, ids=str)


def layer_and_input(dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    return nn.Linear(48, 96, bias=bias).to(dtype), torch.randn(2, 17, 48).to(dtype)


def close(found, wanted):
    rounding = 1e-2 if found.dtype == torch.bfloat16 else 1e-6
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    assert (found.double() - wanted.double()).norm() <= rounding * wanted.double().norm()


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_it_is_the_layer_with_gelu_or_a_sum(dtype, bias):
    layer, x = layer_and_input(dtype, bias)
    plus = torch.randn(2, 17, 96).to(dtype)
    assert can_pack(layer, x)
    close(linear(layer, x), layer(x))
    close(linear(layer, x, gelu=True), F.gelu(layer(x)))
    close(linear(layer, x, plus=plus), plus + layer(x))
    close(linear(layer, x[:, ::2], plus=plus[:, ::2]), plus[:, ::2] + layer(x[:, ::2]))


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_some_rows_of_a_layer_are_computed_alone_and_by_the_layer_where_it_is_watched(dtype, bias):
    layer, x = layer_and_input(dtype, bias)
    for change in (0, 1):
        for parameter in layer.parameters():
            parameter.add_(change)
        for rows in (slice(0, 64), slice(64, 96)):
            close(linear_rows(layer, x, rows), layer(x)[..., rows])
            with torch.enable_grad():
                close(linear_rows(layer, x, rows), layer(x)[..., rows])
    called = []
    layer.register_forward_hook(lambda *_: called.append(1))
    found = linear_rows(layer, x, slice(64, 96))
    assert called == [1]
    close(found, layer(x)[..., 64:])


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_layer_beside_it_is_computed_with_it(dtype, bias):
    layer, x = layer_and_input(dtype, bias)
    other = nn.Linear(48, 8).to(dtype)
    parts = (other.weight, other.bias)
    beside = Beside("other", parts, lambda: dict(other.named_parameters()))
    for changed in (None, *parts, *layer.parameters()):
        if changed is not None:
            changed.add_(1)
        ours, theirs = linear_beside(layer, x, beside)
        close(ours, layer(x))
        close(theirs, other(x))


@pytest.mark.parametrize("kind", EMBEDDINGS)
@torch.no_grad()
def test_every_embedding_is_computed_with_the_projection_and_is_never_stale(kind):
    layer, x = layer_and_input()
    metric = EmbeddingSpec(kind, ("birds", "cars")).build(48, 16)
    for change in (lambda own: None, lambda own: own.add_(0.1), lambda own: own.data.mul_(3)):
        for parameter in metric.parameters():
            change(parameter)
            for task in ("birds", "cars"):
                beside = beside_of(metric, task)
                assert beside is not None
                close(linear_beside(layer, x, beside)[1], metric(x, task=task))
    metric.register_forward_hook(lambda *_: None)
    assert beside_of(metric, "birds") is None, "so that the hook is called"


@torch.no_grad()
def test_autocast_decides_on_the_dtype_as_it_does_for_the_layer():
    if torch.bfloat16 not in packed_linear._FASTER:
        pytest.skip("no bfloat16 here")
    layer, x = layer_and_input()
    plus = torch.randn(2, 17, 96)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            close(linear(layer, x), layer(x))
            close(linear(layer, x, plus=plus), plus + layer(x))
        close(linear(layer, x), layer(x))


def an_optimizer(layer):
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    with torch.enable_grad():
        layer(torch.ones(1, 48)).sum().backward()
    optimizer.step()


def another_address(layer):
    layer.weight.data = layer.weight.data * 2


CHANGES = {
    "optimizer": an_optimizer,
    "in place": lambda layer: layer.weight.mul_(2),
    "state dict": lambda layer: layer.load_state_dict(nn.Linear(48, 96).state_dict()),
    "assigned state": lambda layer: layer.load_state_dict(nn.Linear(48, 96).state_dict(), assign=True),
    "other memory": another_address,
    "in place, without a version": lambda layer: layer.weight.data.mul_(2),
    "columns, without a version": lambda layer: layer.weight.data[:, 12:].zero_(),
    "rows, without a version": lambda layer: layer.weight.data[24:].zero_(),
    "another parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn(96, 48))),
    "another dtype and back": lambda layer: layer.double().float(),
    "shared memory": lambda layer: layer.share_memory().weight.data.add_(1),
    "the bias": lambda layer: layer.bias.data[3:4].add_(1),
    "another shape": lambda layer: layer.__init__(48, 32),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_no_change_of_the_weights_is_missed(change):
    layer, x = layer_and_input()
    before = linear(layer, x)
    CHANGES[change](layer)
    assert can_pack(layer, x), "it is packed anew, and not passed by"
    close(linear(layer, x), layer(x))
    assert (
        change == "another dtype and back"
        or before.shape != layer(x).shape
        or (before - layer(x)).abs().max() > 1e-3
    ), "the change is one"


def test_nothing_of_it_is_on_a_module_and_training_drops_it():
    layer, x = layer_and_input()
    known, size = set(vars(layer)), len(pickle.dumps(layer))
    with torch.no_grad():
        linear(layer, x)
        assert layer.weight in packed_weights._PACKED
        assert set(vars(layer)) == known and len(pickle.dumps(layer)) == size
        assert copy.deepcopy(layer).weight not in packed_weights._PACKED
    linear(layer, x).sum().backward()
    assert layer.weight not in packed_weights._PACKED and layer.weight.grad is not None


class Louder(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


def hooked():
    layer, _ = layer_and_input()
    layer.register_forward_hook(lambda *_: torch.zeros(()))
    return layer


def parametrized():
    layer, _ = layer_and_input()
    return nn.utils.parametrizations.weight_norm(layer)


def in_inference_mode():
    with torch.inference_mode():
        return nn.Linear(48, 96)


OTHERS = {
    "a subclass": lambda: Louder(48, 96),
    "a hook": hooked,
    "a parametrization": parametrized,
    "inference tensors": in_inference_mode,
}


@pytest.mark.parametrize("other", OTHERS)
@torch.no_grad()
def test_what_is_no_plain_layer_is_called_as_it_is(other):
    layer, (_, x) = OTHERS[other](), layer_and_input()
    assert not can_pack(layer, x) and torch.equal(linear(layer, x), layer(x))


@torch.no_grad()
def test_it_is_off_where_each_operation_is_followed_or_where_it_is_not_wanted(monkeypatch):
    layer, x = layer_and_input()
    with FlopCounterMode(display=False) as counter:
        linear(layer, x)
    assert counter.get_total_flops() == 2 * 34 * 48 * 96
    mapped = torch.vmap(lambda own: linear(layer, own))(x)
    torch.testing.assert_close(mapped, layer(x))
    traced = torch.jit.trace(lambda own: linear(layer.requires_grad_(False), own), x)
    exported = torch.export.export(tiny_vit("dtem").eval(), (images(),))
    graphs = str(traced.graph) + str(exported.graph)
    assert "mkldnn" not in graphs and "packed_linear" not in graphs
    with torch.backends.mkldnn.flags(enabled=False):
        assert not can_pack(layer, x)
    monkeypatch.setenv(packed_linear.SWITCH, "0")
    assert not can_pack(layer, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", ["tome", "dtem"])
def test_a_backbone_gives_the_same_with_packed_weights(variant, dtype, monkeypatch):
    """One merge, as near ties of a second could go another way."""
    model, x = tiny_vit(variant, reduction=[8, 0, 0]).eval(), images()
    outputs = []
    for switch in ("0", "1"):
        monkeypatch.setenv(packed_linear.SWITCH, switch)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            outputs.append(model(x).final.tokens)
    packed = dtype in packed_linear._FASTER
    assert (model.blocks[0].attn.qkv.weight in packed_weights._PACKED) == packed
    if dtype == torch.float32:
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_compiled_pass_packs_each_weight_once_and_none_is_stale(monkeypatch):
    """By the operator that a graph calls. float64 is not packed."""
    layer, x = layer_and_input()
    plus, packings = torch.randn(2, 17, 96), []
    made = packed_weights.Packed.__init__
    monkeypatch.setattr(packed_weights.Packed, "__init__", lambda *own: packings.append(made(*own)))
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, gelu: linear(layer, x, gelu=gelu, plus=None if gelu else plus), backend="aot_eager"
    )
    for change in (lambda weight: None, lambda weight: weight.add_(0.1), lambda weight: weight.data.mul_(3)):
        change(layer.weight)
        for _ in range(2):
            close(compiled(x, True), F.gelu(layer(x)))
            close(compiled(x, False), plus + layer(x))
    assert len(packings) == 3
    with torch.enable_grad():
        compiled(x, True).sum().backward()
    assert layer.weight.grad is not None
    layer.double()
    close(compiled(x.double(), True), F.gelu(layer(x.double())))
    torch.compiler.reset()


def test_the_operator_keeps_its_promises():
    layer, x = layer_and_input()
    weight, bias = layer.weight.detach(), layer.bias.detach()
    for plus, gelu in ((None, True), (torch.randn(2, 17, 96), False)):
        torch.library.opcheck(torch.ops.dtem.packed_linear, (x, weight, bias, plus, gelu, torch.float32))


class Wrapped(nn.Module):
    """As PEFT wraps a layer."""

    def __init__(self, base):
        super().__init__()
        self.base, self.calls = base, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.base(*args, **kwargs)


def test_an_embedding_that_something_wrapped_is_called():
    model, batch = tiny_vit("dtem").eval(), images()
    model.requires_grad_(False)
    with torch.no_grad():
        wanted = model(batch).final.tokens
    for block in model.blocks:
        block.metric = Wrapped(block.metric)
    with torch.no_grad():
        close(model(batch).final.tokens, wanted)
    model.train()(batch)
    assert all(block.metric.calls == 2 for block in model.blocks)


def test_a_pass_with_gradients_drops_all_that_is_packed_of_a_model():
    model, batch = tiny_vit("dtem").eval(), images()
    weights = [layer.weight for layer in model.modules() if type(layer) is nn.Linear]
    with torch.no_grad():
        model(batch)
    assert any(weight in packed_weights._PACKED for weight in weights)
    model(batch)
    assert not any(weight in packed_weights._PACKED for weight in weights)


@torch.no_grad()
def test_autocast_leaves_float64_as_it_is():
    layer, x = layer_and_input(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(layer, x), layer(x))


def test_a_shared_embedding_is_packed_once_for_all_tasks():
    layer, (_, x) = nn.Linear(48, 96), layer_and_input()
    metric = EmbeddingSpec("shared", ("birds", "cars")).build(48, 16)
    with torch.no_grad():
        for task in ("birds", "cars"):
            linear_beside(layer, x, beside_of(metric, task))
    assert len(packed_weights._PACKED[layer.weight]) == 1
