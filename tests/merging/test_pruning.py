"""What an assignment says of dropped tokens: what arrives of them, and what is read in their place."""

import pytest
import torch
from tiny import random_state

from pipeline.merging.apply import apply, replay
from pipeline.merging.pruning import least_first, prune
from pipeline.merging.unmerge import slots, unmerge, unmerge_tokens
from pipeline.token_state import Assignment, Carried, TokenState


def three(dtype=torch.float32, learns=False):
    """Tokens 1, 3, 5 of sizes 1, 1, 2, and what else they carry."""
    values = torch.tensor([[1.0, 3.0, 5.0]], dtype=dtype)
    carried = {rule: Carried(values, rule) for rule in ("mean", "sum", "first")}
    size = torch.tensor([[1.0, 1.0, 2.0]], dtype=dtype)
    return TokenState(values[..., None].clone().requires_grad_(learns), size, (1, 3), 0, 3, carried=carried)


def first_gives_to_last(**amounts):
    index = torch.tensor
    return Assignment.of(index([[1, 2]]), index([[0]]), index([[1]]), 3, **amounts)


@pytest.mark.parametrize("learns", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(("part", "size"), [(0.0, 2.0), (0.5, 2.5), (1.0, 3.0)])
def test_a_part_arrives_in_sizes_means_and_what_is_carried(part, size, learns):
    state = three(learns=learns)
    after = apply(state, first_gives_to_last(part=torch.tensor([[part]])))
    mean = (part * 1 + 2 * 5) / size
    torch.testing.assert_close(after.size, torch.tensor([[1.0, size]]))
    torch.testing.assert_close(after.tokens[0, :, 0], torch.tensor([3.0, mean]))
    expected = {"mean": [3.0, mean], "sum": [3.0, 5.0 + part], "first": [3.0, 5.0]}
    for rule, values in expected.items():
        torch.testing.assert_close(after.carried[rule].values, torch.tensor([values]))
    if learns:
        (grad,) = torch.autograd.grad(after.tokens.sum(), state.tokens)
        torch.testing.assert_close(grad[0, :, 0], torch.tensor([part / size, 1.0, 2 / size]))


def test_with_weights_a_part_arrives_of_the_weight_too():
    weight = torch.tensor([[4.0, 9.0, 2.0]])
    after = apply(three(), first_gives_to_last(part=torch.tensor([[0.5]]), weight=weight))
    torch.testing.assert_close(after.tokens[0, :, 0], torch.tensor([3.0, (0.5 * 4 * 1 + 2 * 5) / 4]))
    torch.testing.assert_close(after.size, torch.tensor([[1.0, 2.5]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_spread_is_added_to_tokens_and_sizes(dtype):
    """And the mean of what is carried counts it by its size."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    state = three(dtype=wide)
    state = state.with_tokens(state.tokens.to(dtype))
    after = apply(state, first_gives_to_last(spread=torch.tensor([[[0.25], [0.5]]], dtype=wide)))
    assert after.tokens.dtype == dtype and after.size.dtype == wide
    expected = {"tokens": [3.25, 5.5], "size": [1.25, 2.5], "sum": [3.25, 5.5], "first": [3.0, 5.0]}
    expected["mean"] = [(3 + 0.25) / 1.25, (10 + 0.5) / 2.5]
    found = {rule: item.values[0] for rule, item in after.carried.items()}
    found |= {"tokens": after.tokens[0, :, 0].to(wide), "size": after.size[0]}
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(values, dtype=wide))


def test_several_dims_are_spread_alike():
    state, size = random_state(9, batch=2, dim=5), (2, 6, 3)
    spread = torch.rand(2, 6, 3)
    keep, source = torch.arange(6).expand(2, -1), torch.arange(6, 9).expand(2, -1)
    merge = Assignment.of(keep, source, torch.zeros_like(source), 9, spread=spread)
    values = torch.randn(2, 9, 4, 3)
    moved = replay(values, [merge], state.size)
    assert spread.shape == size and moved.shape == (2, 6, 4, 3)
    weights = torch.cat([torch.eye(6).expand(2, -1, -1), spread], dim=2) * state.size[:, None]
    expected = torch.einsum("bkm,bmxy->bkxy", weights / weights.sum(2, keepdim=True), values)
    torch.testing.assert_close(moved, expected)


def test_what_was_dropped_is_read_where_its_slot_says():
    for amounts in ({"part": torch.zeros(1, 1)}, {"spread": torch.zeros(1, 2, 1)}):
        after = apply(three(), first_gives_to_last(**amounts))
        assert slots(after).tolist() == [[1, 0, 1]]
        assert unmerge(after).flatten().tolist() == [5.0, 3.0, 5.0]
        gradient = torch.autograd.functional.jacobian(
            lambda x, merges=after.merges: unmerge_tokens(x, merges), after.tokens
        )
        assert gradient.sum().item() == 3.0


def test_the_least_important_patches_leave_and_the_most_alike_is_read():
    """By hand: a prefix token and four patches on a circle; the third is unimportant, and like the second."""
    state = TokenState.start(torch.tensor([[[9.0, 9], [1, 0], [0, 1], [0.1, 1], [-1, 0]]]), (1, 4), 1)
    importance = torch.tensor([[0.5, 0.4, 0.1, 0.3]])
    merge = prune(state, importance, state.tokens, 1)
    assert merge.keep.tolist() == [[0, 1, 2, 4]] and merge.source.tolist() == [[3]]
    assert merge.slot.tolist() == [[2]] and merge.part is not None and merge.part.tolist() == [[0.0]]
    merge = prune(state, importance, state.tokens, 2)
    assert merge.keep.tolist() == [[0, 1, 2]] and merge.source.tolist() == [[3, 4]]
    assert merge.slot.tolist() == [[2, 2]], "of what is right behind it, the opposite is least alike"
    after = apply(state, merge)
    assert torch.equal(after.tokens, state.tokens[:, :3]) and torch.equal(after.size, torch.ones(1, 3))


def test_no_prefix_token_is_read_in_place_of_a_patch():
    tokens = torch.randn(3, 9, 4)
    tokens[:, 1:3] = tokens[:, :1]  # two patches like the prefix
    state = TokenState.start(tokens, (2, 4), 1)
    importance = torch.rand(3, 8) + 1
    importance[:, :2] = 0
    merge = prune(state, importance, tokens, 2)
    assert ((merge.slot % merge.keep.shape[1]) >= 1).all()


def test_importance_ranks_all_patches_and_no_other_token():
    state = random_state(9, prefix=2)
    importance = torch.rand(2, 7)
    assert torch.equal(least_first(state, importance), importance.argsort(dim=-1))
