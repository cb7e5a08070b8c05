"""STViT: semantic tokens of a grid, how patches read them, and their recovery."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import SIZES, images, tiny_vit
from torch.nn import functional as F

from pipeline import build_backbone, unmerge
from pipeline.backbone.build import create_vit
from pipeline.backbone.macs import count_macs, counted_vit
from pipeline.backbone.solved_schedule import ScheduleSolver
from pipeline.backbone.weights.load import load_weights
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.merging.semantic_tokens import CrossBlock, Recovery, SemanticTokens
from pipeline.merging.unmerge import unmerge_tokens
from pipeline.parts import BASE, METRIC, roles_of, set_trainable
from pipeline.token_state import Carried, TokenState
from tasks.classification import ClassificationTask

C = 12
SIDE, WINDOW, TOKENS = 14, 7, 36
WHOLE = {"init_values": 1.0}
"""Branches that count from the first step on."""


def made(*, scale=1.0, overlap=3, window=WINDOW, remembers=False):
    torch.manual_seed(0)
    return SemanticTokens(C, 2, window=window, overlap=overlap, scale=scale, remembers=remembers)


def patches(batch=2, seed=1):
    return torch.randn(batch, SIDE * SIDE, C, generator=torch.Generator().manual_seed(seed))


def by_windows(values):
    """[B, 14, 14, C] -> the four windows, [B, 2, 2, C, 7, 7]."""
    return values.unflatten(1, (2, 7)).unflatten(3, (2, 7)).permute(0, 1, 3, 5, 2, 4)


def pooled(values):
    """The largest values of 3 x 3 regions in each of the four windows of 7, row by row: [B, 36, C]."""
    windows = by_windows(values.unflatten(1, (SIDE, SIDE)))
    cells = F.adaptive_max_pool2d(windows.flatten(0, 3)[:, None], 3).view(len(values), 2, 2, C, 3, 3)
    return cells.permute(0, 1, 4, 2, 5, 3).reshape(len(values), TOKENS, C)


def test_a_grid_of_14_gives_36_tokens_and_recovery_gives_the_grid_back():
    state = TokenState.start(torch.randn(2, 1 + SIDE * SIDE, C), (SIDE, SIDE), 1)
    after = made(remembers=True)(state, SIDE * SIDE - TOKENS)
    assert after.tokens.shape == (2, 1 + TOKENS, C) and after.num_active == 1 + TOKENS
    back = Recovery(C, 2, 1.0)(after)
    assert back.tokens.shape == state.tokens.shape and back.merges == () and back.replaced is None
    assert torch.equal(back.tokens[:, 0], after.tokens[:, 0]) and torch.equal(back.size, state.size)


@pytest.mark.parametrize("scale", [None, 1.0])
@torch.no_grad()
def test_it_says_whether_what_is_drawn_counts_before_it_has_learned(scale):
    """Its usual start is pooling, whatever was drawn."""
    options = {} if scale is None else {"init_values": scale}
    policy, found = POLICIES.build("stvit", **options), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = TokenState.start(patches()[:, : SIDE * SIDE], (SIDE, SIDE), 0)
        found.append(policy.build_reducer(C, 2)(state, SIDE * SIDE - TOKENS).tokens)
    apart = (found[0] - found[1]).norm() / found[0].norm()
    assert (apart < 1e-3) == policy.starts_alike == (scale is None)


def test_without_its_branches_a_semantic_token_is_the_pooled_region():
    tokens, _, _ = made(scale=0.0).made(patches(), (SIDE, SIDE), TOKENS)
    assert torch.equal(tokens, pooled(patches()))


def test_of_equal_patches_all_semantic_tokens_and_all_recovered_patches_are_equal():
    state = TokenState.start(torch.randn(2, 1, C).expand(-1, SIDE * SIDE, -1), (SIDE, SIDE), 0)
    after = made(remembers=True)(state, SIDE * SIDE - TOKENS)
    assert not torch.allclose(after.tokens[:, :1], state.tokens[:, :1], atol=1e-3)
    for found in (after, Recovery(C, 2, 1.0)(after)):
        torch.testing.assert_close(found.tokens, found.tokens[:, :1].expand_as(found.tokens))


def test_two_windows_that_change_places_take_their_tokens_along():
    """By the part within windows, without overlap."""
    module = made(overlap=0)
    for scale in (module.far.scale_1, module.far.scale_2):
        torch.nn.init.zeros_(scale)
    grid = patches().unflatten(1, (SIDE, SIDE))
    swapped = grid.clone()
    swapped[:, :7, :7], swapped[:, 7:, 7:] = grid[:, 7:, 7:], grid[:, :7, :7]
    before, after = (module.made(each.flatten(1, 2), (SIDE, SIDE), TOKENS)[0] for each in (grid, swapped))
    before, after = before.unflatten(1, (6, 6)), after.unflatten(1, (6, 6))
    torch.testing.assert_close(after[:, :3, :3], before[:, 3:, 3:])
    torch.testing.assert_close(after[:, 3:, 3:], before[:, :3, :3])
    torch.testing.assert_close(after[:, :3, 3:], before[:, :3, 3:])
    assert not torch.allclose(after[:, :3, :3], before[:, :3, :3], atol=1e-3)


def test_sixteen_tokens_leave_deit_small_39_percent_of_its_macs_and_recovery_takes_6_more():
    """The paper states 60 % fewer. The blocks from there on, with what makes and recovers the tokens, cost
    less than they do on patches."""
    options = {"policy": "stvit", "block": 3, "reduction": [0, 0, 0, 180]}
    with torch.device("meta"):
        plain, recovering = (
            build_backbone("deit_small_patch16_224", recovery=own, **options) for own in (False, True)
        )
    whole = count_macs(plain, reduction=0)
    counts = [count_macs(model) for model in (plain, recovering)]
    assert [count.tokens for count in counts] == [(197,) * 3 + (17,) * 9] * 2
    assert [count.total / whole.total for count in counts] == pytest.approx([0.386, 0.450], abs=0.002)
    assert sum(counts[1].blocks[3:]) + sum(counts[1].metric) < sum(whole.blocks[3:]) / 2


def built(**options):
    """65 tokens with a class token, three blocks; 16 semantic tokens from the second one on."""
    return tiny_vit("stvit", **{"reduction": 16, "block": 1, **WHOLE, **options})


@pytest.mark.parametrize("recovery", [False, True])
def test_the_gradient_reaches_the_image_through_the_semantic_tokens_and_every_parameter(recovery):
    model, batch = built(recovery=recovery), images().requires_grad_()
    model(batch).final.tokens.pow(3).sum().backward()
    assert batch.grad is not None and batch.grad.abs().max() > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_patches_read_semantic_tokens_by_what_these_took_of_them():
    module = made(scale=0.0)
    x = patches()
    with torch.no_grad():
        tokens, reads, centre = module.made(x, (SIDE, SIDE), TOKENS)
        near = module.near(tokens, torch.cat([tokens, x], dim=1), seen())[1][..., TOKENS:]
        far = module.far(tokens, torch.cat([tokens, x], dim=1))[1][..., TOKENS:]
    shares = torch.zeros(TOKENS, SIDE, SIDE)
    for token in range(TOKENS):  # regions of 3, 3 and 3 patches in 7: 0 to 2, 2 to 4, 4 to 6
        row, column = (7 * (at // 3) + 2 * (at % 3) for at in divmod(token, 6))
        shares[token, row : row + 3, column : column + 3] = 1 / 9
    taken = shares.flatten(1) + near + far
    torch.testing.assert_close(reads, (taken / taken.sum(1, keepdim=True)).mT)
    torch.testing.assert_close(reads.sum(-1), torch.ones(2, SIDE * SIDE))
    assert torch.equal(reads.argmax(-1)[:, centre], torch.arange(TOKENS).expand(2, -1))


def seen():
    """[36, 232]: the tokens of a window, and the patches of it and of three beside it."""
    place = torch.arange(SIDE)
    of_window = torch.stack([place < 10, place >= 4])
    window = torch.arange(6) // 3
    own = torch.cartesian_prod(window, window)
    same = (own[:, None] == own).all(-1)
    rows, columns = of_window[own[:, 0]], of_window[own[:, 1]]
    return torch.cat([same, (rows[:, :, None] & columns[:, None]).flatten(1)], dim=1)


def test_a_grid_is_restored_by_the_map_and_recovered_where_that_is_asked_for():
    """Behind the last block; a tap in between is read by the map, with either."""
    for recovery in (False, True):
        model = built(recovery=recovery).eval()
        with torch.no_grad():
            output = model(images(), taps=(0, 1), unmerge="soft")
        first, tap = output.taps
        assert first.tokens.shape[1] == 65 and not first.merges
        (merge,) = tap.merges
        assert tap.tokens.shape[1] == 17 and merge.reads.shape == (2, 65, 17)
        torch.testing.assert_close(unmerge_tokens(tap.tokens, tap.merges), merge.reads @ tap.tokens)
        final = output.final
        assert final.tokens.shape[1] == (65 if recovery else 17)
        assert unmerge(final).shape == (2, 48, 8, 8)
        if recovery:
            assert torch.equal(unmerge(final).flatten(2).mT, final.patch_tokens)


@pytest.mark.parametrize("how", [None, "copy", "soft", "residual"])
def test_with_recovery_no_way_of_unmerging_matters(how):
    model = built(recovery=True).eval()
    with torch.no_grad():
        found, wanted = (unmerge(model(images(), unmerge=each).final) for each in (how, "soft"))
    assert torch.equal(found, wanted)


def test_recovery_without_a_reduction_is_the_librarys_model():
    model = built(recovery=True, reduction=0).eval()
    vit = create_vit("deit_tiny_patch16_224", img_size=64, timm_options=SIZES).eval()
    load_weights(model, vit.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(images()).final.tokens, vit.forward_features(images()))


def test_a_head_that_reads_the_prefix_alone_changes_nothing():
    """Neither a recovery nor a reducer in the last block is left out: their parameters would lack a
    gradient."""
    for options in ({"recovery": True}, {"block": 2}):
        model = built(**options).eval()
        with torch.no_grad():
            alone, whole = model(images(), prefix_alone=True).final, model(images()).final
        torch.testing.assert_close(alone.tokens, whole.tokens)


@pytest.mark.parametrize(
    ("reduction", "left"),
    [
        (16, 16),
        ([0, 48], 16),
        ([48, 0, 0], 16),
        ((16, -1.0), 16),
        (0.5, 8),
        (64, 1),
        ([0, 0, 63], 1),
        (0, 64),
    ],
    ids=str,
)
def test_all_tokens_of_a_reduction_leave_in_one_block(reduction, left):
    model = built(reduction=reduction).eval()
    assert model.schedule(model.grid) == (0, 64 - left, 0)
    assert count_macs(model).tokens == (65, left + 1, left + 1)
    with torch.no_grad():
        assert model(images()).final.tokens.shape[1] == left + 1


def test_a_model_reduces_behind_a_quarter_of_its_blocks_unless_it_is_told_where():
    policy = POLICIES.build("stvit")
    assert [policy.place(depth) for depth in (3, 4, 12, 24)] == [0, 1, 3, 6]
    assert POLICIES.build("stvit", block=11).schedule(16, 12, 197, 1) == (0,) * 11 + (192,)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"block": 3}, "block is 3, but the backbone has 3 blocks, 0 to 2"),
        ({"block": -1}, "block is -1; give the number of a block"),
        ({"window": 0}, "window is 0 and overlap 3"),
        ({"overlap": -1}, "overlap -1"),
        ({"init_values": -0.1}, "init_values is -0.1"),
        ({"init_values": math.nan}, "init_values is nan"),
    ],
)
def test_wrong_options_are_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        built(**options)


def test_parameters_are_of_the_kind_of_embeddings_and_learn_alone():
    model = built(recovery=True)
    kinds = {name: role.kind for name, role in roles_of(model).items()}
    own = {name for name, kind in kinds.items() if kind == METRIC}
    assert {name.partition(".norm")[0] for name in own if "norm1.weight" in name} == {
        "blocks.1.reducer.near",
        "blocks.1.reducer.far",
        "blocks.2.recovery.cross",
    }
    assert {kinds[name] for name in kinds.keys() - own} == {BASE}
    head = ClassificationTask(model, num_classes=3)
    set_trainable(model, "modular")
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns == own and head is not None


def test_numbers_of_parameters_do_not_depend_on_the_number_of_tokens_nor_on_the_grid():
    few, many = built(), built(reduction=2, img_size=96, window=None, overlap=0)
    many.load_state_dict(
        {name: t for name, t in few.state_dict().items() if name != "pos_embed"}, strict=False
    )
    assert {n: t.shape for n, t in few.state_dict().items() if "reducer" in n} == {
        n: t.shape for n, t in many.state_dict().items() if "reducer" in n
    }
    with torch.no_grad():
        assert many.eval()(images(size=72)).final.tokens.shape[1] == 1 + 81 - 6


def test_both_ways_of_attending_are_the_same():
    torch.manual_seed(0)
    block, x, others = CrossBlock(C, 3, 1.0), torch.randn(2, 5, C), torch.randn(2, 9, C)
    for sees in (None, torch.arange(9) < torch.arange(2, 7)[:, None]):
        weighed, weights = block(x, others, sees)
        fused, none = block(x, others, sees, weighs=False)
        torch.testing.assert_close(weighed, fused)
        assert none is None and weights.shape == (2, 5, 9)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))


def test_what_is_carried_moves_by_the_map_and_back_by_it_where_it_is_a_mean():
    state = TokenState.start(torch.randn(2, 1 + SIDE * SIDE, C), (SIDE, SIDE), 1)
    values = torch.randn(2, 1 + SIDE * SIDE, 3)
    state = replace(state, carried={"label": Carried(values, "mean"), "count": Carried(values, "sum")})
    after = made(remembers=True)(state, SIDE * SIDE - TOKENS)
    reads = after.merges[0].reads
    torch.testing.assert_close(after.carried["count"].values, reads.mT @ values)
    mean = reads.mT @ values / after.size[..., None]
    torch.testing.assert_close(after.carried["label"].values, mean)
    recovery = Recovery(C, 2, 1.0)
    with pytest.raises(ConfigError, match="'count' is carried by 'sum'"):
        recovery(after)
    after = replace(after, carried={"label": after.carried["label"]})
    torch.testing.assert_close(recovery(after).carried["label"].values, reads @ mean)


def test_a_schedule_cannot_be_solved():
    with pytest.raises(ConfigError, match="'stvit' reduces in one block"):
        ScheduleSolver(counted_vit(built(), (8, 8)), lambda schedule: 0.0)


def test_prices_of_merges_are_refused():
    with pytest.raises(ConfigError, match="merge points need a policy with a metric"):
        built()(images(), merge_points_from=0)
