"""TokenMixup inside of the backbone: which images are mixed where, whose tokens are attended to, and what
holds under every policy."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from tiny import MERGING, PREFIXES, ROTARY, images, random_state, tiny_vit
from torch.nn import functional as F

from pipeline.backbone.assignment import largest_assignment
from pipeline.backbone.saliency import BY_ALL, BY_CLASS
from pipeline.backbone.token_mixup import (
    Horizontal,
    TokenMixing,
    Vertical,
    exchanged,
    gains,
    label_share,
    matched,
    mix_across,
    most_salient,
)
from pipeline.errors import ConfigError
from pipeline.merging.reducer import ReducingPolicy
from pipeline.token_state import ROPE, SALIENCY, Carried

TWO = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
"""Two images of two patches."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_saliency(batch, places, seed=0):
    return torch.rand(batch, places, generator=generator(seed), dtype=torch.float64)


def everything(batch):
    return torch.ones(batch, dtype=torch.bool)


def test_two_images_take_from_each_other_what_is_more_salient():
    torch.testing.assert_close(gains(TWO, 0.0), torch.tensor([[0.0, 0.7], [0.7, 0.0]]))
    partner, taken = matched(TWO, everything(2), 0.0)
    assert partner.tolist() == [1, 0] and taken.tolist() == [[False, True], [True, False]]
    share = label_share(TWO, partner, taken)
    torch.testing.assert_close(share, torch.tensor([0.8 / 1.7, 0.9 / 1.7]))


@pytest.mark.parametrize(
    ("easy", "margin"), [(-math.inf, 0.0), (math.inf, math.inf)], ids=["no easy image", "no margin is met"]
)
def test_where_nothing_is_mixed_the_state_is_the_same_to_the_bit(easy, margin):
    state, saliency = random_state(9), random_saliency(2, 8)
    after, mix = mix_across(state, saliency, Horizontal(0, margin, easy), torch.zeros(2))
    assert torch.equal(after.tokens, state.tokens)
    assert not mix.share.any() and not mix.replaced.any()


@pytest.mark.parametrize("hard", [(), (0,), (1, 3), (0, 1, 2, 3, 4)])
def test_partners_are_those_of_the_largest_sum_over_easy_images(hard):
    saliency, easy = random_saliency(5, 7), everything(5)
    easy[list(hard)] = False
    rows = [row for row in range(5) if easy[row]]
    won = gains(saliency, 0.01)
    best = max(
        sum(float(won[row, column]) for row, column in zip(rows, columns, strict=True))
        for columns in itertools.permutations(range(5), len(rows))
    )
    partner, taken = matched(saliency, easy, 0.01)
    assert float(won[rows, partner[rows]].sum()) == pytest.approx(best)
    assert len({int(partner[row]) for row in rows}) == len(rows), "a partner of one image at most"
    assert not taken[list(hard)].any() and all(int(partner[row]) == row for row in hard)


def test_gains_in_parts_are_those_at_once(monkeypatch):
    saliency = random_saliency(6, 5)
    whole = gains(saliency, 0.05)
    monkeypatch.setattr("pipeline.backbone.token_mixup.CHUNK", 2 * 6 * 5)
    assert torch.equal(gains(saliency, 0.05), whole)


def test_numbers_that_are_not_finite_win_nothing():
    won = torch.tensor([[math.nan, 1.0], [math.inf, 5.0]])
    assert largest_assignment(won).tolist() == [0, 1]


def test_the_share_of_a_label_is_that_of_what_is_salient():
    saliency = random_saliency(6, 9)
    partner, taken = matched(saliency, everything(6), 0.02)
    assert 0 < taken.sum() < taken.numel()
    for i, share in enumerate(label_share(saliency, partner, taken)):
        kept, given = saliency[i][~taken[i]].sum(), saliency[partner[i]][taken[i]].sum()
        torch.testing.assert_close(share, given / (kept + given))


def test_tokens_travel_with_what_they_carry_and_the_prefix_stays():
    batch, num_tokens = 3, 5
    values = torch.randn(batch, num_tokens, 2, generator=generator())
    graph = torch.rand(batch, num_tokens, num_tokens, generator=generator(1))
    carried = {
        "label": Carried(values, "mean"),
        "graph": Carried(graph, "pairwise"),
        ROPE: Carried(torch.arange(batch * num_tokens).view(batch, num_tokens), "first"),
    }
    state = replace(random_state(num_tokens, batch=batch), carried=carried)
    partner = torch.tensor([1, 2, 0])
    taken = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])
    after = exchanged(state, partner, taken)
    assert torch.equal(after.tokens[:, 0], state.tokens[:, 0])
    everywhere = torch.cat([torch.zeros(batch, 1, dtype=torch.bool), taken], dim=1)
    for i, j in itertools.product(range(batch), range(num_tokens)):
        source = int(partner[i]) if everywhere[i, j] else i
        assert torch.equal(after.tokens[i, j], state.tokens[source, j])
        assert torch.equal(after.carried["label"].values[i, j], values[source, j])
        for k in range(num_tokens):
            other = int(partner[i]) if everywhere[i, k] else i
            wanted = (graph[source, j, k] + graph[other, j, k]) / 2
            torch.testing.assert_close(after.carried["graph"].values[i, j, k], wanted)
    assert after.carried[ROPE] is state.carried[ROPE], "positions are those of places"


