"""What every way of unmerging promises, for every merge policy, on square and odd grids, at every tap."""

from dataclasses import replace

import pytest
import torch
from tiny import MERGING_WAYS, RELAXED, VARIANTS, WAYS, generator, images, merged, source_map, tiny_vit

from pipeline import unmerge
from pipeline.errors import ConfigError
from pipeline.merging.apply import apply
from pipeline.merging.policies import POLICIES
from pipeline.merging.reducer import ReducingPolicy
from pipeline.merging.unmerge import (
    UNMERGES,
    carry_residual,
    harden,
    slots,
    start_unmerge,
    unmerge_state,
)
from pipeline.token_state import TokenState

HOW = pytest.mark.parametrize("how", UNMERGES)
VARIANT = pytest.mark.parametrize("variant", MERGING_WAYS)
TRAINING = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
GRID = pytest.mark.parametrize("grid", [(64, 64), (56, 40), (24, 72)], ids=["8x8", "7x5", "3x9"])


def build(variant):
    policy, options = WAYS[variant]
    return POLICIES.build(policy, **options)


def start(how, *, grid=(7, 5), prefix=1, tokens=None):
    count = grid[0] * grid[1] + prefix
    tokens = torch.randn(2, count, 6) if tokens is None else tokens
    return start_unmerge(TokenState.start(tokens, grid, prefix), how)


def merged_twice(variant, state, training):
    """As a block does it, with another metric each time; once by a policy that reduces in one block."""
    policy = build(variant)
    for seed in (1,) if isinstance(policy, ReducingPolicy) else (1, 2):
        metric = torch.randn(state.tokens.shape, generator=generator(seed))
        state = merged(policy, state, metric, 5, training=training)
    return state


@HOW
@GRID
@TRAINING
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_unmerging_an_unmerged_image_is_the_identity(variant, how, grid, training):
    model = tiny_vit(variant, reduction=0).train(training)
    with torch.no_grad():
        output = model(torch.randn(2, 3, *grid), taps=(0, 2), unmerge=how)
    for state in (output.final, *output.taps):
        assert torch.equal(unmerge(state).flatten(2).mT, state.patch_tokens)
        assert unmerge(state).shape == (2, 48, grid[0] // 8, grid[1] // 8)


@HOW
@VARIANT
@TRAINING
def test_what_is_constant_within_a_group_comes_back_exactly(variant, how, training):
    if training and build(variant).supports_relaxed:
        pytest.skip("a relaxed merge has shares in place of groups")
    if how != "residual" and not build(variant).takes_means:
        pytest.skip("what a token receives is added to it")
    chosen = merged_twice(variant, start(how), training)
    groups = slots(chosen)
    values = torch.randint(-8, 8, (2, int(groups.max()) + 1, 6)).float()
    tokens = values.gather(1, groups[..., None].expand(-1, -1, 6))
    state = start(how, tokens=tokens)
    for merge in chosen.merges:
        state = carry_residual(state, apply(state, merge))
    if all(merge.weight is None for merge in chosen.merges):
        assert torch.equal(unmerge_state(state), tokens)
    torch.testing.assert_close(unmerge_state(state), tokens)


@VARIANT
@TRAINING
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "autocast"])
def test_with_residuals_a_merge_leaves_the_unmerged_grid_as_it_was(variant, training, bf16):
    before = start("residual")
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        after = merged_twice(variant, before, training)
        grid = unmerge_state(after)
    assert after.tokens.shape != before.tokens.shape or training
    torch.testing.assert_close(grid, before.tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", [variant for variant in MERGING_WAYS if build(variant).conserves])
def test_residuals_of_a_group_have_mean_zero(variant):
    """So the copy is what remains of them in the mean: no way of unmerging moves a group as a whole."""
    if not build(variant).conserves:
        pytest.skip("says that its means are others")
    state = merged_twice(variant, start("residual"), False)
    copied, kept = unmerge_state(replace(state, residual=None)), unmerge_state(state)
    total = torch.zeros_like(state.tokens).scatter_add(
        1, slots(state)[..., None].expand_as(kept), kept - copied
    )
    torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-5, rtol=0)


@VARIANT
@TRAINING
def test_through_blocks_that_add_nothing_the_residual_brings_the_embedding_back(variant, training):
    """At every tap, and after the last norm as well."""
    model = tiny_vit(variant).train(training)
    for block in model.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        wanted = model(images(), reduction=0, taps=(0,))
        output = model(images(), taps=(0, 1, 2), unmerge="residual")
    for state in output.taps:
        torch.testing.assert_close(unmerge(state), unmerge(wanted.taps[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(unmerge(output.final), unmerge(wanted.final), atol=1e-4, rtol=0)


@VARIANT
def test_copies_of_a_tap_are_the_tokens_that_its_own_map_names(variant):
    """A tap is not unmerged by the map of a later block."""
    model = tiny_vit(variant).eval()
    with torch.no_grad():
        torch.manual_seed(5)
        output = model(images(), taps=(0, 1, 2), unmerge="copy")
    for state in output.taps:
        assert int(slots(state).max()) + 1 == state.tokens.shape[1]
        wanted = torch.stack([tokens[rows] for tokens, rows in zip(state.tokens, slots(state), strict=True)])
        assert torch.equal(unmerge(state).flatten(2).mT, wanted[:, model.num_prefix :])


@pytest.mark.parametrize("variant", RELAXED)
def test_a_copy_in_training_reads_the_slot_with_the_largest_share(variant):
    model = tiny_vit(variant).train()
    with torch.no_grad():
        soft, copied = (model(images(), taps=(1,), unmerge=how).taps[0] for how in ("soft", "copy"))
    assert torch.equal(slots(copied), slots(soft)) and all(merge.share is None for merge in copied.merges)
    for merge in soft.merges[:1]:  # the first merge alone: the slot with the largest share is that of the map
        one = replace(soft, merges=(merge,))
        assert torch.equal(slots(one), source_map(one).argmax(dim=-1))
    assert torch.equal(slots(harden(soft)), slots(soft))


@pytest.mark.parametrize("variant", RELAXED)
@pytest.mark.parametrize("how", ["soft", "residual"])
def test_the_loss_of_a_grid_teaches_every_metric_in_training(variant, how):
    """The last block's as well, which a pooled class token leaves without a gradient."""
    model = tiny_vit(variant).train()
    unmerge(model(images(), unmerge=how).final).pow(3).sum().backward()
    for block in model.blocks:
        assert block.metric.weight.grad.isfinite().all() and block.metric.weight.grad.abs().max() > 0


@pytest.mark.parametrize("how", ["copy", "residual"])
def test_a_probe_moves_the_grid_as_a_merge_does(how):
    """With residuals the direct path from a token to its own position carries nothing: a merge does not
    touch it."""
    model = tiny_vit("dtem").eval()
    for block in model.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    output = model(images(), reduction=0, relaxed=False, unmerge=how, taps=(2,), merge_points_from=0)
    grid = unmerge(output.taps[0])
    grads = torch.autograd.grad(grid.sum(), [point.probe for point in output.merge_points])
    for grad in grads:
        expected = torch.zeros_like(grad)
        expected[:, model.num_prefix :] = float(how == "copy")
        torch.testing.assert_close(grad, expected, atol=1e-6, rtol=0)


def test_another_way_is_refused_by_name():
    with pytest.raises(ConfigError, match="unmerge is 'scatter'; give one of copy, soft, residual"):
        tiny_vit("tome")(images(), unmerge="scatter")
