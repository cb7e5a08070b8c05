"""Check of what a policy chose, before it is carried out.

It reads shapes and dtypes alone, so that nothing waits for the device. Which tokens are named, the laws in
tests/laws check.

B batch, M tokens, K slots, E pairs of a source and a slot.
"""

from collections.abc import Iterator

import torch

from pipeline.errors import ConfigError
from pipeline.token_state import Assignment, TokenState


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
    for name, part, shape in (("share", a.share, a.source.shape), ("weight", a.weight, state.size.shape)):
        if part is not None and part.shape != shape:
            yield f"{name} is {list(part.shape)}; give {list(shape)}"
    if a.share is not None and a.share.dtype != state.size.dtype:
        yield f"share is {a.share.dtype}; give the dtype of the sizes, {state.size.dtype}"
    if a.weight is not None and not a.weight.is_floating_point():
        yield f"weight is {a.weight.dtype}; give floats"
