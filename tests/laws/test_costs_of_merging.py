"""What a merge may cost: kernels, and memory that is kept for the backward pass."""

import pytest
import torch
from asks_nothing import AsksNothing
from kernel_counts import kernels
from tiny import MASKED, MERGING, RELAXED, VARIANTS, images, merged, random_state, tiny_vit
from torch.utils._pytree import tree_flatten, tree_map_only

from pipeline import unmerge
from pipeline.backbone.attention import proportional_attention
from pipeline.merging.apply import apply
from pipeline.merging.policies import POLICIES
from pipeline.merging.unmerge import start_unmerge
from pipeline.token_state import Assignment, TokenState

CASTS = {torch.float32: 0, torch.bfloat16: 4}
"""Kernels more of tokens that are not float32, which a merge widens: tokens and metric, to and fro."""


MOST = {"meta": (23, 11), "cpu": (25, 12)}
"""Kernels of a merge, and of carrying it out. On a CPU only the rows that receive others change: one kernel
more, and fewer bytes. What runs for `meta` is what a GPU runs without kernels of our own, and one copy."""
MORE = {"weight": 6, "part": 3, "spread": 0, "keeps_norm": 24, "reads": 12}
"""Kernels more of an assignment that has this."""


@pytest.mark.parametrize("device", MOST)
@pytest.mark.parametrize("dtype", CASTS, ids=str)
@pytest.mark.parametrize("variant", [name for name in MERGING if VARIANTS[name][0] in ("tome", "dtem")])
def test_a_hard_merge_takes_few_kernels(variant, dtype, device):
    """From the metric to the merged tokens. Making the metric is not counted."""
    policy, options = VARIANTS[variant]
    policy = POLICIES.build(policy, **options)
    state, metric = random_state(65, dim=48, dtype=dtype), torch.randn(2, 65, 16, dtype=dtype)
    state, metric = on(device, state), metric.to(device)
    counts = kernels(lambda: merged(policy, state, metric, 8))
    assert counts.total() - counts["aten::mean.dim"] <= MOST[device][0] + CASTS[dtype], counts


@pytest.mark.parametrize("variant", MERGING)
def test_no_merge_makes_the_host_wait_for_the_device(variant):
    """But for the first one, in which tensors of sizes alone are made. A relaxed merge looks for NaN on a
    CPU."""
    model, x = tiny_vit(variant, reduction=[6, 5, 0]), images()
    for training in (False,) if variant in (*RELAXED, *MASKED) else (False, True):
        model.train(training)(x)
        state = AsksNothing.within(model)(x).final
        assert state.tokens.shape[1] == 65 - 11


@pytest.mark.parametrize("device", MOST)
@pytest.mark.parametrize("variant", MERGING)
def test_carrying_out_a_hard_merge_takes_few_kernels(variant, device):
    """From the assignment to the merged tokens, whatever policy chose it."""
    policy, options = VARIANTS[variant]
    state, metric = random_state(65, dim=48), torch.randn(2, 65, 16)
    (assignment,) = merged(POLICIES.build(policy, **options), state, metric, 8).merges
    state, assignment = on(device, state), on(device, assignment)
    counts = kernels(lambda: apply(state, assignment))
    more = sum(
        most for name, most in MORE.items() if getattr(assignment, name) is not getattr(Assignment, name)
    )
    assert counts.total() <= MOST[device][1] + more, counts


def on(device, value):
    """A state or an assignment with its tensors on a device."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), value)


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


def test_a_forward_pass_without_unmerging_composes_no_source_map(monkeypatch):
    def refuse(*_):
        raise AssertionError("nobody asked for the source map")

    for way in ("slot_of", "_undo"):
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
