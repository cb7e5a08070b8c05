"""What a backbone of clips promises, whatever the merge policy: the laws of images, on tubelets."""

from itertools import pairwise, product

import pytest
import torch
from tiny import OF_CLIPS, RELAXED, SIZES, UNLIKE_AT_ZERO, clips, merged, source_map, tiny_video_vit
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline import build_backbone, unmerge
from pipeline.backbone.build import create_vit
from pipeline.backbone.macs import count_macs
from pipeline.merging.partitions import OF_THE_GRID, partition_rows
from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.ailurus import grid_distances
from pipeline.merging.policies.algm import windows
from pipeline.merging.policies.grid_average import all_merges
from pipeline.merging.policies.gtp import spatial_neighbours
from pipeline.merging.unmerge import slots
from pipeline.token_state import TokenState

POLICY = pytest.mark.parametrize("policy", OF_CLIPS)
GRID = (3, 4, 5)
PLACES = list(product(*(range(side) for side in GRID)))
CPU = torch.device("cpu")


def training_of(policy):
    return [False, True] if policy in RELAXED else [False]


@pytest.mark.parametrize(("policy", "training"), [(p, t) for p in OF_CLIPS for t in training_of(p)])
def test_sizes_add_up_and_the_wanted_number_of_tokens_leaves(policy, training):
    model = tiny_video_vit(policy).train(training)
    with torch.no_grad():
        state = model(clips()).final
    assert state.grid == (4, 4, 4) and state.num_active == 64 - 3 * 8
    assert state.tokens.isfinite().all() and state.tokens.shape[1] == (64 if training else 40)
    if model.policy.conserves_size:
        torch.testing.assert_close(state.size.sum(1), torch.full((2,), 64.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("policy", [name for name in UNLIKE_AT_ZERO if name in POLICIES.names()] + ["rlt"])
def test_no_reduction_is_timms_model_of_these_parts(policy):
    model = tiny_video_vit(policy, reduction=0).eval()
    vit = create_vit("vit_tiny_patch16_224", img_size=32, frames=8, timm_options=SIZES).eval()
    vit.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        expected, state = vit.forward_features(clips()), model(clips(), unmerge="soft").final
    torch.testing.assert_close(state.tokens, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(unmerge(state), state.tokens.mT.unflatten(-1, (4, 4, 4)))


@POLICY
def test_every_tubelet_reads_the_token_that_its_source_map_names(policy):
    """At each tap, and tokens hold what their sizes say."""
    model = tiny_video_vit(policy).eval()
    with torch.no_grad():
        output = model(clips(), taps=(0, 2), unmerge="copy")
    for state, left in zip(output.taps, (56, 40), strict=True):
        assert state.tokens.shape[1] == left
        wanted = torch.stack([tokens[rows] for tokens, rows in zip(state.tokens, slots(state), strict=True)])
        assert torch.equal(unmerge(state).flatten(2).mT, wanted)
        if model.policy.conserves_size:
            torch.testing.assert_close(source_map(state).sum(1), state.size, atol=1e-4, rtol=1e-4)


@POLICY
def test_a_clip_merges_alone_as_in_a_batch(policy):
    """In float64, as merges are a chain of choices."""
    model, batch = tiny_video_vit(policy).double().eval(), clips(3).double()
    with torch.no_grad():
        every, alone = model(batch).final, model(batch[1:2]).final
    torch.testing.assert_close(every.tokens[1:2], alone.tokens, atol=1e-8, rtol=0)
    torch.testing.assert_close(every.size[1:2], alone.size, atol=1e-8, rtol=0)


@POLICY
def test_clips_of_other_lengths_and_sizes_are_taken(policy):
    model = tiny_video_vit(policy, reduction=0.8).eval()
    with torch.no_grad():
        state = model(torch.randn(2, 4, 3, 48, 40)).final
    assert state.grid == (2, 6, 5) and unmerge(state).shape == (2, 48, 2, 6, 5)


@POLICY
@pytest.mark.parametrize("reduction", [9, [0, 9, 0]], ids=repr)
def test_the_formula_of_macs_agrees_with_the_counter(policy, reduction):
    model = tiny_video_vit(policy, reduction=reduction).eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(clips(1))
    assert count_macs(model).flops == counter.get_total_flops()


@POLICY
def test_a_step_of_training_reaches_every_parameter(policy):
    """Also with the blocks computed anew, from which nothing changes."""
    found = []
    for again in (False, True):
        model = tiny_video_vit(policy, grad_checkpointing=again).train()
        output = model(clips()).final
        live = output.tokens[:, : output.num_active]
        (live @ torch.linspace(-1, 1, 48) * output.size[:, : output.num_active]).sum().backward()
        idle = [name for name, own in model.named_parameters() if own.grad is None or not own.grad.any()]
        assert not [name for name in idle if "metric" not in name or policy in RELAXED], idle
        found.append([own.grad for own in model.parameters() if own.grad is not None])
    torch.testing.assert_close(found[1], found[0], atol=0, rtol=0)


@POLICY
def test_bfloat16_keeps_sizes_in_float32(policy):
    model = tiny_video_vit(policy).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        state = model(clips(), unmerge="soft").final
    assert state.size.dtype == torch.float32 and unmerge(state).isfinite().all()


@pytest.mark.slow
@POLICY
def test_it_compiles_whole_and_is_exported(policy):
    model = tiny_video_vit(policy, reduction=[9, 0, 0]).eval()
    with torch.no_grad():
        expected = model(clips()).final.tokens
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(clips()).final.tokens, expected, atol=1e-4, rtol=1e-4)
        dynamic = {"images": {0: torch.export.Dim("batch", min=1)}}
        program = torch.export.export(model, (), kwargs={"images": clips()}, dynamic_shapes=dynamic).module()
        torch.testing.assert_close(program(images=clips(1)).final.tokens, model(clips(1)).final.tokens)


@pytest.mark.parametrize("partition", [name for name in OF_THE_GRID if name != "parity"])
@pytest.mark.parametrize("grid", [GRID, (4, 4, 4), (2, 3, 3), (1, 4, 5), (5, 1, 2)], ids=str)
def test_the_path_goes_from_neighbour_to_neighbour_through_all_times(partition, grid):
    """So that every second tubelet on it is one cell of a checkerboard in space and time."""
    count = torch.Size(grid).numel()
    state = TokenState.start(torch.randn(1, count, 4), grid, 0)
    order = partition_rows(partition, None, state).flatten().tolist()
    assert sorted(order) == list(range(count))
    places = [list(product(*(range(side) for side in grid)))[number] for number in order]
    for one, other in pairwise(places):
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) == 1


def test_along_the_path_later_merges_alternate_on_what_is_left():
    """Each token has the place of the tubelet into which others merged."""
    model = build_backbone(
        "vit_tiny_patch16_224", policy="tome", partition="path", img_size=32, frames=8, timm_options=SIZES
    )
    with torch.no_grad():
        state = model.double()(clips().double(), reduction=[11, 7, 5]).final
    order = [number for t in range(4) for number in snake(t)]
    held = torch.arange(64).expand(2, -1)
    for merge in state.merges:
        for clip in range(2):
            along = sorted(held[clip].tolist(), key=order.index)
            taken = held[clip][merge.source[clip] % merge.num_tokens].tolist()
            assert set(taken) <= set(along[::2])
        held = held.gather(1, merge.keep % merge.num_tokens)


def snake(time):
    """Tubelets of one time of a grid of 4 x 4 x 4 in the order of the path."""
    rows = [[16 * time + 4 * y + x for x in (range(4) if y % 2 == 0 else range(3, -1, -1))] for y in range(4)]
    path = [number for row in rows for number in row]
    return path if time % 2 == 0 else path[::-1]


def test_neighbours_in_space_and_time_touch():
    near = spatial_neighbours(GRID, CPU)[0]
    for (i, one), (j, other) in product(enumerate(PLACES), repeat=2):
        touch = max(abs(a - b) for a, b in zip(one, other, strict=True)) == 1
        assert near[i, j].item() == touch
    assert near.sum(dim=-1).max() == 26


def test_windows_are_of_one_time():
    window, first = (own[0].tolist() for own in windows(GRID, CPU))
    for (i, one), (j, other) in product(enumerate(PLACES), repeat=2):
        same = (one[0], one[1] // 2, one[2] // 2) == (other[0], other[1] // 2, other[2] // 2)
        assert (window[i] == window[j]) == same and (not same or first[i] <= j)


def test_distances_count_a_step_in_time_as_one_to_a_neighbour():
    apart = grid_distances(TokenState.start(torch.zeros(1, 60, 2), GRID, 0))[0]
    where = torch.tensor(PLACES).float()
    torch.testing.assert_close(apart, torch.cdist(where, where) / 29**0.5)


def test_an_eighth_of_the_tubelets_left_is_average_pooling_by_two_in_space_and_time():
    policy, tokens = POLICIES.build("grid_average"), torch.randn(2, 64, 5)
    state = TokenState.start(tokens, (4, 4, 4), 0)
    for r in (32, 16, 8):
        state = merged(policy, state, state.tokens, r)
    pooled = torch.nn.functional.avg_pool3d(tokens.mT.unflatten(-1, (4, 4, 4)), 2)
    torch.testing.assert_close(state.tokens, pooled.flatten(2).mT)
    assert len(all_merges((4, 4, 4))) == 63


def test_the_schedule_of_vid_tldrs_paper_leaves_as_many_tokens_as_there():
    """UMT-B/16 on MSRVTT: 12 frames of 196 patches, 600, 200 and 100 of which leave in the first blocks."""
    with torch.device("meta"):
        model = build_backbone(
            "vit_base_patch16_224", policy="vid_tldr", reduction=[600, 200, 100], frames=12, tubelet=1
        )
    whole, reduced = count_macs(model, reduction=0), count_macs(model)
    assert whole.tokens[0] == 2352 and reduced.tokens[:4] == (1752, 1552, 1452, 1452)
    assert 0.4 < reduced.total / whole.total < 0.7
