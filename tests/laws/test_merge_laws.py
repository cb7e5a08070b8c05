"""What every merge policy promises about one merge, in inference and in training."""

from dataclasses import replace

import pytest
import torch
from tiny import MERGING_WAYS, WAYS, merged, random_state, source_map

from pipeline.merging.evidence import Evidence
from pipeline.merging.policies import POLICIES
from pipeline.merging.policy import merge
from pipeline.merging.reducer import ReducingPolicy
from pipeline.merging.schedule import mergeable
from pipeline.merging.unmerge import unmerge_tokens
from pipeline.token_state import TokenState

TRAINING = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
VARIANT = pytest.mark.parametrize("variant", MERGING_WAYS)
BY_IMPORTANCE = ("as_vit", "diffrate", "evit", "gtp", "mctf")
"""Policies under which a token does not give to the one that is most like it."""
BY_PLACE = ("algm", "ailurus")
"""Policies under which equal tokens that lie apart may stay apart."""


def build(variant, prefix=1):
    """The policy. Skips the test where it asks for a class token, and there is none."""
    name, options = WAYS[variant]
    policy = POLICIES.build(name, **options)
    if prefix == 0 and "class_token" in policy.requires:
        pytest.skip("asks for a class token")
    return policy


def keeps_tokens(policy, training):
    return training and policy.supports_relaxed


@TRAINING
@VARIANT
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_a_merge_conserves_size_and_the_size_weighted_mean(variant, training, prefix):
    """Where the policy says so. What drops a part of tokens loses size, and never gains any."""
    policy, before = build(variant, prefix), random_state(num_tokens=33, prefix=prefix)
    after = merged(policy, before, before.tokens, 7, training=training)
    sizes = [state.size.sum(1) for state in (before, after)]
    if not policy.conserves_size:
        assert not policy.conserves and (sizes[1] < sizes[0]).all()
        return
    torch.testing.assert_close(sizes[1], sizes[0])
    if not policy.conserves:
        return
    total = [(state.tokens * state.size[..., None]).sum(1) for state in (before, after)]
    torch.testing.assert_close(total[1], total[0], atol=1e-4, rtol=1e-5)


@TRAINING
@VARIANT
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_a_merge_leaves_the_prefix_alone_and_r_fewer_live_tokens(variant, training, prefix):
    policy, before = build(variant, prefix), random_state(num_tokens=33, prefix=prefix)
    after = merged(policy, before, before.tokens, 7, training=training)
    assert torch.equal(after.tokens[:, :prefix], before.tokens[:, :prefix])
    assert torch.equal(after.size[:, :prefix], before.size[:, :prefix])
    assert after.num_active == 33 - 7
    assert after.tokens.shape[1] == (33 if keeps_tokens(policy, training) else 33 - 7)


@TRAINING
@pytest.mark.parametrize("variant", list(WAYS))
def test_no_reduction_is_the_identity(variant, training):
    before = random_state()
    after = merged(build(variant), before, before.tokens, 0, training=training)
    assert torch.equal(after.tokens, before.tokens) and torch.equal(after.size, before.size)
    assert torch.equal(unmerge_tokens(after.tokens, after.merges), before.tokens)


@pytest.mark.parametrize(("variant", "training"), [(v, t) for v in MERGING_WAYS for t in (False, True)])
def test_permuting_the_batch_permutes_the_merge(variant, training):
    """In float64: a rounding that depends on the place in the batch would choose another of two nearly equal
    pairs."""
    before, order = random_state(num_tokens=33, batch=4, dtype=torch.float64), torch.tensor([2, 0, 3, 1])
    permuted = replace(before, tokens=before.tokens[order], size=before.size[order])
    policy = build(variant)
    after = merged(policy, before, before.tokens, 7, training=training)
    after_permuted = merged(policy, permuted, permuted.tokens, 7, training=training)
    live = after.num_active  # behind them, what is used up has no size to be ordered by
    torch.testing.assert_close(after_permuted.tokens[:, :live], after.tokens[order, :live], atol=1e-9, rtol=0)
    torch.testing.assert_close(after_permuted.size, after.size[order], atol=1e-9, rtol=0)


@TRAINING
@VARIANT
@pytest.mark.parametrize("prefix", [0, 1, 2, 4])
@pytest.mark.parametrize("patches", [0, 1, 2, 3, 4])
def test_with_too_few_live_tokens_the_reduction_is_capped(variant, training, prefix, patches):
    policy, live = build(variant, prefix), prefix + patches
    tail = 3 if keeps_tokens(policy, training) else 0
    if live + tail == 0:
        pytest.skip("no tokens at all")
    before = random_state(num_tokens=live + tail, prefix=prefix, live=live)
    after = merged(policy, before, before.tokens, 8, training=training)
    assert after.num_active == live - mergeable(live, prefix) == live - patches // 2
    assert after.tokens.isfinite().all()
    kept = after.tokens[:, after.tokens.shape[1] - tail :]
    torch.testing.assert_close(kept, before.tokens[:, live:], rtol=1e-6, atol=0)


@TRAINING
@VARIANT
def test_tokens_of_size_zero_leave_everything_finite(variant, training):
    before = random_state(num_tokens=17)
    size = before.size.clone()
    size[:, 3:12] = 0
    size.requires_grad_()
    tokens = before.tokens.clone().requires_grad_()
    metric = before.tokens.clone().requires_grad_()
    after = merged(build(variant), replace(before, tokens=tokens, size=size), metric, 7, training=training)
    assert after.tokens.isfinite().all() and after.size.isfinite().all()
    (after.tokens.pow(2).sum() + after.size.pow(2).sum()).backward()
    for leaf in (tokens, size, metric):
        assert leaf.grad is None or leaf.grad.isfinite().all()


