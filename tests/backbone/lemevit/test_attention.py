"""The attentions and blocks of LeMeViT: what asks what, by which scale, and what it costs."""

import math

import pytest
import torch
from tiny import generator
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.backbone.lemevit.attention import (
    CrossAttention,
    DualCrossAttention,
    SelfAttention,
    scale_of_patches,
)
from pipeline.backbone.lemevit.block import BLOCKS
from pipeline.backbone.lemevit.stages import state_of
from pipeline.errors import ConfigError

WIDTH, HEADS, META = 16, 2, 4
KINDS = {"C": CrossAttention, "D": DualCrossAttention, "S": SelfAttention}


def tokens(num_patches: int, meta: int = META, seed: int = 1) -> torch.Tensor:
    shape = (2, meta + num_patches, WIDTH)
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def attention(kind: str, meta: int = META):
    """In float64, with weights so large that softmax chooses."""
    torch.manual_seed(3)
    made = KINDS[kind](WIDTH, HEADS, meta).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def block(kind: str, **options):
    torch.manual_seed(3)
    made = BLOCKS[kind](kind, WIDTH, HEADS, META, **options).double().eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def state(side: int, seed: int = 1):
    both = tokens(side * side, seed=seed)
    return state_of(both[:, :META], both[:, META:].mT.unflatten(2, (side, side)))


def softmax_of(q, k, v, scale: float):
    """[B, L, C] each, with heads, one by one."""
    parts = []
    for one, two, three in zip(*(value.chunk(HEADS, -1) for value in (q, k, v)), strict=True):
        parts.append((one @ two.mT * scale).softmax(-1) @ three)
    return torch.cat(parts, -1)


@pytest.mark.parametrize("num_patches", [9, 49])
def test_dual_cross_attention_is_the_papers_with_the_scale_of_this_input(num_patches):
    made, x = attention("D"), tokens(num_patches)
    meta, patches = x[:, :META], x[:, META:]
    q_x, k_x, v_x = made.qkv_x(patches).chunk(3, -1)
    q_c, k_c, v_c = made.qkv_c(meta).chunk(3, -1)
    by_all_channels = WIDTH**-0.5
    scale_x = math.log(META) / math.log(num_patches) * by_all_channels
    expected = [
        made.proj_c(softmax_of(q_c, k_x, v_x, by_all_channels)),
        made.proj_x(softmax_of(q_x, k_c, v_c, scale_x)),
    ]
    torch.testing.assert_close(made(x), torch.cat(expected, 1), atol=1e-10, rtol=1e-10)


