"""Check of what a policy chose, before it is carried out.

It reads shapes and dtypes alone, so that nothing waits for the device. Which tokens are named, the laws in
tests/laws check.

B batch, M tokens, K slots, E pairs of a source and a slot.
"""

from collections.abc import Iterator

import torch

from pipeline.errors import ConfigError
from pipeline.token_state import Assignment, TokenState

SHAPES = {"share": "BE", "weight": "BM", "part": "BE", "spread": "BKE", "reads": "BMK"}
"""Amounts of an Assignment -> their dims."""
ALONE = {"spread": ("share", "weight", "part"), "reads": ("share", "weight", "part", "spread")}
"""Amounts, and those that do not go with them."""


def check_assignment(assignment: object, state: TokenState, r: int, *, policy: str) -> Assignment:
    """The assignment of a merge of r tokens. Raises ConfigError that names the policy and every fault."""
    if not isinstance(assignment, Assignment):
        raise ConfigError(
            f"policy {policy} chose a {type(assignment).__name__}; `choose` returns an Assignment, or None "
            "where nothing merges"
        )
    if faults := list(_faults(assignment, state, r)):
        raise ConfigError(
            "\n  ".join([f"policy {policy} chose a merge that cannot be carried out:", *faults])
        )
    return assignment


def _faults(a: Assignment, state: TokenState, r: int) -> Iterator[str]:
    (batch, num_tokens), live = state.size.shape, state.num_active - r
    for name in ("keep", "source", "slot"):
        index = getattr(a, name)
        if index.dtype != torch.int64 or index.ndim != 2 or index.shape[0] != batch:
            yield f"{name} is {index.dtype} {list(index.shape)}; give int64 [{batch}, ...]"
    if a.source.shape != a.slot.shape:
        yield f"source is {list(a.source.shape)} and slot {list(a.slot.shape)}; each source has one slot"
    if a.num_tokens != num_tokens:
        yield f"num_tokens is {a.num_tokens}; the tokens before the merge are {num_tokens}"
    if a.num_active != live:
        yield f"num_active is {a.num_active}; of {state.num_active} live tokens {r} merge, so give {live}"
    if a.share is None and a.keep.shape[-1] != num_tokens - r:
        yield f"keep has {a.keep.shape[-1]} tokens; without shares {num_tokens - r} of {num_tokens} stay"
    yield from _faults_of_amounts(a, state)


def _faults_of_amounts(a: Assignment, state: TokenState) -> Iterator[str]:
    given = {name: getattr(a, name) for name in SHAPES if getattr(a, name) is not None}
    lengths = {"B": state.size.shape[0], "M": a.num_tokens, "K": a.keep.shape[-1], "E": a.source.shape[-1]}
    for name, amount in given.items():
        shape = [lengths[dim] for dim in SHAPES[name]]
        if list(amount.shape) != shape:
            yield f"{name} is {list(amount.shape)}; give {shape}"
        if name == "weight" and not amount.is_floating_point():
            yield f"weight is {amount.dtype}; give floats"
        elif name != "weight" and amount.dtype != state.size.dtype:
            yield f"{name} is {amount.dtype}; give the dtype of the sizes, {state.size.dtype}"
    for name, others in ALONE.items():
        both = [other for other in others if other in given]
        if name in given and both:
            yield f"{name} goes without {', '.join(both)}; give one of them"
    summed = [name for name in ("share", "spread", "reads") if name in given]
    if a.keeps_norm and summed:
        yield f"keeps_norm goes without {', '.join(summed)}; give one of them"
