"""The source map applied backwards: every input position gets the value of the slot it went to."""

from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.merging.matching import take_rows
from pipeline.token_state import SourceMap, TokenState


def unmerge_tokens(values: Tensor, source: SourceMap | None) -> Tensor:
    """values [B, M, C] -> [B, N, C], prefix included. Differentiable in the values and in a soft map's weights."""
    if source is None:
        raise ConfigError("this state has no source map: call the backbone with soft_source=True to unmerge a relaxed merge")
    if source.slots is not None:
        return take_rows(values, source.slots)
    assert source.weights is not None
    return source.weights.to(values.dtype) @ values


def unmerge(state: TokenState) -> Tensor:
    """tokens [B, M, C] -> the full grid [B, C, h, w], prefix tokens left out."""
    height, width = state.grid
    patches = unmerge_tokens(state.tokens, state.source)[:, state.num_prefix :]
    return patches.mT.reshape(patches.shape[0], -1, height, width)
