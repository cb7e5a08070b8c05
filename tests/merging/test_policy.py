"""What a policy says of itself is checked when it is built."""

import pytest
import torch
from tiny import merged, random_state
from tiny_policies import Asking
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline import build_backbone
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.random import drawn
from pipeline.merging.policy import EVIDENCE, MergePolicy


@pytest.fixture
def registered(monkeypatch):
    """Registers a policy of these needs under the name `own` for the test."""

    def register(wanted):
        class Own(MergePolicy):
            def __init__(self):
                self.needs = wanted

        monkeypatch.setitem(POLICIES._factories, "own", Own)

    return register


@pytest.mark.parametrize(
    "needs, wrong",
    [({"key"}, "'key'"), ({"keys", "size", "q"}, "'q', 'size'"), ({"attention_from"}, "'attention_from'")],
)
def test_evidence_that_there_is_not_is_refused_by_name(registered, needs, wrong):
    registered(frozenset(needs))
    message = f"merge policy 'own' needs {wrong}; there is {', '.join(sorted(EVIDENCE))}"
    for build in (POLICIES.build, lambda name: build_backbone("deit_tiny_patch16_224", policy=name)):
        with pytest.raises(ConfigError, match=message):
            build("own")


def test_all_evidence_may_be_needed(registered):
    registered(EVIDENCE)
    assert (
        POLICIES.build("own").needs
        == EVIDENCE
        >= set().union(*(POLICIES.build(name).needs for name in POLICIES.names()))
    )


def test_what_merges_at_the_entry_of_a_block_can_need_nothing_of_it(monkeypatch):
    own = type("Own", (MergePolicy,), {"at_entry": True, "needs": frozenset({"keys"})})
    monkeypatch.setitem(POLICIES._factories, "own", own)
    with pytest.raises(ConfigError, match="'own' merges at the entry of a block, .* and needs keys"):
        POLICIES.build("own")


def test_random_pairs_are_drawn_once_and_are_those_of_the_seed():
    """A draw for each merge would let the host wait for the device each time."""
    merge = (7, 20, 21, 5, torch.device("cpu"))
    with torch.inference_mode():
        order, target = drawn(*merge)
    assert all(one is other for one, other in zip((order, target), drawn(*merge), strict=True))
    assert not order.is_inference() and order.sort().values.tolist() == [list(range(20))]
    with FakeTensorMode():
        assert type(drawn(8, *merge[1:])[0]) is not torch.Tensor
    assert type(drawn(8, *merge[1:])[0]) is torch.Tensor
    assert not torch.equal(order, drawn(8, *merge[1:])[0])


def test_any_whole_number_is_a_seed_of_random_pairs():
    state = random_state(17)
    for seed in (-1, 1 << 80):
        assert merged(POLICIES.build("random", seed=seed), state, state.tokens, 4).num_active == 13


def test_a_policy_that_needs_options_says_what_it_is_without(monkeypatch):
    monkeypatch.setitem(POLICIES._factories, "asking", Asking)
    with pytest.raises(ConfigError, match="'share'"):
        POLICIES.build("asking")
    found = POLICIES.usual("asking")
    assert isinstance(found, Asking) and found.merges and not found.learned
    with pytest.raises(ConfigError, match="unknown merge policy 'askin'; did you mean 'asking'"):
        POLICIES.usual("askin")
