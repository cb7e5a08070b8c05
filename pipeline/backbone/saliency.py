"""How much of a block's attention each token receives, which tokens carry to what is behind the block. B
batch, M tokens."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from pipeline.merging.evidence import Evidence
from pipeline.token_state import SALIENCY, Carried, TokenState

BY_CLASS, BY_ALL = SALIENCIES = ("class_attention", "received")
"""The attention of the class token to each token; or the mean over queries, for models without one. Both are
the mean over heads."""


def with_saliency(state: TokenState, evidence: Evidence, kind: str) -> TokenState:
    """The state whose tokens carry their saliency [B, M], float32 or wider, without gradient. kind: one of
    SALIENCIES."""
    if kind == BY_CLASS:
        found = evidence.class_attention.mean(dim=1)
    else:
        found = evidence.received.mean(dim=1) / state.tokens.shape[1]
    return _carrying(state, {**state.carried, SALIENCY: Carried(found, "mean")})


def without_saliency(state: TokenState) -> tuple[Tensor, TokenState]:
    """The saliency of the patches [B, M - num_prefix], and the state that no longer carries it."""
    rest = {name: own for name, own in state.carried.items() if name != SALIENCY}
    return state.carried[SALIENCY].values[:, state.num_prefix :], _carrying(state, rest)


def _carrying(state: TokenState, carried: Mapping[str, Carried]) -> TokenState:
    return replace(state, carried=dict(carried))
