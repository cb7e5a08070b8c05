"""What rotary positions and sizes promise: a merged token counts like its members, wherever these are."""

import math

import pytest
import torch
from sizes import check_size_two_counts_like_two
from tiny import PREFIXES, RELAXED, ROTARY, generator, images, source_map, tiny_vit

from pipeline.backbone.attention import Place, mix
from pipeline.backbone.rotary import RULES, Rope, RotaryRule
from pipeline.errors import ConfigError
from pipeline.objectives.merge_cost import MergeCost
from pipeline.objectives.prices import expected_cost
from pipeline.token_state import TokenState

RULE = pytest.mark.parametrize("rule", RULES)
BACKBONE = pytest.mark.parametrize("prefix", ROTARY)


def started(model, batch=2):
    """The state before the first block, in float64, and the rotary positions."""
    tokens, grid = model._embed(images(batch).double())
    rotary = model._rotary(grid)
    state = TokenState.start(tokens, grid, model.num_prefix)
    return (state if rotary is None else rotary.start(state)), rotary


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_token_of_size_two_counts_like_two_equal_patches(prefix):
    """In each block, and with rotary positions of their own."""
    model = tiny_vit("none", prefix=prefix).eval().double()
    check_size_two_counts_like_two(model.blocks, *started(model))


@pytest.mark.parametrize("half", [False, True])
def test_with_the_bias_too_a_token_of_size_two_counts_like_two_equal_ones(half):
    """Whose rotations are means."""
    draw = generator(2)
    q, k, v = (torch.randn(2, 3, 9, 16, generator=draw, dtype=torch.float64) for _ in range(3))
    size = torch.randint(1, 4, (2, 9), generator=draw).double()
    size[:, -1] = 2
    table = torch.rand(2, 1, 9, 32, generator=draw, dtype=torch.float64)
    twice = torch.tensor([*range(9), 8])
    doubled_size = torch.cat([size[:, :-1], torch.ones(2, 2)], dim=1)
    once = mix(q, k, v, Place(size, Rope(table, half, bias=True)), scale=0.3).output
    plain = mix(q, k, v, Place(size, Rope(table, half)), scale=0.3).output
    rope = Rope(table[:, :, twice], half, bias=True)
    doubled = mix(*(x[:, :, twice] for x in (q, k, v)), Place(doubled_size, rope), scale=0.3).output
    torch.testing.assert_close(doubled[:, :, :-1], once, atol=1e-12, rtol=0)
    assert not torch.allclose(once, plain, atol=1e-3)
    exact = mix(q, k, v, Place(size, Rope(table, half, bias=True), exact=True), scale=0.3).output
    torch.testing.assert_close(exact, once, atol=1e-9, rtol=0)


def test_the_rows_of_a_table_are_the_positions_of_its_patches():
    model = tiny_vit("none", prefix="dinov3: rotary positions, registers")
    rotary = model._rotary((3, 5))
    assert rotary.tables[0].shape == (1, 1, model.num_prefix + 15, 32)
    q = torch.randn(1, 1, model.num_prefix + 15, 16)
    rotated = Rope(rotary.tables[0], rotary.half).rotate(q)
    assert torch.equal(rotated[:, :, : model.num_prefix], q[:, :, : model.num_prefix])
    torch.testing.assert_close(rotated.norm(dim=-1), q.norm(dim=-1))


