"""What a merge may cost: kernels, and memory that is kept for the backward pass."""

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import MERGING, RELAXED, VARIANTS, merged, random_state, tiny_vit
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from pipeline import unmerge
from pipeline.backbone.attention import proportional_attention
from pipeline.errors import ConfigError
from pipeline.merging.apply import apply
from pipeline.merging.policies import POLICIES
from pipeline.merging.rows import add_weighted_rows, quotient
from pipeline.merging.unmerge import start_unmerge, unmerge_tokens
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


CASTS = {torch.float32: 0, torch.bfloat16: 4}
"""Kernels more of tokens that are not float32, which a merge widens: tokens and metric, to and fro."""


@pytest.mark.parametrize("dtype", CASTS)
@pytest.mark.parametrize("variant", [name for name in MERGING if VARIANTS[name][0] in ("tome", "dtem")])
def test_a_hard_merge_takes_at_most_22_kernels(variant, dtype):
    """From the metric to the merged tokens. Making the metric is not counted."""
    policy, options = VARIANTS[variant]
    policy = POLICIES.build(policy, **options)
    state, metric = random_state(65, dim=48, dtype=dtype), torch.randn(2, 65, 16, dtype=dtype)
    counts = kernels(lambda: merged(policy, state, metric, 8))
    assert counts.total() - counts["aten::mean.dim"] <= 22 + CASTS[dtype], counts


@pytest.mark.parametrize("variant", MERGING)
def test_carrying_out_a_hard_merge_takes_at_most_11_kernels(variant):
    """From the assignment to the merged tokens, whatever policy chose it."""
    policy, options = VARIANTS[variant]
    state, metric = random_state(65, dim=48), torch.randn(2, 65, 16)
    (assignment,) = merged(POLICIES.build(policy, **options), state, metric, 8).merges
    counts = kernels(lambda: apply(state, assignment))
    assert counts.total() <= 11, counts


def test_sizes_in_bfloat16_take_at_most_six_kernels():
    """The logarithm of the sizes, and its channels in q, k and v."""
    packed = torch.randn(3, 2, 3, 17, 64).bfloat16()
    with_sizes, without = (
        kernels(lambda size=size: proportional_attention(*packed, size, scale=0.125, packed=packed))
        for size in (torch.ones(2, 17), None)
    )
    assert with_sizes.total() - without.total() <= 6, with_sizes


