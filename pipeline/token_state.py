"""Tokens on their way through a merging ViT, as a value: each step returns a new one.

B batch, N patches + prefix at the input, M slots now, C channels.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which tokens of a dtype are sized, compared and merged: float32, or float64 for
    float64."""
    return torch.promote_types(dtype, torch.float32)


def widened(x: Tensor) -> Tensor:
    """x in `wide` of its dtype."""
    return x.to(wide(x.dtype))


@dataclass(frozen=True)
class SourceMap:
    """Which slot each input position went to. Exactly one of the two forms is set.

    slots [B, N] int64 in [0, M): hard, every position went to one slot.
    weights [B, N, M], in the dtype of the sizes: soft, rows sum to 1 and columns to the slot's size.
    """

    slots: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        assert (self.slots is None) != (self.weights is None), "a source map is hard or soft"

    @classmethod
    def identity(
        cls,
        batch: int,
        num_tokens: int,
        device: torch.device,
        *,
        soft: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> "SourceMap":
        """Each position is its own slot. dtype: of the weights of a soft map."""
        if soft:
            return cls(weights=torch.eye(num_tokens, dtype=dtype, device=device).expand(batch, -1, -1))
        return cls(slots=torch.arange(num_tokens, device=device).expand(batch, -1))

    def then(self, to_slot: Tensor) -> "SourceMap":
        """The map after every slot i has moved to slot to_slot[b, i]; to_slot [B, M] int64. Hard maps
        only."""
        assert self.slots is not None, "an index composes with a hard map"
        return SourceMap(slots=to_slot.gather(1, self.slots))


@dataclass(frozen=True)
class Residual:
    """Of the last time that tokens were moved: the unmerged grid [B, N, C], prefix included, and the tokens
    [B, M, C] right behind it.

    Both are None before the first time.
    """

    grid: Tensor | None = None
    tokens: Tensor | None = None


@dataclass(frozen=True)
class TokenState:
    """tokens [B, M, C]; size [B, M] float32 (float64 with tokens in float64), patches held by each token; the
    first `num_prefix` tokens are never merged.

    source: where each of the N input positions went, or None where nobody asked for a soft one. grid: (h, w)
    of the N - num_prefix patches. num_active: tokens that still take part in merging, prefix included. In
    inference it equals M; in training with a relaxed merge the M - num_active last tokens are what inference
    would have removed, with what is left of their size. residual: what unmerging by residual needs, or None
    where nobody asked for it (see `merging.unmerge`).
    """

    tokens: Tensor
    size: Tensor
    source: SourceMap | None
    grid: tuple[int, int]
    num_prefix: int
    num_active: int
    residual: Residual | None = None

    @classmethod
    def start(
        cls, tokens: Tensor, grid: tuple[int, int], num_prefix: int, *, soft_source: bool = False
    ) -> "TokenState":
        """The state before the first block: every token has size 1 and is its own source."""
        batch, num_tokens, _ = tokens.shape
        assert num_tokens == grid[0] * grid[1] + num_prefix, "tokens do not fill the grid"
        size = torch.ones(batch, num_tokens, dtype=wide(tokens.dtype), device=tokens.device)
        source = SourceMap.identity(batch, num_tokens, tokens.device, soft=soft_source, dtype=size.dtype)
        return cls(tokens, size, source, grid, num_prefix, num_tokens)

    def with_tokens(self, tokens: Tensor) -> "TokenState":
        return replace(self, tokens=tokens)

    @property
    def patch_tokens(self) -> Tensor:
        """[B, M - num_prefix, C]"""
        return self.tokens[:, self.num_prefix :]

    @property
    def patch_size(self) -> Tensor:
        """[B, M - num_prefix], patches held by each patch token."""
        return self.size[:, self.num_prefix :]


@dataclass(frozen=True)
class MergePoint:
    """What a block's merge is decided on: the state right before it, and the metric [B, M, F].

    probe: zeros [B, M, C] that were added to the tokens; the gradient for it is that of moving tokens as a
    merge would.
    """

    state: TokenState
    metric: Tensor
    probe: Tensor


@dataclass(frozen=True)
class BackboneOutput:
    """final: the state after the backbone's last norm. taps: the states after the asked-for blocks, before
    that norm.

    merge_points: one per block, where they were asked for.
    """

    final: TokenState
    taps: tuple[TokenState, ...] = ()
    merge_points: tuple[MergePoint, ...] = ()
