"""What travels with the tokens moves by its rule, and tokens by sizes or weights."""

from dataclasses import replace

import pytest
import torch
from tiny import MERGING, RELAXED, VARIANTS, merged, random_state, tiny_vit

from pipeline.errors import ConfigError
from pipeline.merging.apply import apply
from pipeline.merging.policies import POLICIES
from pipeline.merging.unmerge import unmerge_tokens
from pipeline.token_state import Assignment, Carried, TokenState


def carried_by_hand(share):
    """Tokens 1, 3, 5 of sizes 1, 1, 2; the first gives to the last, and stays only where it gives a share."""
    keep = torch.tensor([[1, 2]]) if share is None else torch.tensor([[0, 1, 2]])
    slot = torch.tensor([[keep.shape[1] - 1]])
    values = torch.tensor([[1.0, 3.0, 5.0]])
    relations = torch.arange(9.0).view(1, 3, 3)
    state = TokenState(
        values[..., None],
        torch.tensor([[1.0, 1.0, 2.0]]),
        (1, 3),
        0,
        3,
        carried={rule: Carried(values, rule) for rule in ("mean", "sum", "first")}
        | {"pairwise": Carried(relations, "pairwise")},
    )
    shares = {} if share is None else {"share": torch.tensor([[share]])}
    return apply(state, Assignment.of(keep, torch.tensor([[0]]), slot, 3, **shares))


def test_what_is_carried_moves_by_its_rule():
    after = carried_by_hand(None)
    expected = {"mean": [[3.0, 11 / 3]], "sum": [[3.0, 6.0]], "first": [[3.0, 5.0]]}
    for rule, values in expected.items():
        torch.testing.assert_close(after.carried[rule].values, torch.tensor(values))
    torch.testing.assert_close(after.tokens[..., 0], after.carried["mean"].values)
    assert after.carried["pairwise"].values.tolist() == [[[4.0, 5.0], [7.0, 8.0]]]


def test_what_is_carried_moves_by_shares():
    after = carried_by_hand(0.5)
    expected = {"mean": [[1.0, 3.0, 10.5 / 2.5]], "sum": [[0.5, 3.0, 5.5]], "first": [[1.0, 3.0, 5.0]]}
    for rule, values in expected.items():
        torch.testing.assert_close(after.carried[rule].values, torch.tensor(values))
    torch.testing.assert_close(after.size, torch.tensor([[0.5, 1.0, 2.5]]))
    back = unmerge_tokens(after.tokens, after.merges)
    torch.testing.assert_close(back[..., 0], torch.tensor([[(1.0 + 4.2) / 2, 3.0, 4.2]]))


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_unit_of_weights_is_free(unit, dtype):
    state = TokenState(torch.tensor([[[1.0], [4.0], [6.0]]]), torch.ones(1, 3), (1, 3), 0, 3)
    index = torch.tensor
    weight = (torch.tensor([[1.0, 2.0, 0.0]]) * unit).to(dtype)
    merge = Assignment.of(index([[1, 2]]), index([[0]]), index([[0]]), 3, weight=weight)
    torch.testing.assert_close(apply(state, merge).tokens[0, :, 0], torch.tensor([3.0, 6.0]))


@pytest.mark.parametrize("variant", RELAXED)
@pytest.mark.parametrize("tokens", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", [torch.bfloat16, torch.float32, torch.float64])
def test_what_is_carried_keeps_its_dtype(variant, tokens, values):
    policy, options = VARIANTS[variant]
    state = random_state(17, dtype=tokens)
    carried = {rule: Carried(torch.ones(2, 17, dtype=values), rule) for rule in ("mean", "sum", "first")}
    state, metric = replace(state, carried=carried), torch.randn(2, 17, 5, dtype=tokens)
    after = merged(POLICIES.build(policy, **options), state, metric, 4, training=True)
    assert {item.values.dtype for item in after.carried.values()} == {values}
    torch.testing.assert_close(after.carried["mean"].values, torch.ones_like(after.carried["mean"].values))
    grid = unmerge_tokens(torch.ones(2, after.tokens.shape[1], 1, dtype=values), after.merges)
    torch.testing.assert_close(grid, torch.ones(2, 17, 1, dtype=values))


def test_a_sum_of_many_is_exact_in_bfloat16():
    state = TokenState(torch.ones(1, 601, 1), torch.ones(1, 601), (1, 601), 0, 601)
    state = replace(state, carried={"count": Carried(torch.ones(1, 601, dtype=torch.bfloat16), "sum")})
    source = torch.arange(600)[None]
    merge = Assignment.of(torch.tensor([[600]]), source, torch.zeros_like(source), 601)
    assert apply(state, merge).carried["count"].values.item() == torch.tensor(601.0).bfloat16().item()


@pytest.mark.parametrize(
    ("values", "rule"), [(torch.ones(1, 3, dtype=torch.int64), "mean"), (torch.ones(1, 3), "median")]
)
def test_what_cannot_be_carried_is_refused(values, rule):
    state = TokenState(
        torch.ones(1, 3, 1), torch.ones(1, 3), (1, 3), 0, 3, carried={"x": Carried(values, rule)}
    )
    zero = torch.tensor([[0]])
    with pytest.raises(ConfigError, match=rule):
        apply(state, Assignment.of(torch.tensor([[1, 2]]), zero, zero, 3))


@pytest.mark.parametrize("variant", MERGING)
def test_what_a_backbone_is_given_travels_with_its_tokens(variant):
    ones = Carried(torch.ones(2, 65), "sum")
    for training in (False, True):
        final = tiny_vit(variant).train(training)(torch.randn(2, 3, 64, 64), carried={"count": ones}).final
        torch.testing.assert_close(final.carried["count"].values, final.size)


def test_a_weight_counts_in_the_mean_and_not_in_the_size():
    state = TokenState(torch.tensor([[[1.0], [4.0]]]), torch.tensor([[1.0, 1.0]]), (1, 2), 0, 2)
    weight = torch.tensor([[1.0, 2.0]])
    zero = torch.tensor([[0]])
    after = apply(state, Assignment.of(torch.tensor([[1]]), zero, zero, 2, weight=weight))
    assert after.tokens.item() == 3.0 and after.size.item() == 2.0
