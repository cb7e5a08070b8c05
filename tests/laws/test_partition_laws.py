"""What partitions promise: who is a source and who a destination, in training as in inference, for prices and
padding too. All laws of merging and unmerging run over them as well (tiny.PARTITIONED)."""

from dataclasses import replace

import pytest
import timm
import torch
from asks_nothing import AsksNothing
from kernel_counts import kernels
from tiny import PARTITIONED, WAYS, assert_trains_on_inference, generator, images, merged, tiny_vit

import dtem
from pipeline.errors import ConfigError
from pipeline.merging.matching import parity_split
from pipeline.merging.partitions import OF_THE_GRID, PARTITIONS, partition_rows
from pipeline.merging.policies import POLICIES
from pipeline.objectives.prices import expected_cost
from pipeline.token_state import Carried, MergePoint, TokenState

GRIDS = [(8, 8), (7, 5), (3, 9), (5, 4), (1, 6), (5, 1)]
PARTITION = pytest.mark.parametrize("partition", PARTITIONS)
OF_COLOURS = pytest.mark.parametrize("partition", [name for name in OF_THE_GRID if name != "parity"])
RELAXED = [name for name in PARTITIONED if name.startswith("dtem")]


def start(grid, prefix=1, batch=2):
    """Tokens in float64 that carry their number in the input."""
    count = grid[0] * grid[1] + prefix
    tokens = torch.randn(batch, count, 6, generator=generator(count), dtype=torch.float64)
    number = Carried(torch.arange(count).expand(batch, -1), "first")
    return replace(TokenState.start(tokens, grid, prefix), carried={"number": number})


def merge(partition, state, r, metric=None):
    policy = POLICIES.build("tome", partition=partition)
    return merged(policy, state, state.tokens if metric is None else metric, r)


def sources(before, after):
    """[B, r]: numbers in the input of the tokens that the last merge took away."""
    return before.carried["number"].values.flatten()[after.merges[-1].source]


