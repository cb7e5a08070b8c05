"""Token Fusion by hand: early blocks drop, late ones keep the norm."""

from dataclasses import replace

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.merging.apply import apply
from pipeline.merging.evidence import Evidence
from pipeline.merging.policies import POLICIES
from pipeline.merging.policy import merge
from pipeline.token_state import Assignment, Carried, TokenState


def pair(first, second, sizes=(1.0, 1.0)):
    state = TokenState.start(torch.tensor([[first, second]]), (1, 2), 0)
    return replace(state, size=torch.tensor([sizes]))


def fused(state, depth, **options):
    keys = torch.ones(1, 2, 3)
    evidence = Evidence(keys, keys[:, None], keys[:, None], scale=1.0, depth=depth)
    return merge(POLICIES.build("tofu", **options), evidence, state, 1)


def test_the_first_half_of_the_blocks_drops_the_source():
    after = fused(pair([3.0, 0.0], [0.0, 4.0], (2.0, 3.0)), 5 / 12)
    assert after.tokens.tolist() == [[[0.0, 4.0]]] and after.size.tolist() == [[3.0]]


@pytest.mark.parametrize(("depth", "until"), [(0.5, 0.5), (0.0, 0.0), (0.3, 0.25)])
def test_the_second_half_keeps_the_largest_norm(depth, until):
    after = fused(pair([3.0, 0.0], [0.0, 4.0]), depth, until=until)
    torch.testing.assert_close(after.tokens, torch.tensor([[[2.4, 3.2]]]))
    assert after.size.tolist() == [[2.0]]


def test_the_direction_is_that_of_the_mean_by_size():
    mean = torch.tensor([0.75, 3.0])
    after = fused(pair([3.0, 0.0], [0.0, 4.0], (1.0, 3.0)), 0.9)
    torch.testing.assert_close(after.tokens[0, 0], mean / mean.norm() * 4)


def test_opposite_and_equal_tokens():
    assert fused(pair([1.0, 0.0], [-1.0, 0.0]), 0.9).tokens.tolist() == [[[0.0, 0.0]]]
    equal = pair([0.1, 0.7], [0.1, 0.7])
    assert torch.equal(fused(equal, 0.9).tokens[0, 0], equal.tokens[0, 0])


def test_padding_lengthens_nothing_and_what_is_carried_is_a_mean():
    state = pair([100.0, 0.0], [0.0, 4.0], (0.0, 1.0))
    assert fused(state, 0.9).tokens.tolist() == [[[0.0, 4.0]]]
    where = Carried(torch.tensor([[[0.0, 2.0], [0.0, 6.0]]]), "mean")
    after = fused(replace(pair([3.0, 0.0], [0.0, 4.0]), carried={"where": where}), 0.9)
    assert after.carried["where"].values.tolist() == [[[0.0, 4.0]]]


def test_only_what_receives_is_stretched():
    tokens = torch.randn(1, 5, 7)
    state = TokenState.start(tokens, (1, 5), 0)
    one = Assignment.of(
        torch.tensor([[0, 2, 3, 4]]), torch.tensor([[1]]), torch.tensor([[2]]), 5, keeps_norm=True
    )
    after = apply(state, one).tokens[0]
    assert torch.equal(after[[0, 1, 3]], tokens[0, [0, 2, 4]])
    largest = tokens[0, [1, 3]].norm(dim=1).max()
    torch.testing.assert_close(after[2].norm(), largest)


def test_a_wrong_share_of_the_blocks_is_refused():
    with pytest.raises(ConfigError, match="tofu: until is 1.5"):
        POLICIES.build("tofu", until=1.5)