def test_the_most_salient_patches_are_kept_and_no_more_than_there_are():
    state = random_state(6)
    saliency = torch.tensor([[0.1, 0.5, 0.2, 0.9, 0.3], [0.5, 0.4, 0.3, 0.2, 0.1]])
    found = most_salient(state, saliency, 2)
    assert torch.equal(found[0], state.tokens[0, [4, 2]]) and torch.equal(found[1], state.tokens[1, [1, 2]])
    with pytest.raises(ConfigError, match="keeps 6 tokens of each block, and an image has 5 patches"):
        most_salient(state, saliency, 6)


def backbone(variant="none", *, reduction=0, prefix="class token", **options):
    """In float64, with attention that is not even."""
    made = tiny_vit(variant, reduction=reduction, prefix=prefix, **options).double()
    for name, parameter in made.named_parameters():
        if name.endswith(("qkv.weight", "q_proj.weight", "k_proj.weight")):
            parameter.data *= 4
    return made


def mixing(of, *, horizontal=None, vertical=None, hard=0.0):
    kind = BY_CLASS if "class_token" in of.traits else BY_ALL
    return TokenMixing(
        kind, horizontal, vertical, difficulty=lambda state: state.tokens[:, 0, 0].float() * 0 + hard
    )


WITHOUT_ROTARY = [name for name in PREFIXES if name not in ROTARY]


@pytest.mark.parametrize("prefix", WITHOUT_ROTARY)
def test_no_kept_tokens_give_plain_attention_and_some_do_not(prefix):
    made, x = backbone(prefix=prefix), images(2).double()
    plain = made(x).final.tokens
    none, some = (made(x, mixing=mixing(made, vertical=Vertical(2, keep))).final.tokens for keep in (0, 3))
    torch.testing.assert_close(none, plain)
    assert some.shape == plain.shape and (some - plain).abs().max() > 1e-10


def test_a_vertical_block_attends_to_what_was_most_salient_in_each_earlier_one():
    """By the block's own layers, one after the other."""
    made, x = backbone(), images(2).double()
    found = made(x, mixing=mixing(made, vertical=Vertical(2, 4)), taps=[2]).taps[0].tokens
    tokens, _ = made._embed(x)
    kept = []
    for block in (made.blocks[0], made.blocks[1]):
        weights = attention(block, block.norm1(tokens))[:, :, 0, 1:].mean(dim=1)
        best = weights.argsort(dim=1, descending=True)[:, :4]
        kept.append(torch.stack([tokens[i, 1 + best[i]] for i in range(2)]))
        tokens = through(block, tokens, tokens)
    expected = through(made.blocks[2], tokens, torch.cat([tokens, *kept], dim=1))
    torch.testing.assert_close(found, expected)


def projected(block, read):
    qkv = block.attn.qkv(read).unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return qkv.unbind(0)


def attention(block, read):
    q, k, _ = projected(block, read)
    return (q @ k.mT * block.attn.scale).softmax(dim=-1)


def through(block, tokens, seen):
    """The block's tokens, which attend to those seen, of which they are the first."""
    weights = attention(block, block.norm1(seen))[:, :, : tokens.shape[1]]
    values = projected(block, block.norm1(seen))[2]
    tokens = tokens + block.attn.proj((weights @ values).transpose(1, 2).flatten(2))
    return tokens + block.mlp(block.norm2(tokens))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_host_mixes_behind_a_block_by_its_attention(prefix):
    made, x = backbone(prefix=prefix), images(4).double()
    output = made(x, mixing=mixing(made, horizontal=Horizontal(0, 0.0, 1.0)), taps=[0])
    mix, plain = output.mix, made(x, taps=[0])
    assert (mix.share > 0).any() and mix.difficulty.shape == (4,)
    assert SALIENCY not in output.final.carried
    # a token behind the block is that of the image or of its partner
    own, other, first = plain.taps[0].tokens, plain.taps[0].tokens[mix.partner], made.num_prefix
    found = output.taps[0].tokens
    apart = torch.stack([(found - own).abs().amax(-1), (found - other).abs().amax(-1)])
    assert apart.amin(0).max() < 1e-9
    assert torch.equal(found[:, :first], own[:, :first])
    replaced = (apart[0] > 1e-9)[:, first:].float().mean(1)
    torch.testing.assert_close(mix.replaced, replaced)


