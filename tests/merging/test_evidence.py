"""What a policy is shown of the attention is that of the attention itself, however it is cut into chunks."""

from dataclasses import replace

import pytest
import torch

from pipeline.backbone.attention import Place, mix, reference_attention
from pipeline.backbone.rotary import Rope
from pipeline.merging import evidence
from pipeline.merging.evidence import Evidence


@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
@pytest.mark.parametrize("sized", [False, True])
def test_attention_received_and_entropy_are_those_of_the_dense_softmax(chunk, sized, monkeypatch):
    monkeypatch.setattr(evidence, "CHUNK", chunk)
    q, k = torch.randn(2, 2, 3, 17, 8, dtype=torch.float64)
    size = torch.randint(0, 4, (2, 17)).double() if sized else None
    weights = reference_attention(
        q, k, torch.eye(17, dtype=torch.float64).expand(2, 3, -1, -1), size, scale=0.3
    )
    shown = Evidence(q, q, k, scale=0.3, size=size)
    asking = weights if size is None else weights * (size > 0)[:, None, :, None]
    torch.testing.assert_close(shown.received, asking.sum(dim=2))
    torch.testing.assert_close(shown.entropy, torch.special.entr(weights).sum(dim=-1))
    torch.testing.assert_close(shown.own_attention, weights.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(shown.class_attention, weights[:, :, 0])
    torch.testing.assert_close(shown.attention_from(3), weights[:, :, 3])


@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
@pytest.mark.parametrize("sized", [False, True])
def test_the_entropy_of_the_mean_over_heads_counts_each_key_once(chunk, sized, monkeypatch):
    """But for padding, of size 0, which counts nothing."""
    monkeypatch.setattr(evidence, "CHUNK", chunk)
    q, k = torch.randn(2, 2, 3, 17, 8)
    size = torch.randint(0, 4, (2, 17)).float() if sized else None
    once = None if size is None else (size > 0).float()
    weights = reference_attention(q, k, torch.eye(17).expand(2, 3, -1, -1), once, scale=0.3).mean(dim=1)
    found = Evidence(q, q, k, scale=0.3, size=size).mean_entropy
    torch.testing.assert_close(found, torch.special.entr(weights).sum(dim=-1), atol=1e-5, rtol=1e-5)
    uniform = Evidence(q, 0 * q, k, scale=0.3).mean_entropy
    torch.testing.assert_close(uniform, torch.full((2, 17), 17.0).log())


def test_attention_has_no_gradient_and_keeps_nothing_for_one():
    q, k = torch.randn(2, 2, 3, 17, 8, requires_grad=True).unbind()
    size = torch.zeros(2, 17, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        shown = Evidence(q, q, k, scale=0.3, size=size + 1)
        values = (shown.received, shown.entropy, shown.own_attention)
        values += (shown.attention_from(3), shown.class_attention, shown.mean_entropy)
    assert not kept and not any(value.requires_grad for value in values)


def test_nothing_is_computed_before_it_is_asked_for_and_then_once():
    asked = []
    tokens = torch.randn(1, 5, 4)
    shown = Evidence(
        tokens, tokens[:, None], tokens[:, None], scale=1.0, embed=lambda x: asked.append(1) or x
    )
    assert not asked
    assert shown.embedding is shown.embedding and len(asked) == 1
    assert shown.keys is shown.keys


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("looks", [False, True])
def test_under_rotary_positions_it_is_that_of_the_rotated_keys_with_their_bias(bias, looks):
    """Means of rotations are shorter than 1, which is what the bias makes up for."""
    q, k = torch.randn(2, 2, 3, 17, 8, dtype=torch.float64)
    size, eye = torch.randint(1, 4, (2, 17)).double(), torch.eye(17, dtype=torch.float64).expand(2, 3, -1, -1)
    place = Place(size, Rope(0.9 * torch.rand(2, 1, 17, 16, dtype=torch.float64), False, bias))
    weights = mix(q, k, eye, place, scale=0.3).output
    seen = mix(q, k, eye, replace(place, looks=looks), scale=0.3)
    shown = Evidence(seen.keys[:, 0], seen.q, seen.k, scale=0.3, size=size, bias=seen.bias)
    torch.testing.assert_close(shown.received, weights.sum(dim=2))
    assert torch.equal(seen.keys, k) and (seen.bias is None) != bias
