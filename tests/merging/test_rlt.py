"""Run-length tokenization: what a run is, and what is left of it, by hand."""

import pytest
import torch
from tiny import SIZES, clips, tiny_video_vit

from pipeline import build_backbone, unmerge
from pipeline.backbone.tubelets import changes_of
from pipeline.config.load import from_plain
from pipeline.errors import ConfigError
from pipeline.merging.policies.rlt import heads_of_runs
from pipeline.merging.unmerge import slots
from pipeline.plan.facts import ModelFacts
from pipeline.plan.resolve import resolve


def test_a_change_is_that_of_the_last_frame_from_the_first_one_of_the_tubelet_before():
    """Tubelets of two frames, of four places; the frames between are not looked at."""
    clip = torch.zeros(1, 6, 3, 4, 4)
    clip[0, :, :, :2, :2] = torch.tensor([0.0, 50, 50, 1, 3, 0]).view(6, 1, 1, 1)
    clip[0, 3, 0, 2, 3] = 12.0
    inf = torch.inf
    found = changes_of(clip, 2, (2, 2)).view(3, 4)
    # frame 3 from frame 0, then frame 5 from frame 2
    torch.testing.assert_close(found, torch.tensor([[inf] * 4, [1, 0, 0, 1.0], [50, 0, 0, 0]]))


def test_whatever_pixels_are_the_first_tubelets_alone_are_infinite():
    clip = clips()
    clip[0, 5], clip[1, 4] = torch.nan, torch.inf
    found = changes_of(clip, 2, (8, 8)).view(2, 4, 16)
    assert found[:, 0].isinf().all() and found[:, 1:].isfinite().all()


def test_a_token_that_leaves_goes_to_the_last_one_at_its_place_that_stays():
    """Of two places at four times; the tubelet of place 1 at time 1 left before."""
    tubelet = torch.tensor([[0, 1, 2, 4, 5, 6, 7]])
    stays = torch.tensor([[True, True, False, False, True, False, False]])
    found = heads_of_runs(tubelet, stays, (4, 2))
    assert found.tolist() == [[0, 1, 0, 0, 4, 0, 4]]


def still_in_part():
    """A clip of 8 frames in which the upper half of the picture stands still, and all of it in the last four
    frames."""
    clip = clips(1)
    clip[:, 1:, :, :16] = clip[:, :1, :, :16]
    clip[:, 5:] = clip[:, 4:5]
    return clip


def test_the_tubelets_that_stand_still_leave_before_the_first_block():
    """8 places in 3 runs of time after the first each, and 8 in the last."""
    model = tiny_video_vit("rlt", reduction=[32, 0, 0]).eval()
    with torch.no_grad():
        state = model(still_in_part()).final
    expected = torch.arange(64).view(4, 4, 4)
    expected[1:, :2] = expected[0, :2]
    expected[3, 2:] = expected[2, 2:]
    kept = expected.unique()
    assert len(kept) == 32
    held = slots(state)[0].view(4, 4, 4)
    assert torch.equal(kept[held], expected)
    assert torch.equal(state.size[0].long(), torch.bincount(expected.flatten(), minlength=64)[kept])


def test_what_a_run_holds_counts_as_often_as_its_tubelets_would():
    """Where all frames are alike and positions are none, a clip of runs is the clip: in float64."""
    clip = clips()[:, :1].expand(-1, 8, -1, -1, -1).double()
    model = tiny_video_vit("rlt").double().eval()
    model.patch_embed.positions.zero_()
    with torch.no_grad():
        whole = unmerge(model(clip, reduction=0).final)
        for reduction in ([32, 0, 0], [32, 12, 4], [0, 20, 0]):
            state = model(clip, reduction=reduction).final
            assert state.num_active == 64 - sum(reduction)
            torch.testing.assert_close(unmerge(state), whole, atol=1e-9, rtol=0)


