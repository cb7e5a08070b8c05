"""Labels follow tokens: one number for each token stands for the paper's distributions over classes, through
attention and merges of any policy. B images, M tokens, H heads, K classes."""

from dataclasses import replace

import pytest
import torch
from tiny import MERGING, PREFIXES, VARIANTS, generator, images, merged, random_state, serves, tiny_vit
from torch._dynamo.backends.debugging import aot_eager

from pipeline.backbone.attention import Place, mix
from pipeline.backbone.compiled import compile_backbone
from pipeline.backbone.partner import followed, following, partner_of, start_partner
from pipeline.backbone.rotary import RotaryRule
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.token_state import PARTNER, Carried, TokenState

CLASSES = 7
FORMS = [("tome", prefix, "mean_rotation") for prefix in PREFIXES]
FORMS += [("tome", "eva02: rotary positions", rule) for rule in ("destination", "mean_coordinate")]
FORMS += [
    (name, "class token", "mean_rotation")
    for name in ("dtem_soft", "dtem_reference", "mctf", "evit", "gtp", "none")
]


def started(model, dtype=torch.float32, batch=2):
    """A quarter of the first image is the partner's, and a half of the others."""
    parts = torch.zeros(batch, *model.grid, dtype=dtype)
    parts[0, : model.grid[0] // 2, : model.grid[1] // 2] = 1
    parts[1:, :, : model.grid[1] // 2] = 1
    return start_partner(parts, model.num_prefix)


@pytest.mark.parametrize(("prefix", "expected"), [(0.25, 0.25), (0.5, 0.4)])
def test_the_share_of_a_uniform_attention_is_the_one_by_hand(prefix, expected):
    """Of four patches one is the partner's: .5 ((.75 + 3) / 5 + .75) = .75 is the image's own, and .6 where
    the class token starts with a half."""
    carried = {PARTNER: Carried(torch.tensor([[prefix, 0.0, 0.0, 0.0, 1.0]]), "mean")}
    state = TokenState(torch.zeros(1, 5, 4), torch.ones(1, 5), (2, 2), 1, 5, carried=carried)
    q, k, v = torch.zeros(1, 2, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    mixed = mix(q, k, v, following(Place(), state), scale=0.3)
    assert partner_of(followed(state, mixed))[0, 0].item() == pytest.approx(expected, abs=1e-6)


def watch(model):
    """The matrices [B, M, M] of attention, the mean over heads, and whether tokens merged before it, of each
    block that computes from now on."""
    seen = []

    def watched(attend):
        def call(x, place):
            found = attend(x, place)
            if place.ahead is not None:
                seen[-1] = (seen[-1][0], True)
            else:
                seen.append((weights_of(found, place), False))
            return found

        return call

    for block in model.blocks:
        block.attend = watched(block.attend)
    return seen


def weights_of(attended, place):
    logits = attended.mixed.q @ attended.mixed.k.mT * attended.scale
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    weights = weights if place.size is None else weights * place.size[:, None, None]
    return (weights / weights.sum(-1, keepdim=True)).mean(1)


def arrivals(merge, size):
    """[B, slots, M]: which part of each token arrives in each slot. size [B, M]."""
    batch, count = size.shape
    slots, rows = merge.keep.shape[1], torch.arange(batch)[:, None]
    share = torch.ones_like(size.flatten()[merge.source]) if merge.share is None else merge.share
    left = torch.ones_like(size.flatten())
    if merge.share is not None:
        left = left.index_add(0, merge.source.flatten(), -share.flatten()).clamp(min=1e-7)
    found = size.new_zeros(batch, slots, count)
    found[rows, torch.arange(slots).expand(batch, -1), merge.keep - rows * count] = left[merge.keep]
    source, slot = merge.source - rows * count, merge.slot - rows * slots
    if merge.spread is not None:
        return found.scatter_add(2, source[:, None].expand(-1, slots, -1), merge.spread)
    share = share if merge.part is None else share * merge.part
    return found.index_put((rows.expand_as(source), slot, source), share, accumulate=True)


def papers_form(labels, seen, merges):
    """Labels [B, M, K] behind all blocks: each multiplied by the matrices of attention and of merges."""
    size = torch.ones_like(labels[..., 0])
    for number, (weights, merged_before) in enumerate(seen):
        to_slots, after = None, size
        if merges:
            merge = merges[number]
            arrive = arrivals(merge, size)
            mass = arrive * (size if merge.weight is None else merge.weight)[:, None]
            to_slots, after = mass / mass.sum(-1, keepdim=True), (arrive * size[:, None]).sum(-1)
            if merged_before:
                labels = to_slots @ labels
                weights = to_slots @ weights @ (arrive > 0).to(weights.dtype).mT
        labels = (weights @ labels + labels) / 2
        torch.testing.assert_close(labels.sum(-1), torch.ones_like(labels[..., 0]))
        if to_slots is not None and not merged_before:
            labels = to_slots @ labels
        size = after
    return labels


@pytest.mark.parametrize(("variant", "prefix", "rotary"), FORMS)
@torch.no_grad()
def test_one_number_is_the_papers_distribution_over_classes(variant, prefix, rotary):
    if not serves(variant, prefix):
        pytest.skip("the policy does not merge this model")
    model = tiny_vit(variant, prefix=prefix, rotary=RotaryRule(rotary)).double()
    carried = started(model, torch.float64)
    own, other = torch.rand(2, 2, 1, CLASSES, generator=generator(3)).double().softmax(-1)

    def mixture(numbers):
        return own + numbers[..., None] * (other - own)

    seen = watch(model)
    final = model(images().double(), training=True, carried=carried).final
    assert len(seen) == model.depth and len(final.merges) == (model.depth if variant != "none" else 0)
    expected, found = papers_form(mixture(carried[PARTNER].values), seen, final.merges), partner_of(final)
    live = final.size > 1e-3
    torch.testing.assert_close(mixture(found)[live], expected[live], atol=1e-6, rtol=0)
    started_with = carried[PARTNER].values[:, : found.shape[1]]
    assert (found - started_with).abs().max() > 1e-3, "labels have moved"


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_nothing_was_mixed_into_stays_so_exactly(variant):
    """And what is of the partner alone stays so up to rounding; nothing of it asks for a gradient."""
    model = tiny_vit(variant).train()
    ends = []
    for number in (0.0, 1.0):
        carried = start_partner(torch.full((2, *model.grid), number), model.num_prefix)
        ends.append(partner_of(model(images(), carried=carried).final))
    assert not ends[0].any() and not ends[0].requires_grad
    torch.testing.assert_close(ends[1], torch.ones_like(ends[1]))


@pytest.mark.parametrize("variant", MERGING)
@pytest.mark.parametrize("training", [False, True])
def test_a_merge_of_tokens_with_the_same_number_keeps_it(variant, training):
    policy, options = VARIANTS[variant]
    numbers = torch.full((2, 17), 0.3)
    numbers[:, 0] = 0.8
    state = replace(random_state(17), carried={PARTNER: Carried(numbers, "mean")})
    after = merged(POLICIES.build(policy, **options), state, state.tokens, 4, training=training)
    found = partner_of(after)
    assert after.merges
    torch.testing.assert_close(found[:, 0], numbers[:, 0])
    torch.testing.assert_close(found[:, 1:], torch.full_like(found[:, 1:], 0.3))


@pytest.mark.parametrize("variant", ["none", "tome", "dtem_soft", "mctf", "evit"])
def test_the_prefix_alone_has_the_same_labels_and_recomputed_blocks_too(variant):
    x = images().double()
    found = []
    for checkpointing, alone in ((False, False), (False, True), (True, False)):
        model = tiny_vit(variant, grad_checkpointing=checkpointing).double()
        output = model(x, training=True, carried=started(model, torch.float64), prefix_alone=alone)
        if checkpointing:
            output.final.tokens.sum().backward()
        found.append(partner_of(output.final)[:, 0])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0], atol=0, rtol=0)


def test_tokens_that_attend_by_size_give_their_labels_by_size():
    """And not where the model attends without."""
    found = {}
    for kind in ("always", "never"):
        model = tiny_vit("tome", reduction=[16, 0, 0], proportional_attention=kind).double()
        found[kind] = partner_of(model(images().double(), carried=started(model, torch.float64)).final)
    assert (found["always"] - found["never"]).abs().max() > 1e-4


@torch.no_grad()
def test_under_virtual_unmerging_each_patch_gives_its_label_at_its_own_position():
    """Attention is that of all patches, whose outputs are averaged over the members of a token."""
    rule = RotaryRule("virtual_unmerging")
    model = tiny_vit("tome", prefix="eva02: rotary positions", reduction=[16, 0, 0], rotary=rule).double()
    places, attend = [], model.blocks[1].attend

    def watched(x, place):
        places.append((attend(x, place), place))
        return places[-1][0]

    model.blocks[1].attend = watched
    model(images().double(), carried=started(model, torch.float64))
    ((attended, place),) = places
    rows = place.rope.rows
    q, k = (
        place.rope.rotate(x.transpose(1, 2).flatten(0, 1)[rows].transpose(1, 2))
        for x in (attended.mixed.q, attended.mixed.k)
    )
    weights = (q @ k.mT * attended.scale).softmax(-1).mean(1)
    every = weights @ place.partner.flatten()[rows][..., None]
    count, total = (torch.zeros(place.partner.numel(), dtype=torch.float64) for _ in range(2))
    total.index_add_(0, rows.flatten(), every.flatten())
    count.index_add_(0, rows.flatten(), torch.ones_like(every.flatten()))
    torch.testing.assert_close(attended.mixed.partner.flatten(), total / count)


@pytest.mark.slow
def test_a_compiled_block_moves_labels_as_the_plain_one():
    torch.compiler.reset()
    model, x = tiny_vit("tome", timm_options={"depth": 1}).double(), images().double()
    carried = started(model, torch.float64)
    plain = partner_of(model(x, carried=carried).final)
    compile_backbone(model, "blocks", backend=aot_eager)
    torch.testing.assert_close(partner_of(model(x, carried=carried).final), plain)
    torch.compiler.reset()


def test_tokens_without_labels_are_refused_by_who_reads_them():
    with pytest.raises(ConfigError, match="these tokens carry none.*encode_batch"):
        partner_of(random_state())