@OF_COLOURS
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_in_the_first_merge_sources_are_the_cells_of_one_colour(partition, grid, prefix):
    before, (height, width) = start(grid, prefix), grid
    after = merge(partition, before, 100)
    patch = sources(before, after) - prefix
    colour = (patch // width + patch % width) % 2
    assert len(colour.unique()) == 1 and patch.shape[1] == height * width // 2
    kept = after.carried["number"].values[:, prefix:] - prefix
    ours = (kept // width + kept % width) % 2 == colour[0, 0]
    assert int(ours.sum()) == 2 * (height * width % 2) * int(prefix % 2 == 0)


@pytest.mark.parametrize("grid", [(8, 8), (7, 5), (5, 4)], ids=str)
@pytest.mark.parametrize("prefix", [0, 1])
def test_along_the_path_every_second_token_that_is_left_is_a_source(grid, prefix):
    """In each merge, by the place of the patch into which others merged."""
    state, width = start(grid, prefix), grid[1]
    for seed in range(3):
        metric = torch.randn(state.tokens.shape, generator=generator(seed), dtype=torch.float64)
        before, state = state, merge("path", state, 100 if seed == 2 else 4, metric)
        for image, taken in enumerate(sources(before, state).tolist()):
            left = before.carried["number"].values[image, prefix:].tolist()
            row, column = zip(*(divmod(number - prefix, width) for number in left), strict=True)
            steps = [r * width + (width - 1 - c if r % 2 else c) for r, c in zip(row, column, strict=True)]
            along = [left[place] for place in sorted(range(len(left)), key=steps.__getitem__)]
            assert set(taken) <= set(along[prefix % 2 :: 2])


@pytest.mark.parametrize("grid", [(8, 8), (7, 5)], ids=str)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_of_two_tokens_that_are_most_alike_one_may_merge_into_the_other(grid, prefix):
    """Under `nearest`: of each pair, wherever it is, and first of all."""
    state = start(grid, prefix)
    unit = torch.nn.functional.normalize(state.tokens[:, prefix:], dim=-1)
    scores = (unit @ unit.mT).masked_fill(torch.eye(unit.shape[1], dtype=torch.bool), -2)
    likeness, nearest = scores.max(dim=-1)
    split, rows = parity_split(state), partition_rows("nearest", state.tokens, state)
    after = merge("nearest", state, 4)
    for image, order in enumerate(rows % state.tokens.shape[1] - prefix):
        giving, receiving = (set(order[part].tolist()) for part in (split.sources, split.destinations))
        assert sorted(giving | receiving) == list(range(unit.shape[1])) and not giving & receiving
        pairs = [(i, j) for i, j in enumerate(nearest[image].tolist()) if nearest[image, j] == i]
        assert len(pairs) > 4 and all((i in giving) != (j in giving) for i, j in pairs)
        best = likeness[image].sort(descending=True).values[0]
        merged_ones = sources(state, after)[image] - prefix
        assert likeness[image, merged_ones[0]] == best


@PARTITION
@pytest.mark.parametrize("policy", ["tome", "dtem", "random"])
def test_numbers_of_tokens_are_those_of_parity_and_the_host_asks_nothing(policy, partition):
    if policy == "random" and partition not in OF_THE_GRID:
        pytest.skip("it compares nothing")
    policy, state = POLICIES.build(policy, partition=partition), start((8, 8))
    for r, left in ((10, 55), (27, 28), (100, 15)):
        state = AsksNothing.within(merged)(policy, state, state.tokens, r)
        assert state.tokens.shape[1] == left


@pytest.mark.parametrize("way", RELAXED)
def test_training_has_the_partition_of_inference(way):
    """By straight-through merges, whose forward pass is that of inference over three blocks."""
    assert_trains_on_inference(way)


@pytest.mark.parametrize("way", RELAXED)
@pytest.mark.parametrize("options", [{"relaxation": "soft"}, {"split": "reference"}], ids=str)
def test_a_soft_merge_learns_under_a_partition(way, options):
    if "split" in options and WAYS[way][1]["partition"] not in OF_THE_GRID:
        pytest.skip("it is refused")
    policy = POLICIES.build("dtem", **WAYS[way][1], **options)
    state, metric = start((8, 8)), torch.randn(2, 65, 5, generator=generator(1), dtype=torch.float64)
    metric.requires_grad_()
    for _ in range(2):
        state = merged(policy, state, metric, 9, training=True)
    weights = torch.randn(state.size.shape, generator=generator(2), dtype=torch.float64)
    (slope,) = torch.autograd.grad((state.size * weights).sum(), metric)
    assert slope.isfinite().all() and slope[:, 1:].abs().amax(dim=-1).gt(0).any(dim=1).all()
    assert not slope[:, 0].any(), "the prefix is compared with nothing"


def cost_of_each_pair(state, grad):
    """[B, M, M]: the price of docs/merge_cost.md, pair by pair."""
    x, s = state.tokens, state.size
    apart = x[:, None] - x[:, :, None]  # [B, a, b]: x_b - x_a
    force = s[:, None, :, None] * grad[:, :, None] - s[:, :, None, None] * grad[:, None]
    return ((force * apart).sum(-1) / (s[:, :, None] + s[:, None])).square() / 2


@PARTITION
@pytest.mark.parametrize("merges_before", [0, 1])
def test_at_a_low_temperature_the_price_is_that_of_the_merge_that_is_made(partition, merges_before):
    state = start((4, 6))
    for _ in range(merges_before):
        state = merge(partition, state, 7)
    grad, metric = (
        torch.randn(state.tokens.shape, generator=generator(n), dtype=torch.float64) for n in (3, 4)
    )
    made = merge(partition, state, 3, metric).merges[-1]
    costs, image = cost_of_each_pair(state, grad), torch.arange(2)[:, None]
    receiver = made.keep.flatten()[made.slot] % made.num_tokens
    merged_ones = costs[image, made.source % made.num_tokens, receiver].mean(dim=1)
    split, rows = parity_split(state), partition_rows(partition, metric, state)
    order = torch.arange(made.num_tokens).expand(2, -1) if rows is None else rows % made.num_tokens
    of_all = [
        own[a][:, b].mean()
        for own, a, b in zip(costs, order[:, split.sources], order[:, split.destinations], strict=True)
    ]
    point = MergePoint(state, metric, torch.zeros_like(metric), partition=partition)
    patches = state.num_active - 1
    priced = expected_cost(point, grad, 1e-7, 3 / patches)
    torch.testing.assert_close(priced, merged_ones.mean() / torch.stack(of_all).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", PARTITIONED)
def test_what_a_backbone_tells_of_its_merges_has_their_partition(way):
    output = tiny_vit(way)(images(), reduction=[4, 0, 0], relaxed=False, merge_points_from=1)
    assert {point.partition for point in output.merge_points} == {WAYS[way][1]["partition"]}


@pytest.mark.parametrize("way", ["tome_checkerboard", "dtem_path"])
def test_an_image_merges_with_padding_as_without(way):
    """By the places of its own grid, in float64."""
    model = (
        timm.create_model("naflexvit_base_patch16_gap", depth=3, embed_dim=48, num_heads=3).double().eval()
    )
    policy, options = WAYS[way]
    where = torch.cartesian_prod(torch.arange(5), torch.arange(6)).expand(2, -1, -1).clone()
    where[1, 24:] = 0
    batch = {
        "patches": torch.randn(2, 30, 16 * 16 * 3, generator=generator(4), dtype=torch.float64),
        "patch_coord": where,
        "patch_valid": torch.arange(30) < torch.tensor([[30], [24]]),
    }
    alone = {name: values[1:, :24] for name, values in batch.items()}
    dtem.patch(model, policy, **options)
    for reduction in (3, 12, 0.7, [0, 5, 1]):
        model.reduction = reduction
        with torch.no_grad():
            both, one = (model.encode(*given.values()).final for given in (batch, alone))
        live = int((one.size > 0).sum())
        torch.testing.assert_close(both.tokens[1:, :live], one.tokens[:, :live], atol=1e-9, rtol=0)
        torch.testing.assert_close(both.size[1:, :live], one.size[:, :live])
    embedded = model.embedded(*batch.values())  # timm asks the device for its values here
    first = AsksNothing.within(model.encode_embedded)(embedded, reduction=[9, 0, 0]).final.merges[0]
    patch = first.source % first.num_tokens - model.num_prefix_tokens
    row, column = where.gather(1, patch[..., None].expand(-1, -1, 2)).unbind(dim=-1)
    assert all(len(colours.unique()) == 1 for colours in (row + column) % 2), "cells of one colour"


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["checkerboard", "path"])
def test_a_program_of_a_partition_is_exported(partition):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64, num_classes=3).eval()
    dtem.patch(model, "tome", reduction=3, partition=partition)
    with torch.no_grad():
        program = torch.export.export(
            model, (images(),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )
        torch.testing.assert_close(program.module()(images(1)), model(images(1)), atol=1e-4, rtol=1e-4)


def test_a_checkerboard_costs_some_kernels_once():
    counts = []
    for partition in ("parity", "checkerboard"):
        policy, state = POLICIES.build("tome", partition=partition), start((8, 8))
        for _ in range(2):
            before, found = state, []
            counts.append(kernels(lambda: found.append(merged(policy, before, before.tokens, 8))).total())  # noqa: B023
            state = found[0]
    parity, later, first, after_it = counts
    assert parity < first <= parity + 14 and after_it == later


@pytest.mark.parametrize(
    ("policy", "partition", "reason"),
    [
        ("tome", "diagonal", "tome: partition is 'diagonal'; give one of parity, checkerboard"),
        ("dtem", "", "dtem: partition is ''"),
        ("random", "nearest", "random: partition is 'nearest'; give one of parity, checkerboard, path"),
    ],
)
def test_another_partition_is_refused(policy, partition, reason):
    with pytest.raises(ConfigError, match=reason):
        POLICIES.build(policy, partition=partition)