def test_a_class_token_attends_to_runs_as_to_their_tubelets():
    """It has no length of its own."""
    own = {"timm_options": SIZES | {"class_token": True, "global_pool": "token"}}
    clip = clips()[:, :1].expand(-1, 8, -1, -1, -1).double()
    model = tiny_video_vit("rlt", **own).double().eval()
    model.patch_embed.positions.zero_()
    with torch.no_grad():
        whole = model(clip, reduction=0).final
        for reduction in ([32, 0, 0], [20, 12, 4]):
            state = model(clip, reduction=reduction).final
            assert state.num_prefix == 1 and state.num_active == 65 - sum(reduction)
            assert torch.equal(state.size[:, 0], torch.ones_like(state.size[:, 0]))
            torch.testing.assert_close(state.tokens[:, 0], whole.tokens[:, 0], atol=1e-9, rtol=0)
            torch.testing.assert_close(unmerge(state), unmerge(whole), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_tubelets_leave_in_half_precision(dtype):
    """Those that stand still, by exact zeros: the model in that precision, and under autocast."""
    model, clip = tiny_video_vit("rlt", reduction=[32, 0, 0]).eval(), still_in_part()
    with torch.no_grad():
        expected = slots(model(clip).final)
        with torch.autocast("cpu", dtype):
            assert torch.equal(slots(model(clip).final), expected)
        state = model.to(dtype)(clip.to(dtype)).final
    assert torch.equal(slots(state), expected)
    assert state.size.sum() == 64 and state.tokens.isfinite().all()


def test_the_first_token_of_a_run_stays_as_it_was():
    model = tiny_video_vit("rlt", reduction=[20, 0, 0]).eval()
    seen = []
    model.blocks[0].norm1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(clips())
        model(clips(), reduction=0)
        merge = model(clips()).final.merges[0]
    after, before = seen[0].flatten(0, 1), seen[1].flatten(0, 1)
    assert torch.equal(after, before[merge.keep.flatten()])


def test_later_blocks_lengthen_runs():
    """What leaves in two blocks leaves in one at the same time, and the first of each place stays."""
    model, clip = tiny_video_vit("rlt").eval(), clips()
    with torch.no_grad():
        twice, once = (model(clip, reduction=spec).final for spec in ([16, 8, 0], [24, 0, 0]))
    assert torch.equal(slots(twice), slots(once))
    assert all(len(first.unique()) == 16 for first in slots(once)[:, :16])


def test_more_than_all_that_have_one_before_them_cannot_leave():
    model = tiny_video_vit("rlt", reduction=[32, 16, 8]).eval()
    with pytest.raises(ConfigError, match="rlt: 8 tubelets are to leave, and 0 have one before them"):
        model(clips())
    with pytest.raises(ConfigError, match="clips of 2 frames have no tubelet before another; give 4 or more"):
        model(clips(frames=2), reduction=[1, 0, 0])


def test_it_is_refused_by_name_where_there_is_no_time():
    """On images, and on clips of one tubelet, before any forward pass."""
    lacks = "merge policy 'rlt' cannot serve .*: it needs clips with several tubelets in time"
    for options in ({}, {"frames": 2}):
        with pytest.raises(ConfigError, match=lacks):
            build_backbone("vit_tiny_patch16_224", policy="rlt", img_size=32, timm_options=SIZES, **options)
    plain = {
        "backbone": {"name": "vit_tiny_patch16_224"},
        "tasks": {"a": {"type": "classification", "data": {"schema": "imagenet", "train": "t.tar"}}},
        "train": {"steps": 10, "mode": "backbone"},
        "merging": {"policy": "rlt", "reduction": [8]},
        "output": "runs/x",
    }
    facts = ModelFacts(patch=(16, 16), depth=12, num_prefix=0, grid=(14, 14), class_token=False)
    with pytest.raises(ConfigError, match=lacks):
        resolve(from_plain(plain), 1, facts)
