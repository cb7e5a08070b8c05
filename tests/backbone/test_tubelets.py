"""The embedding of clips, and what a backbone of clips takes and refuses."""

import numpy as np
import pytest
import torch
from tiny import SIZES, clips, tiny_video_vit

from pipeline import build_backbone
from pipeline.backbone.build import model_facts
from pipeline.backbone.tubelets import sines_and_cosines
from pipeline.config.build import build_dataclass
from pipeline.config.schema import BackboneConfig
from pipeline.errors import ConfigError

NAME = "vit_tiny_patch16_224"


def build(name=NAME, frames=8, timm_options=None, **arguments):
    options = SIZES | (timm_options or {})
    return build_backbone(name, frames=frames, img_size=32, timm_options=options, **arguments)


def test_positions_are_videomaes():
    """As its authors compute them, in float64 by numpy."""
    count, channels = 1568, 48
    number, channel = np.arange(count)[:, None], np.arange(channels)[None]
    table = number / np.power(10000, 2 * (channel // 2) / channels)
    table[:, 0::2], table[:, 1::2] = np.sin(table[:, 0::2]), np.cos(table[:, 1::2])
    assert torch.equal(sines_and_cosines(count, channels)[0], torch.from_numpy(table).float())


def test_a_token_is_that_of_its_tubelet_in_time_rows_and_columns():
    embed, clip = tiny_video_vit("none").patch_embed, clips(1)
    tokens = embed(clip) - embed.positions
    for number in (0, 5, 16, 63):
        t, y, x = number // 16, number // 4 % 4, number % 4
        cut = clip[0, 2 * t : 2 * t + 2, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].transpose(0, 1)
        wanted = embed.proj.weight.flatten(1) @ cut.flatten() + embed.proj.bias
        torch.testing.assert_close(tokens[0, number], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_are_resampled_in_time_and_space(dtype):
    """Halving the times of a table averages neighbours, as it is linear between them."""
    embed = tiny_video_vit("none").patch_embed.to(dtype)
    assert embed.positions_of((4, 4, 4)) is embed.positions
    table = embed.positions.float().unflatten(1, (4, 4, 4))
    found = embed.positions_of((2, 4, 4))
    assert found.dtype == dtype
    halved = table.unflatten(1, (2, 2)).mean(dim=2).flatten(1, 3)
    torch.testing.assert_close(found.float(), halved, atol=1e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)
    assert embed.positions_of((4, 6, 3)).shape == (1, 72, 48)


def test_positions_are_no_part_of_a_checkpoint_and_keys_have_no_bias():
    model = build()
    own = dict(model.named_parameters())
    assert not [key for key in model.state_dict() if "position" in key or "pos_embed" in key]
    assert {"blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "blocks.0.attn.qkv.weight"} <= own.keys()
    assert not [name for name in own if "k_bias" in name or name.endswith("qkv.bias")]
    assert model.grid == (4, 4, 4) and model.num_prefix == 0 and model.global_pool == "avg"
    assert model.norm_after_pool and model.input_shape((32, 40)) == (8, 3, 32, 40)


def test_a_class_token_can_be_asked_for():
    options = {"class_token": True, "global_pool": "token"}
    model = build(policy="evit", reduction=8, timm_options=options).eval()
    with torch.no_grad():
        state = model(clips()).final
    assert model.num_prefix == 1 and state.tokens.shape[1] == 65 - 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 7}, "backbone.frames is 7, which does not divide by backbone.tubelet 2; nearest: 8"),
        ({"frames": -2}, "backbone.frames is -2; give 1 for images"),
        ({"frames": 10**6}, "backbone.frames is 1000000"),
        ({"tubelet": 0}, "backbone.tubelet is 0"),
        ({"name": "eva02_base_patch16_clip_224"}, "reads images alone"),
        ({"name": "vit_base_patch16_xp_224"}, "its blocks are not timm's plain ones"),
        ({"name": "vit_small_r26_s32_224"}, "reads images alone"),
        ({"timm_options": {"pos_embed": "learn"}}, "positions of clips are fixed"),
        ({"timm_options": {"global_pool": "token"}}, "Token pooling needs the class token"),
        ({"pretrained": True}, "are of images; build it without pretrained"),
        ({"policy": "evit"}, "'evit' cannot serve .*: it needs a class token"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_the_way_out(arguments, message):
    with pytest.raises(ConfigError, match=message):
        build(**arguments)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 32, 32), r"clips have the shape \[2, 3, 32, 32\]; give \[batch, frames, 3, height, width\]"),
        ((2, 3, 8, 32, 32), r"give \[batch, frames, 3, height, width\]"),
        ((2, 7, 3, 32, 32), "clips of 7 frames do not divide into tubelets of 2"),
        ((2, 0, 3, 32, 32), "clips have the shape"),
        ((2, 8, 3, 30, 32), "input 30x32 does not divide by the patch 8x8"),
    ],
    ids=str,
)
def test_clips_of_another_shape_are_refused(shape, message):
    with pytest.raises(ConfigError, match=message):
        tiny_video_vit("tome")(torch.zeros(shape))


def test_images_stay_images_for_one_frame_or_none():
    for frames in (0, 1):
        assert build(frames=frames).grid == (4, 4)
        assert build_dataclass(BackboneConfig, {"name": NAME, "frames": frames}).frames == frames
    with pytest.raises(ConfigError, match="give \\[batch, 3, height, width\\]"):
        build(frames=1)(clips())


def test_facts_are_known_without_memory():
    facts = model_facts(BackboneConfig(name="vit_large_patch16_224", frames=16))
    assert (facts.grid, facts.times, facts.num_prefix) == ((8, 14, 14), 8, 0)
    assert (facts.patch, facts.class_token) == ((16, 16), False)
    with pytest.raises(ConfigError, match="backbone.frames is 15"):
        BackboneConfig(name=NAME, frames=15)


@pytest.mark.parametrize("policy", ["tome", "mctf"])
def test_a_layer_with_hooks_is_called_also_where_it_has_no_bias_of_keys(policy):
    """As those of ZeRO 3, which gather its weight; mctf asks for some of its rows too."""
    model, seen = tiny_video_vit(policy).double().eval(), []
    with torch.no_grad():
        expected = model(clips().double()).final.tokens
        for block in model.blocks:
            for bias in (block.attn.q_bias, block.attn.v_bias):
                assert not bias.any()
                torch.nn.init.normal_(bias)
        moved = model(clips().double()).final.tokens
        for block in model.blocks:
            block.attn.qkv.register_forward_hook(lambda module, args, output: seen.append(module))
        hooked = model(clips().double()).final.tokens
    torch.testing.assert_close(hooked, moved, atol=1e-10, rtol=0)
    assert not torch.allclose(moved, expected) and {*seen} == {block.attn.qkv for block in model.blocks}
