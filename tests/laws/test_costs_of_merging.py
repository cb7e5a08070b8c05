"""What a merge may cost: kernels, and memory that is kept for the backward pass."""

from collections import Counter
from functools import partial

import pytest
import torch
from tiny import MERGING, RELAXED, VARIANTS, merged, random_state, tiny_vit
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from pipeline import unmerge
from pipeline.backbone.attention import proportional_attention
from pipeline.merging.apply import apply
from pipeline.merging.policies import POLICIES
from pipeline.merging.rows import add_weighted_rows, quotient
from pipeline.merging.unmerge import unmerge_tokens
from pipeline.token_state import Assignment, Carried, TokenState

VIEWS = ("aten::detach", "aten::promote_types", "aten::_unsafe_view")


class Kernels(TorchDispatchMode):
    """Counts the aten operators that compute something: on a GPU each is at least one launch."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func.name().split(".")[0] not in VIEWS:
            self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def kernels(run):
    with torch.no_grad(), Kernels() as seen:
        run()
    return seen.counts


@pytest.mark.parametrize("variant", MERGING)
def test_a_hard_merge_takes_at_most_22_kernels(variant):
    """From the metric to the merged tokens, the source map included. Making the metric is not counted."""
    policy, options = VARIANTS[variant]
    policy = POLICIES.build(policy, **options)
    state, metric = random_state(65, dim=48), torch.randn(2, 65, 16)
    counts = kernels(lambda: merged(policy, state, metric, 8))
    assert counts.total() - counts["aten::mean.dim"] <= 22, counts


def test_sizes_in_bfloat16_take_at_most_six_kernels_more():
    q, k, v = torch.randn(3, 2, 3, 17, 64).bfloat16()
    size = torch.ones(2, 17)
    plain = kernels(lambda: proportional_attention(q, k, v, None, scale=0.125))
    sized = kernels(lambda: proportional_attention(q, k, v, size, scale=0.125))
    logarithm = 2
    assert sized.total() - plain.total() - logarithm <= 6, sized


@pytest.mark.parametrize("variant", RELAXED)
@pytest.mark.parametrize("how", [None, "soft", "residual"])
def test_nothing_of_the_size_of_a_map_is_kept_for_the_backward_pass(variant, how):
    """No tensor with two dimensions near N by a relaxed merge or a soft unmerge: beside the similarities of N
    / 2 sources and N / 2 destinations, from which the candidates are picked. And none with a row of channels
    per edge, of which there are more than tokens."""
    num_tokens, kept = 401, []
    policy, options = VARIANTS[variant]
    state = TokenState.start(torch.randn(1, num_tokens, 6, requires_grad=True), (20, 20), 1)
    metric = torch.randn(1, num_tokens, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        after = merged(POLICIES.build(policy, **options), state, metric, 8, training=True)
        values = unmerge(after) if how else after.tokens
    values.sum().backward()
    near = [shape for shape in kept if sum(dim >= num_tokens // 4 for dim in shape) >= 2]
    assert not near, near
    per_edge = [shape for shape in kept if shape[-1] == 6 and shape.numel() > num_tokens * 6]
    assert not per_edge, per_edge
    assert metric.grad is not None and kept


@pytest.mark.parametrize("shape", [(), (3,)])
def test_adding_weighted_rows_has_the_gradient_of_its_sum(shape):
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.rand, dtype=torch.float64, generator=generator, requires_grad=True)
    into, values, weight = draw((2, 4, *shape)), draw((2, 5, *shape)), draw((2, 7))
    to, rows = (torch.randint(n, (2, 7), generator=generator) for n in (8, 10))
    plain = into.detach().flatten(0, 1).clone()
    for i, row, part in zip(to.flatten(), rows.flatten(), weight.flatten(), strict=True):
        plain[i] += values.flatten(0, 1)[row].detach() * part.detach()
    torch.testing.assert_close(add_weighted_rows(into, to, values, rows, weight).flatten(0, 1), plain)
    assert torch.autograd.gradcheck(
        lambda i, v, w: add_weighted_rows(i, to, v, rows, w), (into, values, weight)
    )


def test_a_quotient_has_its_gradient():
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.rand, dtype=torch.float64, generator=generator, requires_grad=True)
    total, whole = draw((2, 5, 3)), draw((2, 5))
    assert torch.equal(quotient(total, whole), total / whole[..., None])
    assert torch.autograd.gradcheck(quotient, (total, whole + 0.5))


def test_a_forward_pass_without_unmerging_composes_no_source_map(monkeypatch):
    def refuse(*_):
        raise AssertionError("nobody asked for the source map")

    monkeypatch.setattr("pipeline.merging.unmerge._slot_of", refuse)
    for variant in MERGING:
        for training in (False, True):
            tiny_vit(variant).train(training)(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("variant", MERGING)
def test_states_are_pytrees_whose_tensors_are_all_seen(variant):
    output = tiny_vit(variant).train()(torch.randn(2, 3, 64, 64), taps=(0,))
    leaves, _ = tree_flatten(output)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    assert any(leaf is output.final.tokens for leaf in tensors)
    assert any(leaf is output.final.merges[0].keep for leaf in tensors)
    moved = tree_map_only(torch.Tensor, torch.clone, output)
    assert torch.equal(unmerge(moved.final), unmerge(output.final)) and moved.final.grid == (8, 8)


def carried_by_hand(share):
    """Tokens 1, 3, 5 of sizes 1, 1, 2; the first gives to the last, and stays only where it gives a share."""
    keep = torch.tensor([[1, 2]]) if share is None else torch.tensor([[0, 1, 2]])
    slot = torch.tensor([[keep.shape[1] - 1]])
    values = torch.tensor([[1.0, 3.0, 5.0]])
    relations = torch.arange(9.0).view(1, 3, 3)
    state = TokenState(
        values[..., None],
        torch.tensor([[1.0, 1.0, 2.0]]),
        (1, 3),
        0,
        3,
        carried={rule: Carried(values, rule) for rule in ("mean", "sum", "first")}
        | {"pairwise": Carried(relations, "pairwise")},
    )
    shares = {} if share is None else {"share": torch.tensor([[share]])}
    return apply(state, Assignment.of(keep, torch.tensor([[0]]), slot, 3, **shares))


def test_what_is_carried_moves_by_its_rule():
    after = carried_by_hand(None)
    expected = {"mean": [[3.0, 11 / 3]], "sum": [[3.0, 6.0]], "first": [[3.0, 5.0]]}
    for rule, values in expected.items():
        torch.testing.assert_close(after.carried[rule].values, torch.tensor(values))
    torch.testing.assert_close(after.tokens[..., 0], after.carried["mean"].values)
    assert after.carried["pairwise"].values.tolist() == [[[4.0, 5.0], [7.0, 8.0]]]


def test_what_is_carried_moves_by_shares():
    after = carried_by_hand(0.5)
    expected = {"mean": [[1.0, 3.0, 10.5 / 2.5]], "sum": [[0.5, 3.0, 5.5]], "first": [[1.0, 3.0, 5.0]]}
    for rule, values in expected.items():
        torch.testing.assert_close(after.carried[rule].values, torch.tensor(values))
    torch.testing.assert_close(after.size, torch.tensor([[0.5, 1.0, 2.5]]))
    back = unmerge_tokens(after.tokens, after.merges)
    torch.testing.assert_close(back[..., 0], torch.tensor([[(1.0 + 4.2) / 2, 3.0, 4.2]]))


def test_a_weight_counts_in_the_mean_and_not_in_the_size():
    state = TokenState(torch.tensor([[[1.0], [4.0]]]), torch.tensor([[1.0, 1.0]]), (1, 2), 0, 2)
    weight = torch.tensor([[1.0, 2.0]])
    zero = torch.tensor([[0]])
    after = apply(state, Assignment.of(torch.tensor([[1]]), zero, zero, 2, weight=weight))
    assert after.tokens.item() == 3.0 and after.size.item() == 2.0