@BACKBONE
@RULE
@pytest.mark.parametrize("variant", ["tome", "dtem_soft"])
def test_merged_tokens_get_the_position_of_their_rule(prefix, rule, variant):
    """Against the definition, from the source map, for hard and for relaxed merges."""
    model = tiny_vit(variant, prefix=prefix).double().train(variant != "tome")
    model.rotary_rule = RotaryRule(rule)
    with torch.no_grad():
        state = model(images().double(), training=True).final
        rotary = model._rotary(state.grid)
        for i, table in enumerate(rotary.tables):
            found = rotary.at(state, i).table
            weights = source_map(state)  # [B, N, M]
            share = (weights / weights.sum(dim=1, keepdim=True)).mT[:, None]
            if rule == "mean_rotation":
                live = state.num_active
                expected = share.to(table.dtype) @ table
                torch.testing.assert_close(
                    found[:, :, :live].expand_as(expected[:, :, :live]),
                    expected[:, :, :live],
                    atol=1e-4,
                    rtol=0,
                )
            elif rule == "virtual_unmerging":
                assert torch.equal(found, table)
            else:
                lengths = found.unflatten(-1, (2, -1)).square().sum(dim=-2)
                torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-5, rtol=0)


@BACKBONE
def test_the_destination_keeps_a_position_of_the_grid_and_a_mean_lies_between(prefix):
    model = tiny_vit("tome", prefix=prefix).eval()
    for rule in ("destination", "mean_coordinate"):
        model.rotary_rule = RotaryRule(rule)
        with torch.no_grad():
            state = model(images()).final
            table = model._rotary(state.grid).tables[0]
            found = model._rotary(state.grid).at(state, 0).table
        prefix = state.num_prefix
        far = (found[:, 0, prefix:, None] - table[0, 0, prefix:]).abs().amax(dim=-1)
        if rule == "destination":
            assert (far.amin(dim=-1) == 0).all()
            holds = source_map(state)[:, prefix:, prefix:].gather(1, far.argmin(dim=-1)[:, None])
            assert (holds > 0).all(), "the position of one of its own patches"
        else:
            assert far.amin(dim=-1).max() > 1e-3


@BACKBONE
def test_the_coordinates_of_the_grid_give_the_table_of_the_library(prefix):
    model = tiny_vit("tome", prefix=prefix).eval().double()
    model.rotary_rule = RotaryRule("mean_coordinate")
    state, rotary = started(model)
    for i in range(model.depth):
        table = rotary.at(state, i).table
        again = rotary.at(state, i, torch.zeros_like(rotary.averaged(state, i))).table
        torch.testing.assert_close(again, table.expand_as(again), atol=1e-5, rtol=0)


@BACKBONE
@RULE
@pytest.mark.parametrize("variant", RELAXED)
def test_a_relaxed_merge_learns_with_every_rule(prefix, rule, variant):
    model = tiny_vit(variant, prefix=prefix).train()
    model.rotary_rule = RotaryRule(rule)
    state = model(images()).final
    assert state.tokens.isfinite().all()
    state.tokens[:, : state.num_active].square().mean().backward()
    metric = model.blocks[0].metric.weight.grad
    assert metric.abs().max() > 0
    assert all(own.grad.isfinite().all() for own in model.parameters() if own.grad is not None)


@BACKBONE
def test_virtual_unmerging_is_the_attention_of_all_members(prefix):
    model = tiny_vit("tome", prefix=prefix).eval().double()
    model.rotary_rule = RotaryRule("virtual_unmerging")
    with torch.no_grad():
        state = model(images().double()).final
        rotary, block = model._rotary(state.grid), model.blocks[1]
        merged = block.attend(state.tokens, Place(state.size, rotary.at(state, 1))).output
        table = rotary.tables[-1 if len(rotary.tables) == 1 else 1]
        weights = source_map(state)
        everywhere = block.attend(weights @ state.tokens, Place(None, Rope(table, rotary.half)))
        attn = block.attn
        # what follows attention is not linear in all hosts: compare the outputs of attention itself
        output = everywhere.mixed.output.transpose(1, 2).flatten(2)
        expected = weights.mT @ output / weights.sum(dim=1)[..., None]
        found = block.attend(state.tokens, Place(state.size, rotary.at(state, 1))).mixed.output
    torch.testing.assert_close(found.transpose(1, 2).flatten(2), expected, atol=1e-9, rtol=0)
    assert merged.shape == state.tokens.shape and attn.num_heads == 3


