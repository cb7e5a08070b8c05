"""What a backbone promises, whatever the merge policy and whatever is in front of the patches."""

import copy

import pytest
import torch
from tiny import (
    IMG,
    MASKED,
    MERGING,
    PREFIXES,
    RELAXED,
    SIZES,
    UNLIKE_AT_ZERO,
    VARIANTS,
    assert_trains_on_inference,
    counts_of,
    images,
    serves,
    source_map,
    tiny_vit,
)

from pipeline import unmerge
from pipeline.backbone.build import create_vit
from pipeline.backbone.weights.load import load_weights
from pipeline.errors import ConfigError
from pipeline.merging.unmerge import slots, unmerge_tokens

VARIANT = pytest.mark.parametrize("variant", MERGING)
TRAINING = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])


def gradients(model):
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def probe(output):
    """A scalar that every live patch token and the class token reach, and sizes as well."""
    state = output.final
    live = slice(0, state.num_active)
    weights = torch.linspace(-1, 1, state.tokens.shape[-1])
    return ((state.tokens[:, live].float() @ weights) * state.size[:, live]).sum() + (
        state.tokens[:, 0].float() @ weights.cos()
    ).sum()


@TRAINING
@pytest.mark.parametrize(
    ("prefix", "variant"),
    [(p, v) for p in PREFIXES for v in VARIANTS if p == "class token" or v in UNLIKE_AT_ZERO],
)
def test_no_reduction_equals_timm(variant, prefix, training):
    name, timm_options = PREFIXES[prefix]
    model = tiny_vit(variant, prefix=prefix, reduction=0)
    vit = create_vit(name, img_size=IMG, timm_options=SIZES | timm_options)
    load_weights(model, vit.state_dict())
    with torch.no_grad():
        expected = vit.train(training).forward_features(images())
        state = model.train(training)(images()).final
    torch.testing.assert_close(state.tokens, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(unmerge(state).flatten(2).mT, state.patch_tokens)


@VARIANT
@TRAINING
@pytest.mark.parametrize("prefix", ["class token", "distilled", "registers", "no prefix, average pooling"])
def test_size_is_conserved_and_prefix_tokens_keep_size_one(variant, training, prefix):
    if not serves(variant, prefix):
        pytest.skip("cannot merge this one")
    model = tiny_vit(variant, prefix=prefix).train(training)
    state = model(images()).final
    if model.policy.conserves_size:
        torch.testing.assert_close(
            state.size.sum(1), torch.full((2,), 64.0 + model.num_prefix), atol=1e-3, rtol=0
        )
    assert torch.equal(state.size[:, : model.num_prefix], torch.ones(2, model.num_prefix))
    assert state.num_active == 64 + model.num_prefix - 3 * 8


@VARIANT
@TRAINING
def test_token_counts_of_deit_at_r_16(variant, training):
    sizes = {"patch_size": 16, "depth": 12, "embed_dim": 24, "num_heads": 3}
    model = tiny_vit(variant, reduction=16, timm_options=sizes, img_size=224).train(training)
    with torch.no_grad():
        output = model(images(1, 224), taps=range(12))
    live = counts_of(model, [181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21, 11], 224)
    assert [state.num_active for state in output.taps] == live
    num_slots = 197 if training and model.policy.supports_relaxed else None
    assert [state.tokens.shape[1] for state in output.taps] == [num_slots or count for count in live]
    if model.policy.conserves_size:
        torch.testing.assert_close(output.final.size.sum(1), torch.tensor([197.0]), atol=1e-3, rtol=0)


@VARIANT
@TRAINING
def test_the_source_map_of_every_tap_is_that_of_its_block(variant, training):
    """Slots of a tap hold what their sizes say, and a later tap only joins what an earlier one had apart."""
    model = tiny_vit(variant).train(training)
    with torch.no_grad():
        torch.manual_seed(5)
        output = model(images(), taps=(0, 1, 2), unmerge="soft")
    for count, state in zip(counts_of(model, (57, 49, 41)), output.taps, strict=True):
        weights = source_map(state)
        assert state.num_active == count and weights.shape == (2, 65, state.tokens.shape[1])
        if model.policy.conserves_size:
            torch.testing.assert_close(weights.sum(1), state.size, atol=1e-4, rtol=1e-4)
        assert unmerge(state).shape == (2, 48, 8, 8)
    if all(merge.is_hard for merge in output.final.merges):
        early, late = slots(output.taps[0]), slots(output.taps[2])
        for image in range(2):
            joined = {tuple(pair) for pair in torch.stack([early[image], late[image]], dim=1).tolist()}
            assert len(joined) == len({slot for slot, _ in joined})
    shallow = tiny_vit(variant, reduction=[model.schedule(model.grid)[0], 0, 0]).train(training)
    shallow.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.manual_seed(5)
        first = shallow(images(), taps=(0,), unmerge="soft").taps[0]
    assert torch.equal(unmerge(first), unmerge(output.taps[0]))


@pytest.mark.parametrize("variant", [*RELAXED, *MASKED])
def test_a_relaxed_merge_is_unmerged_by_its_shares_unless_copies_are_asked_for(variant):
    model = tiny_vit(variant).train()
    with torch.no_grad():
        plain, soft = model(images()).final, model(images(), unmerge="soft").final
    assert torch.equal(unmerge(plain), unmerge(soft))


@pytest.mark.parametrize(
    ("variant", "training"), [(v, t) for v in VARIANTS for t in (False, True) if (v, t) != ("random", True)]
)
def test_permuting_the_batch_permutes_the_output(variant, training):
    """In float64, as merges are a chain of choices."""
    model, order = tiny_vit(variant).double().train(training), torch.tensor([2, 0, 3, 1])
    batch = images(4).double()
    with torch.no_grad():
        plain, permuted = model(batch).final, model(batch[order]).final
    assert plain.tokens.dtype == plain.size.dtype == torch.float64
    live = plain.num_active  # behind them, what is used up has no size to be ordered by
    torch.testing.assert_close(permuted.tokens[:, :live], plain.tokens[order, :live], atol=1e-8, rtol=0)
    torch.testing.assert_close(permuted.size, plain.size[order], atol=1e-8, rtol=0)


@pytest.mark.parametrize("variant", [*RELAXED, *MASKED])
def test_the_gradient_reaches_every_metric_embedding(variant):
    model = tiny_vit(variant).train()
    probe(model(images())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is idle"
        assert parameter.grad.isfinite().all(), name
        if ".metric." in name:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("variant", [*RELAXED, *MASKED])
def test_a_class_token_alone_leaves_only_the_last_metric_without_gradient(variant):
    model = tiny_vit(variant).train()
    model(images()).final.tokens[:, 0].pow(3).sum().backward()
    firsts = [next(block.metric.parameters()) for block in model.blocks]
    assert [own.grad.abs().max().item() > 0 for own in firsts] == [True, True, False]


@pytest.mark.parametrize("variant", RELAXED)
def test_the_metric_sends_no_gradient_into_the_norm_before_it(variant):
    model, seen = tiny_vit(variant).train(), {}
    block = model.blocks[1]
    block.norm1.register_forward_hook(lambda module, args, output: seen.update(norm=output))
    block.metric.register_forward_hook(lambda module, args, output: seen.update(metric=output))
    model(images())
    assert torch.autograd.grad(seen["metric"].sum(), seen["norm"], allow_unused=True, retain_graph=True) == (
        None,
    )


@TRAINING
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_nothing_is_remembered_between_two_forwards(variant, training):
    model = tiny_vit(variant).train(training)
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        model(images(), reduction=3)
        model(images(3, seed=7), reduction=12, taps=(1,), unmerge="soft")
        torch.manual_seed(5)
        again = model(images(), reduction=10).final
        torch.manual_seed(5)
        expected = fresh(images(), reduction=10).final
    assert torch.equal(again.tokens, expected.tokens) and torch.equal(again.size, expected.size)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_two_forwards_may_come_before_one_backward(variant):
    model = tiny_vit(variant).train()
    first, second = images(seed=1), images(seed=2)
    expected = {}
    for batch in (first, second):
        torch.manual_seed(5)
        model.zero_grad()
        probe(model(batch)).backward()
        for name, grad in gradients(model).items():
            expected[name] = expected.get(name, 0) + grad
    model.zero_grad()
    torch.manual_seed(5)
    one = probe(model(first))
    torch.manual_seed(5)
    other = probe(model(second))
    (one + other).backward()
    torch.testing.assert_close(gradients(model), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_activation_checkpointing_changes_neither_result_nor_gradients(variant):
    results = []
    for grad_checkpointing in (False, True):
        model = tiny_vit(variant, drop_path=0.2, grad_checkpointing=grad_checkpointing).train()
        torch.manual_seed(5)
        output = model(images(4))
        probe(output).backward()
        results.append((output.final.tokens, output.final.size, gradients(model)))
    torch.testing.assert_close(results[1], results[0], atol=0, rtol=0)


@TRAINING
@VARIANT
def test_bfloat16_keeps_sizes_and_weights_in_float32(variant, training):
    model = tiny_vit(variant).train(training)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images(), unmerge="soft")
    state = output.final
    assert state.size.dtype == torch.float32
    if model.policy.conserves_size:
        torch.testing.assert_close(state.size.sum(1), torch.full((2,), 65.0), atol=1e-3, rtol=0)
    assert all(merge.share is None or merge.share.dtype == torch.float32 for merge in state.merges)
    if training and model.policy.supports_relaxed:
        probe(output).backward()
        assert all(own.grad.isfinite().all() for block in model.blocks for own in block.metric.parameters())


@TRAINING
@VARIANT
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_of_16_bits_keeps_sizes_and_weights_in_float32(variant, training, dtype):
    """Without autocast; and whatever the default dtype is, in which sizes above 2048 would be rounded."""
    model = tiny_vit(variant).to(dtype).train(training)
    torch.set_default_dtype(dtype)
    try:
        state = model(images().to(dtype), unmerge="soft").final
        grid = unmerge(state)
    finally:
        torch.set_default_dtype(torch.float32)
    assert state.tokens.dtype == grid.dtype == dtype and state.size.dtype == torch.float32
    assert state.tokens.isfinite().all() and grid.isfinite().all()
    assert all(merge.share is None or merge.share.dtype == torch.float32 for merge in state.merges)
    if model.policy.conserves_size:
        torch.testing.assert_close(state.size.sum(1), torch.full((2,), 65.0), atol=1e-3, rtol=0)


def test_negative_taps_count_from_the_end_and_blocks_that_are_not_there_are_refused():
    model = tiny_vit("tome").eval()
    with torch.no_grad():
        asked, wanted = model(images(), taps=(-1, 0)).taps, model(images(), taps=(0, 2)).taps
    assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(asked, wanted, strict=True))
    for taps in [(3,), (0, 7), (-4,)]:
        with pytest.raises(ConfigError, match="taps are .*; give blocks of the 3, 0 to 2"):
            model(images(), taps=taps)


def test_merge_points_count_blocks_as_taps_do():
    model = tiny_vit("tome").eval()
    for first in (-3, -1, 0, 1, 2):
        points = model(images(), reduction=0, merge_points_from=first).merge_points
        assert len(points) == len(range(3)[first:])
    for first in (3, -4):
        with pytest.raises(ConfigError, match=f"merge_points_from is {first}; give a block of the 3, 0 to 2"):
            model(images(), merge_points_from=first)


@VARIANT
@pytest.mark.parametrize("size", [(64, 96), (48, 64), (32, 32)])
def test_any_input_size_that_divides_is_taken(variant, size):
    model = tiny_vit(variant, reduction=0.8).eval()
    with torch.no_grad():
        output = model(torch.randn(2, 3, *size), taps=(1,))
    assert output.final.grid == (size[0] // 8, size[1] // 8)
    assert unmerge(output.final).shape == (2, 48, size[0] // 8, size[1] // 8)
    tap = output.taps[0]
    assert unmerge_tokens(tap.tokens, tap.merges).shape[1] == size[0] * size[1] // 64 + 1


@VARIANT
@TRAINING
def test_merging_until_nothing_is_left_to_merge(variant, training):
    model = tiny_vit(variant, reduction=64).train(training)
    output = model(images(), taps=(0, 1, 2))
    assert [state.num_active for state in output.taps] == counts_of(model, [33, 17, 9])
    assert output.final.tokens.isfinite().all()
    if training and model.policy.supports_relaxed:
        probe(output).backward()
        assert all(grad.isfinite().all() for grad in gradients(model).values())


def test_straight_through_trains_on_the_forward_pass_of_inference():
    assert_trains_on_inference("dtem_straight_through")


@VARIANT
@pytest.mark.parametrize("how", [None, "copy", "soft", "residual"])
def test_a_batch_can_be_empty(variant, how):
    for training in (False, True):
        model = tiny_vit(variant).train(training)
        assert len(model(torch.randn(0, 3, 64, 64), unmerge=how).final.tokens) == 0
