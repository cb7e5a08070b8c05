"""What a policy may not choose is refused before anything moves, and every fault is named."""

from dataclasses import replace

import pytest
import torch
from tiny import evidence_of, random_state

from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.merging.policy import MergePolicy, merge

R = 4


class Wrong(MergePolicy):
    """ToMe's policy, with another end."""

    needs = frozenset({"keys"})

    def __init__(self, change):
        self.change = change

    def choose(self, evidence, state, r, *, relaxed):
        return self.change(POLICIES.build("tome").choose(evidence, state, r, relaxed=relaxed))


FAULTS = {
    "a tuple": (lambda a: (a.keep, a.source), "a tuple"),
    "int32": (lambda a: replace(a, keep=a.keep.int()), "keep is torch.int32"),
    "too few sources": (lambda a: replace(a, source=a.source[:, 1:]), "each source has one slot"),
    "a flat index": (lambda a: replace(a, keep=a.keep.flatten()), "keep is torch.int64"),
    "a token dropped": (lambda a: replace(a, keep=a.keep[:, 1:]), "keep has 12 tokens"),
    "another count": (lambda a: replace(a, num_tokens=3), "num_tokens is 3"),
    "other live tokens": (lambda a: replace(a, num_active=3), "num_active is 3"),
    "shares in half": (
        lambda a: replace(a, share=torch.ones(a.source.shape).half()),
        "share is torch.float16",
    ),
    "a share for each slot": (lambda a: replace(a, share=torch.ones(a.keep.shape)), "share is [2, 13]"),
    "a weight for each slot": (lambda a: replace(a, weight=torch.ones(a.keep.shape)), "weight is [2, 13]"),
    "a part for each slot": (
        lambda a: replace(a, part=torch.ones(a.keep.shape)),
        "part is [2, 13]; give [2, 4]",
    ),
    "whole parts": (lambda a: replace(a, part=torch.ones(a.source.shape).long()), "part is torch.int64"),
    "a spread of sources alone": (
        lambda a: replace(a, spread=torch.ones(a.source.shape)),
        "spread is [2, 4]; give [2, 13, 4]",
    ),
    "parts and a spread": (
        lambda a: replace(a, part=torch.ones(a.source.shape), spread=torch.ones(2, 13, 4)),
        "spread goes without part; give one of them",
    ),
    "norms and shares": (
        lambda a: replace(a, keeps_norm=True, share=torch.ones(a.source.shape)),
        "keeps_norm goes without share; give one of them",
    ),
    "whole weights": (lambda a: replace(a, weight=torch.ones(2, 17).long()), "weight is torch.int64"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_choice_that_cannot_be_carried_out_is_refused(name):
    change, text = FAULTS[name]
    state = random_state(17)
    with pytest.raises(ConfigError) as refused:
        merge(Wrong(change), evidence_of(torch.randn(2, 17, 5)), state, R)
    assert text in str(refused.value) and "Wrong" in str(refused.value)


def test_nothing_chosen_is_nothing_merged():
    state = random_state(17)
    assert merge(Wrong(lambda a: None), evidence_of(torch.randn(2, 17, 5)), state, R) is state