@pytest.mark.parametrize("variant", RELAXED)
@pytest.mark.parametrize("how", [None, "soft", "residual"])
def test_nothing_of_the_size_of_a_map_is_kept_for_the_backward_pass(variant, how):
    """No tensor with two dimensions near N by a relaxed merge or a soft unmerge: beside the similarities of N
    / 2 sources and N / 2 destinations, from which the candidates are picked. And none with a row of channels
    per edge, of which there are more than tokens."""
    num_tokens, kept = 401, []
    policy, options = VARIANTS[variant]
    state = TokenState.start(torch.randn(1, num_tokens, 6, requires_grad=True), (20, 20), 1)
    state = start_unmerge(state, how)
    metric = torch.randn(1, num_tokens, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        after = merged(POLICIES.build(policy, **options), state, metric, 8, training=True)
        # right behind a merge the grid of a residual is that before it, whatever merged
        later = after.with_tokens(after.tokens * 2)
        values = unmerge(later) if how else later.tokens
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

    for way in ("_slot_of", "_undo"):
        monkeypatch.setattr(f"pipeline.merging.unmerge.{way}", refuse)
    for variant in MERGING:
        for training in (False, True):
            model = tiny_vit(variant).train(training)
            model(torch.randn(2, 3, 64, 64))
            with pytest.raises(AssertionError, match="nobody asked"):
                model(torch.randn(2, 3, 64, 64), unmerge="residual")


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


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_unit_of_weights_is_free(unit, dtype):
    state = TokenState(torch.tensor([[[1.0], [4.0], [6.0]]]), torch.ones(1, 3), (1, 3), 0, 3)
    index = torch.tensor
    weight = (torch.tensor([[1.0, 2.0, 0.0]]) * unit).to(dtype)
    merge = Assignment.of(index([[1, 2]]), index([[0]]), index([[0]]), 3, weight=weight)
    torch.testing.assert_close(apply(state, merge).tokens[0, :, 0], torch.tensor([3.0, 6.0]))


@pytest.mark.parametrize("variant", RELAXED)
@pytest.mark.parametrize("tokens", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", [torch.bfloat16, torch.float32, torch.float64])
def test_what_is_carried_keeps_its_dtype(variant, tokens, values):
    policy, options = VARIANTS[variant]
    state = random_state(17, dtype=tokens)
    carried = {rule: Carried(torch.ones(2, 17, dtype=values), rule) for rule in ("mean", "sum", "first")}
    state, metric = replace(state, carried=carried), torch.randn(2, 17, 5, dtype=tokens)
    after = merged(POLICIES.build(policy, **options), state, metric, 4, training=True)
    assert {item.values.dtype for item in after.carried.values()} == {values}
    torch.testing.assert_close(after.carried["mean"].values, torch.ones_like(after.carried["mean"].values))
    grid = unmerge_tokens(torch.ones(2, after.tokens.shape[1], 1, dtype=values), after.merges)
    torch.testing.assert_close(grid, torch.ones(2, 17, 1, dtype=values))


def test_a_sum_of_many_is_exact_in_bfloat16():
    state = TokenState(torch.ones(1, 601, 1), torch.ones(1, 601), (1, 601), 0, 601)
    state = replace(state, carried={"count": Carried(torch.ones(1, 601, dtype=torch.bfloat16), "sum")})
    source = torch.arange(600)[None]
    merge = Assignment.of(torch.tensor([[600]]), source, torch.zeros_like(source), 601)
    assert apply(state, merge).carried["count"].values.item() == torch.tensor(601.0).bfloat16().item()


@pytest.mark.parametrize(
    ("values", "rule"), [(torch.ones(1, 3, dtype=torch.int64), "mean"), (torch.ones(1, 3), "median")]
)
def test_what_cannot_be_carried_is_refused(values, rule):
    state = TokenState(
        torch.ones(1, 3, 1), torch.ones(1, 3), (1, 3), 0, 3, carried={"x": Carried(values, rule)}
    )
    zero = torch.tensor([[0]])
    with pytest.raises(ConfigError, match=rule):
        apply(state, Assignment.of(torch.tensor([[1, 2]]), zero, zero, 3))


@pytest.mark.parametrize("variant", MERGING)
def test_what_a_backbone_is_given_travels_with_its_tokens(variant):
    ones = Carried(torch.ones(2, 65), "sum")
    for training in (False, True):
        final = tiny_vit(variant).train(training)(torch.randn(2, 3, 64, 64), carried={"count": ones}).final
        torch.testing.assert_close(final.carried["count"].values, final.size)


@pytest.mark.parametrize("variant", MERGING)
@pytest.mark.parametrize("unmerge", [None, "copy", "soft", "residual"])
def test_a_batch_can_be_empty(variant, unmerge):
    for training in (False, True):
        model = tiny_vit(variant).train(training)
        assert len(model(torch.randn(0, 3, 64, 64), unmerge=unmerge).final.tokens) == 0


def test_a_weight_counts_in_the_mean_and_not_in_the_size():
    state = TokenState(torch.tensor([[[1.0], [4.0]]]), torch.tensor([[1.0, 1.0]]), (1, 2), 0, 2)
    weight = torch.tensor([[1.0, 2.0]])
    zero = torch.tensor([[0]])
    after = apply(state, Assignment.of(torch.tensor([[1]]), zero, zero, 2, weight=weight))
    assert after.tokens.item() == 3.0 and after.size.item() == 2.0