def later(variant, **options):
    """A backbone whose first block merges nothing."""
    made = backbone(variant, **options)
    if not isinstance(made.policy, ReducingPolicy):
        made.set_reduction([0, 8, 8])
    return made


@pytest.mark.parametrize("variant", MERGING)
def test_merging_goes_on_with_mixed_images_under_every_policy(variant):
    """The tokens behind the first block are those of its images, so what is merged is a state like others:
    where nothing is mixed the pass is the plain one, and a batch of equal images stays as it is."""
    made, x = later(variant, reduction=8), images(4).double()
    if made.schedule(made.grid)[0]:
        made.set_reduction(0)
    nothing = mixing(made, horizontal=Horizontal(0, 0.0, 1.0), hard=2.0)
    assert torch.equal(made(x, mixing=nothing).final.tokens, made(x).final.tokens)
    both = mixing(made, horizontal=Horizontal(0, 0.0, 1.0), vertical=Vertical(1, 2))
    if made.policy.ahead or made.policy.at_entry:
        both = replace(both, vertical=None)
    output = made(x, mixing=both)
    assert output.final.tokens.isfinite().all() and (output.mix.share > 0).any()
    if made.policy.conserves_size:
        torch.testing.assert_close(output.final.size.sum(1), made(x).final.size.sum(1))


@pytest.mark.parametrize("prefix", ["class token", "no prefix, average pooling"])
def test_permuting_the_batch_permutes_what_is_mixed(prefix):
    """With a margin: without one, a circle of partners wins as much the other way around."""
    made, x = backbone(prefix=prefix), images(5).double()
    order = torch.tensor([3, 0, 4, 1, 2])
    how = mixing(made, horizontal=Horizontal(1, 1e-3, 1.0), vertical=Vertical(2, 3))
    one, other = made(x, mixing=how), made(x[order], mixing=how)
    torch.testing.assert_close(other.final.tokens, one.final.tokens[order])
    assert torch.equal(order[other.mix.partner], one.mix.partner[order])
    torch.testing.assert_close(other.mix.share, one.mix.share[order])


def test_the_gradient_reaches_an_image_and_its_partner_and_no_choice():
    made, x = backbone(), images(4).double().requires_grad_()
    output = made(x, mixing=mixing(made, horizontal=Horizontal(0, 0.0, 1.0)))
    assert not output.mix.share.requires_grad
    mixed = int(output.mix.share.argmax())
    (gradient,) = torch.autograd.grad(output.final.tokens[mixed].square().sum(), x)
    reached = gradient.flatten(1).abs().amax(dim=1) > 0
    assert sorted(reached.nonzero().flatten().tolist()) == sorted({mixed, int(output.mix.partner[mixed])})


MERGES_FIRST = {
    "horizontal": (Horizontal(1, 0.0, 1.0), None, [0, 8, 8], "begins with \\[0, 0, ...\\]"),
    "vertical": (None, Vertical(2, 3), [8, 0, 0], "block 0 merges before"),
}


@pytest.mark.parametrize("case", MERGES_FIRST)
def test_tokens_that_have_merged_are_not_mixed(case):
    horizontal, vertical, reduction, message = MERGES_FIRST[case]
    made = backbone("tome", reduction=reduction)
    with pytest.raises(ConfigError, match=message):
        made(images(2).double(), mixing=mixing(made, horizontal=horizontal, vertical=vertical))


def test_a_vertical_block_may_merge_but_not_before_it_attends():
    how, x = Vertical(1, 3), images(2).double()
    behind = backbone("tome", reduction=[0, 8, 8])
    assert behind(x, mixing=mixing(behind, vertical=how)).final.tokens.isfinite().all()
    ahead = backbone("mctf", reduction=[0, 8, 8])
    with pytest.raises(ConfigError, match="block 1 merges before"):
        ahead(x, mixing=mixing(ahead, vertical=how))


def test_saliency_is_the_mean_over_heads_of_the_class_token_or_of_all_queries():
    for prefix, kind in (("class token", BY_CLASS), ("no prefix, average pooling", BY_ALL)):
        made, x = backbone(prefix=prefix), images(2).double()
        tokens, _ = made._embed(x)
        weights = attention(made.blocks[0], made.blocks[0].norm1(tokens)).mean(dim=1)
        wanted = weights[:, 0, 1:] if kind == BY_CLASS else weights.mean(dim=1)
        how = mixing(made, horizontal=Horizontal(0, 0.0, 1.0))
        assert how.saliency == kind
        mix = made(x, mixing=how).mix
        partner, taken = matched(wanted, everything(2), 0.0)
        assert torch.equal(mix.partner, partner)
        torch.testing.assert_close(mix.share, label_share(wanted, partner, taken))
        assert float(F.relu(mix.share).max()) > 0
