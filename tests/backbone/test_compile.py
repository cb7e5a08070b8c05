"""torch.compile of a backbone with a fixed reduction: one graph."""

import pytest
import torch
from tiny import images, tiny_vit


@pytest.mark.parametrize("variant", ["none", "tome", "dtem", "random"])
def test_inference_compiles_without_a_graph_break(variant):
    """fullgraph=True raises at a break."""
    torch.compiler.reset()
    model = tiny_vit(variant).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected, got = model(images(), taps=(1,)), compiled(images(), taps=(1,))
    torch.testing.assert_close(got.final.tokens, expected.final.tokens, atol=1e-5, rtol=1e-5)
    assert torch.equal(got.final.size, expected.final.size)
    assert torch.equal(got.taps[0].source.slots, expected.taps[0].source.slots)
    assert got.final.num_active == expected.final.num_active
    torch.compiler.reset()