@TRAINING
@VARIANT
def test_a_metric_of_zeros_leaves_everything_finite(variant, training):
    before = random_state()
    metric = torch.zeros_like(before.tokens, requires_grad=True)
    after = merged(build(variant), before, metric, 4, training=training)
    assert after.tokens.isfinite().all()
    if training and build(variant).embeds:
        after.tokens.pow(2).sum().backward()
        assert metric.grad.isfinite().all()


@TRAINING
@VARIANT
def test_columns_of_the_source_map_are_the_sizes(variant, training):
    """From tokens of size 1, over two merges; the map that a head would ask for: soft through a relaxed
    merge. Each position reads tokens that sum to one, also where what it held was dropped."""
    policy = build(variant)
    num_tokens, prefix = 33, 1
    state = TokenState(torch.randn(2, num_tokens, 6), torch.ones(2, num_tokens), (4, 8), prefix, num_tokens)
    original = state.tokens
    for _ in range(1 if isinstance(policy, ReducingPolicy) else 2):
        state = merged(policy, state, state.tokens, 7, training=training)
    weights = source_map(state)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, num_tokens))
    if policy.conserves_size:
        torch.testing.assert_close(weights.sum(1), state.size)
    if not policy.conserves:
        return
    torch.testing.assert_close(
        weights.mT @ original / state.size[..., None].clamp(min=1e-12),
        state.tokens * (state.size[..., None] > 0),
    )


@pytest.mark.parametrize(
    "variant",
    [v for v in MERGING_WAYS if build(v).needs and WAYS[v][0] not in (*BY_IMPORTANCE, *BY_PLACE)],
)
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_unmerging_restores_tokens_that_are_equal_in_pairs(variant, prefix):
    pairs = torch.randint(-8, 8, (2, 8, 5)).float()
    patches = pairs.repeat_interleave(2, dim=1)
    tokens = torch.cat([torch.randn(2, prefix, 5), patches], dim=1)
    state = TokenState.start(tokens, (4, 4), prefix)
    after = merged(build(variant), state, tokens, 8)
    assert after.tokens.shape[1] == prefix + 8
    assert torch.equal(unmerge_tokens(after.tokens, after.merges), tokens)


@pytest.mark.parametrize(
    "variant", [v for v in MERGING_WAYS if WAYS[v][0] not in (*BY_IMPORTANCE, "random", "ailurus", "stvit")]
)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_unmerging_restores_tokens_that_are_equal_in_cells_of_the_grid(variant, prefix):
    """Cells of 2 x 2 patches: also a policy that merges neighbours merges no patches of two of them."""
    cells = torch.randint(-8, 8, (2, 2, 2, 5)).float()
    patches = cells.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).flatten(1, 2)
    tokens = torch.cat([torch.randn(2, prefix, 5), patches], dim=1)
    after = merged(build(variant), TokenState.start(tokens, (4, 4), prefix), tokens, 8)
    assert after.tokens.shape[1] == prefix + 8
    assert torch.equal(unmerge_tokens(after.tokens, after.merges), tokens)


@VARIANT
def test_bfloat16_tokens_merge_with_sizes_in_float32(variant):
    before = random_state(num_tokens=33)
    state = TokenState(
        before.tokens.bfloat16(),
        before.size,
        before.grid,
        before.num_prefix,
        before.num_active,
    )
    for training in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            after = merged(build(variant), state, before.tokens.bfloat16(), 7, training=training)
        assert after.tokens.dtype == torch.bfloat16 and after.size.dtype == torch.float32
        if build(variant).conserves_size:
            torch.testing.assert_close(after.size.sum(1), before.size.sum(1))


@pytest.mark.parametrize("variant", [v for v in MERGING_WAYS if "one_grid" not in build(v).requires])
@pytest.mark.parametrize(("patches", "padding", "r"), [(9, 3, 6), (7, 1, 4), (3, 5, 4), (1, 3, 2)])
@pytest.mark.parametrize("prefix", [1, 2])
def test_beside_padding_an_image_loses_as_many_patches_as_alone(variant, prefix, patches, padding, r):
    """Also where padding among the sources does not make up for what they keep. In training too, but by the
    release, which ranks by size. Random pairs are others, as they are drawn by the number of tokens."""
    policy, own, count = build(variant), min(r, patches // 2), prefix + patches
    tokens = torch.randn(1, count + padding, 6, dtype=torch.float64)
    size = (torch.arange(count + padding) < count).to(tokens.dtype)[None]
    grid = (1, patches + padding)
    state = TokenState(tokens, size, grid, prefix, count + padding, padded=True, quota=torch.tensor([own]))
    alone = TokenState.start(tokens[:, :count], (1, patches), prefix)
    shown = Evidence(tokens, tokens[:, None], tokens[:, None], scale=1.0, size=size, embed=lambda x: x)
    padded, single = merge(policy, shown, state, r), merged(policy, alone, alone.tokens, own)
    left = count - own
    assert (padded.size[:, :left] > 0).all() and not padded.size[:, left:].any()
    if WAYS[variant][0] != "random":
        torch.testing.assert_close(padded.tokens[:, :left], single.tokens)
        torch.testing.assert_close(padded.size[:, :left], single.size)
    if policy.supports_relaxed and variant != "dtem_reference":
        relaxed = merge(policy, shown, state, r, relaxed=True)
        live = relaxed.size[:, : relaxed.num_active] > 0
        assert int(live.sum()) == left and relaxed.num_active == count + padding - r
