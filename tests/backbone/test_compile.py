"""torch.compile of a backbone with a fixed reduction: one graph."""

import pytest
import torch
from tiny import MERGING, images, tiny_vit

from pipeline.errors import ConfigError
from pipeline.merging.unmerge import slots

COMPILED = ["none", "tome", "dtem", "random", "tofu_late", "ailurus"]
EACH = [*COMPILED, *(pytest.param(name, marks=pytest.mark.slow) for name in MERGING if name not in COMPILED)]


@pytest.mark.parametrize("variant", EACH)
def test_inference_compiles_without_a_graph_break(variant):
    """fullgraph=True raises at a break. In float64, as another kernel may round otherwise and so choose other
    pairs."""
    torch.compiler.reset()
    model, batch = tiny_vit(variant).double().eval(), images().double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected, got = model(batch, taps=(1,)), compiled(batch, taps=(1,))
    torch.testing.assert_close(got.final.tokens, expected.final.tokens, atol=1e-9, rtol=0)
    assert torch.equal(got.final.size, expected.final.size)
    assert torch.equal(slots(got.taps[0]), slots(expected.taps[0]))
    assert got.final.num_active == expected.final.num_active
    torch.compiler.reset()


def test_training_compiles_without_a_graph_break():
    """The forward pass, with sizes that have a gradient, and its backward pass."""
    torch.compiler.reset()
    model, gradients = tiny_vit("dtem_straight_through").train(), []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        run(images()).final.tokens[:, 0].pow(3).sum().backward()
        gradients.append(model.blocks[0].metric.weight.grad.clone())
    assert gradients[0].any()
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-3)
    torch.compiler.reset()


def test_the_keep_rate_of_a_compiled_model_can_be_set():
    """It is a float, of which torch.compile makes a symbol once it changes."""
    torch.compiler.reset()
    model, batch = tiny_vit("tome").double().eval(), images().double()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for rate in (0.5, 0.7, 0.8):
        model.set_reduction(rate)
        # with a graph, as it is where no_grad is forgotten
        assert torch.equal(compiled(batch).final.size, model(batch).final.size)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torch_jit_trace_is_refused_where_tokens_merge():
    """It recorded merges of its own: the traced model gave other numbers, with a warning at most."""
    model = tiny_vit("tome").eval()
    with pytest.raises(ConfigError, match=r"torch\.jit\.trace cannot record merges; use torch\.export"):
        torch.jit.trace(model, images())
