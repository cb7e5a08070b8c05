"""Learned schedules: they meet the target, move merges away from where they harm, and leave the model as it
was."""

import pytest
import timm
import torch
from tiny import IMG, SIZES, images, tiny_vit

import dtem
from pipeline.backbone.learned_schedule import learned_schedule, removed_macs, shares_of
from pipeline.backbone.macs import counted_model, counted_vit, reduction_for_macs
from pipeline.backbone.macs_goal import MacsGoal
from pipeline.errors import ConfigError
from pipeline.merging.learned_rate import BlockRates, Rate

GRID = (8, 8)
STEPS = range(15)


def loses_in_the_first_block(model):
    """What merges in the first block costs, and nothing else does."""

    def loss(schedule):
        output = model(images(), reduction=list(schedule), relaxed=True, taps=(0,))
        return (output.taps[0].size - 1).square().mean()

    return loss


def loses_patches(model):
    """What is pruned anywhere costs."""

    def loss(schedule):
        size = model(images(), reduction=list(schedule), relaxed=True).final.size
        return (65 - size.sum(dim=1)).square().mean()

    return loss


@pytest.mark.parametrize("policy", ["tome", "evit", "diffrate"])
def test_merges_move_to_where_they_cost_nothing(policy):
    model = tiny_vit(policy).eval()
    counted = counted_vit(model, GRID)
    found = learned_schedule(model, counted, 0.7, loses_in_the_first_block(model), STEPS)
    even = reduction_for_macs(model, 0.7)
    assert found.schedule[0] < even[0] - 1 and sum(found.schedule[1:]) > sum(even[1:])
    assert found.macs == counted.macs(found.schedule).total <= 0.7 * counted.macs(counted.schedule(0)).total
    assert found.schedule == MacsGoal(counted, 0.7).tight(found.schedule)


def test_a_policy_that_prunes_first_learns_how_much():
    model = tiny_vit("diffrate").eval()
    found = learned_schedule(model, counted_vit(model, GRID), 0.7, loses_patches(model), STEPS)
    assert len(found.options["pruned"]) == 3
    assert all(0 <= share < 0.4 for share in found.options["pruned"])


@torch.no_grad()
def test_blocks_share_what_is_there():
    """Means are no whole numbers: twelve of 1.9 are more than 16 patches, which lose one at a time."""
    rates = [BlockRates(Rate(0.0, 16, torch.device("cpu"))) for _ in range(12)]
    for own in rates:
        own.merged.logits.copy_(torch.tensor([0.0, 0.1, 0.9, *[0.0] * 6]).log())
    shares = shares_of(rates, 16)
    assert shares[0] == pytest.approx(1.9 / 16) and all(0 < share <= 0.5 for share in shares)


def test_a_divergence_that_is_no_number_later_on_is_told():
    model, seen = tiny_vit("tome").eval(), iter([1.0, 1.0])

    def loss(schedule):
        return torch.tensor(next(seen, torch.nan))

    with pytest.raises(ConfigError, match="nan in place of a divergence"):
        learned_schedule(model, counted_vit(model, GRID), 0.7, loss, STEPS)


def test_the_model_is_as_it_was():
    model = tiny_vit("tome").eval()
    policy, blocks = model.policy, [block.policy for block in model.blocks]
    with torch.inference_mode():
        found = learned_schedule(
            model, counted_vit(model, GRID), 0.8, loses_in_the_first_block(model), range(2)
        )
    assert found.options == {} and model.policy is policy
    assert all(block.policy is own for block, own in zip(model.blocks, blocks, strict=True))
    assert model.proportional_attention == "always" and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())

    def broken(schedule):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        learned_schedule(model, counted_vit(model, GRID), 0.8, broken, range(2))
    assert model.policy is policy and model.blocks[2].policy is blocks[2]


def test_a_patched_model_learns_as_well():
    model = timm.create_model("deit_tiny_patch16_224", img_size=IMG, **SIZES).eval()
    patched = dtem.patch(model, "tome", 0)
    counted = counted_model(patched, images(1))

    def loss(schedule):
        output = patched.encode(images(), reduction=list(schedule), relaxed=True, taps=(0,))
        return (output.taps[0].size - 1).square().mean()

    found = learned_schedule(patched, counted, 0.7, loss, STEPS)
    assert found.schedule[0] < counted.reduction_for(0.7)[0] - 1
    assert patched.merging.policy.name == "tome"


@pytest.mark.parametrize("policy", ["random", "tome", "diffrate"])
def test_macs_of_real_numbers_are_those_of_whole_ones(policy):
    """Exact where nothing is compared; the costs of comparisons are no parabolas of both."""
    counted = counted_vit(tiny_vit(policy), GRID)
    macs = removed_macs(counted)
    for schedule in ([8, 8, 8], [1, 20, 15], [30, 1, 5]):
        own = float(macs([torch.tensor(float(r)) for r in schedule]))
        exact = counted.macs(counted.schedule(schedule)).total
        assert own == pytest.approx(exact, rel=1e-6 if policy == "random" else 0.03)


def test_what_cannot_be_learned_is_refused_by_name():
    model = tiny_vit("atc").eval()
    with pytest.raises(ConfigError, match="rates of merge policy 'atc' cannot be learned.*tome"):
        learned_schedule(model, counted_vit(model, GRID), 0.7, loses_patches(model), STEPS)
    model = tiny_vit("tome").eval()
    with pytest.raises(ConfigError, match="cannot be reached"):
        learned_schedule(model, counted_vit(model, GRID), 0.01, loses_patches(model), STEPS)
    with pytest.raises(ConfigError, match="cannot be learned on 4 patches"):
        learned_schedule(model, counted_vit(model, (2, 2)), 0.9, loses_patches(model), STEPS)
    with pytest.raises(ConfigError, match="nan in place of a divergence"):
        learned_schedule(model, counted_vit(model, GRID), 0.7, lambda _: torch.tensor(torch.nan), STEPS)