def exact_and_found(distance: int, bias: bool, half: bool):
    """Logits [Q] of a pair of equal keys that are some patches apart: exact, and by the rule."""
    draw = generator(3)
    angle = torch.arange(0, distance + 1, dtype=torch.float64)[:, None] * 0.2 ** torch.arange(8.0).double()
    layout = (lambda x: torch.cat([x, x], -1)) if half else (lambda x: x.repeat_interleave(2, -1))
    table = torch.cat([layout(angle.sin()), layout(angle.cos())], dim=-1)[None, None]
    q = torch.randn(1, 1, 4000, 16, generator=draw, dtype=torch.float64) * 0.2
    k = torch.randn(1, 1, 1, 16, generator=draw, dtype=torch.float64)
    members = table[:, :, [0, distance]]
    each = q @ Rope(members, half).rotate(k.expand(-1, -1, 2, -1)).mT
    exact = each.logsumexp(dim=-1)
    mean = Rope(members.mean(dim=2, keepdim=True), half, bias)
    found = (q @ mean.rotate(k).mT)[..., 0] + math.log(2)
    own = mean.key_bias(q, k, 1.0, None)
    return exact, found if own is None else found + own


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("distance", [1, 3, 6])
def test_mean_rotation_is_a_lower_bound_that_the_bias_lifts_by_the_mean_gap(distance, half):
    exact, found = exact_and_found(distance, False, half)
    assert (found <= exact + 1e-12).all(), "Jensen"
    _, lifted = exact_and_found(distance, True, half)
    gap = (exact - found).mean()
    assert abs((exact - lifted).mean()) < (0.2 if distance == 1 else 0.5) * gap


@BACKBONE
@RULE
def test_merge_cost_prices_positions_that_a_merge_averages(prefix, rule):
    """By the gradient of what the last block reads of them."""
    model = tiny_vit("dtem", prefix=prefix).eval().double()
    model.rotary_rule = RotaryRule(rule)
    output = model(images().double(), reduction=[8, 0, 0], merge_points_from=1)
    first, last = output.merge_points
    weights = torch.randn(48, generator=generator(6), dtype=torch.float64)
    total = (output.final.tokens[:, 0] @ weights).sum()
    grads = torch.autograd.grad(total, [first.probe, last.probe], retain_graph=True)
    costs = [expected_cost(last, grads[1], 0.1), expected_cost(first, grads[0], 0.1)]
    if rule in ("mean_rotation", "mean_coordinate"):
        before = first.state.with_tokens(model.blocks[1].feed_forward(first.state.tokens))
        probe = torch.zeros_like(last.rope, requires_grad=True)
        place = Place(before.size, model._rotary(before.grid).at(before, 2, probe))
        after = model.norm(model.blocks[2](before, 0, place, relaxed=False).tokens)
        (found,) = torch.autograd.grad((after[:, 0] @ weights).sum(), probe)
        (of_rope,) = torch.autograd.grad(total, last.rope_probe, retain_graph=True)
        torch.testing.assert_close(of_rope, found, rtol=1e-9, atol=1e-12)
        plain = costs.pop()
        costs.append(expected_cost(first, grads[0], 0.1, positions=[(last.rope, of_rope)]))
        assert of_rope.abs().max() > 0 and costs[-1] != plain
    else:
        assert last.rope is None
    cost = MergeCost(temperature=0.1).cost_of(output.merge_points, total, range(1, 3), (8, 8, 8), 64)
    torch.testing.assert_close(cost, torch.stack(costs).mean())


@pytest.mark.parametrize(("name", "bias"), [("mean", False), ("destination", True)])
def test_an_unknown_rule_and_a_bias_without_mean_rotation_are_refused(name, bias):
    with pytest.raises(ConfigError, match="mean_rotation"):
        RotaryRule(name, bias)