def test_cross_and_self_attention_have_the_scale_of_a_head():
    x, of_a_head = tokens(9), (WIDTH // HEADS) ** -0.5
    cross, own = attention("C"), attention("S")
    k, v = cross.kv(x[:, META:]).chunk(2, -1)
    expected = cross.proj(softmax_of(cross.q(x[:, :META]), k, v, of_a_head))
    torch.testing.assert_close(cross(x), expected, atol=1e-10, rtol=1e-10)
    sides = [
        own.proj(softmax_of(*own.qkv(side).chunk(3, -1), of_a_head)) for side in (x[:, :META], x[:, META:])
    ]
    torch.testing.assert_close(own(x), torch.cat(sides, 1), atol=1e-10, rtol=1e-10)


def test_the_scale_depends_on_the_number_of_patches_and_one_patch_is_refused():
    assert scale_of_patches(3136, 16) == pytest.approx(0.344, abs=5e-4)
    assert scale_of_patches(16, 16) == 1 and scale_of_patches(3136, 1) == 0
    with pytest.raises(ConfigError, match="gets one patch.*give larger images, or the stage another kind"):
        attention("D")(tokens(1))
    for kind in "CS":
        assert attention(kind)(tokens(1)).isfinite().all()


def test_permuted_patches_are_permuted_and_leave_the_meta_tokens_as_they_are():
    made, x, order = attention("D"), tokens(9), torch.randperm(9, generator=generator(2))
    plain = made(x)
    permuted = made(torch.cat([x[:, :META], x[:, META:][:, order]], 1))
    torch.testing.assert_close(permuted[:, META:], plain[:, META:][:, order], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(permuted[:, :META], plain[:, :META], atol=1e-10, rtol=1e-10)
    assert not torch.allclose(plain[:, META:], plain[:, META:][:, order])


def test_with_one_meta_token_every_patch_gets_the_same():
    """softmax over one key."""
    made, x = attention("D", meta=1), tokens(9, meta=1)
    update = made(x)[:, 1:]
    torch.testing.assert_close(update, update[:, :1].expand_as(update), atol=1e-12, rtol=0)
    expected = made.proj_x(made.qkv_c(x[:, :1]).chunk(3, -1)[2])
    torch.testing.assert_close(update[:, :1], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_cost_of_self_attention_grows_with_the_square(kind):
    """The second difference of the MACs. Those of the counter are the formula's."""
    made = attention(kind)
    curve = [made.macs(count) for count in (0, 64, 128)]
    bend = curve[2] - 2 * curve[1] + curve[0]
    assert bend == (2 * 2 * WIDTH * 64**2 if kind == "S" else 0)
    if kind == "D":
        assert 1.8 < curve[2] / curve[1] < 2
    for num_patches in (64, 128):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            made(tokens(num_patches)[:1])
        assert counter.get_total_flops() == 2 * made.macs(num_patches)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_block_changes_and_by_what(kind):
    """C: meta tokens by patches, which stay. D: each by the other. S: each by its own kind alone."""
    made, one, other = block(kind), state(3), state(3, seed=2)
    swapped = state_of(one.tokens[:, :META], other.patch_tokens.mT.unflatten(2, (3, 3)))
    with torch.no_grad():
        plain, patches_changed = made(one), made(swapped)
        meta_changed = made(state_of(other.tokens[:, :META], one.patch_tokens.mT.unflatten(2, (3, 3))))
    assert torch.equal(plain.patch_tokens, one.patch_tokens) == (kind == "C")
    meta = plain.tokens[:, :META]
    assert not torch.allclose(meta, one.tokens[:, :META])
    assert torch.allclose(patches_changed.tokens[:, :META], meta) == (kind == "S")
    assert torch.allclose(meta_changed.patch_tokens, plain.patch_tokens) == (kind != "D")


@pytest.mark.parametrize("kind", KINDS)
def test_patches_know_where_they_are_by_their_neighbours_alone(kind):
    """Without the convolution a block does not see the order of patches; with it a patch sees the eight
    around it."""
    made, one = block(kind), state(4)
    turned = state_of(one.tokens[:, :META], one.patch_tokens.mT.unflatten(2, (4, 4)).flip(-1))
    with torch.no_grad():
        assert not torch.allclose(made(turned).tokens[:, :META], made(one).tokens[:, :META]) or kind == "S"
        nn.init.zeros_(made.position.weight)
        plain, flipped = made(one), made(turned)
    torch.testing.assert_close(flipped.tokens[:, :META], plain.tokens[:, :META], atol=1e-8, rtol=1e-8)
    grid = plain.patch_tokens.mT.unflatten(2, (4, 4)).flip(-1)
    torch.testing.assert_close(flipped.patch_tokens.mT.unflatten(2, (4, 4)), grid, atol=1e-8, rtol=1e-8)


def test_stochastic_depth_is_drawn_for_meta_tokens_and_patches_apart():
    made, one = block("D", drop_path=0.5).train(), state(3)
    kept = set()
    for seed in range(40):
        torch.manual_seed(seed)
        with torch.no_grad():
            change = (made._kept(torch.ones_like(one.tokens)) != 0).double()
        assert all(len(side.unique()) == 1 for image in change for side in (image[:META], image[META:]))
        kept |= {(bool(image[0, 0]), bool(image[-1, 0])) for image in change}
    assert len(kept) == 4
    assert torch.equal(made.eval()._kept(one.tokens), one.tokens)
