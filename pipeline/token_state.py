"""Tokens on their way through a merging ViT, as values: each step returns a new one.

B batch, N patches + prefix at the input, M tokens before a merge, K slots after it, E pairs of a source and
a slot, C channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.export import register_dataclass

CARRY_RULES = ("mean", "sum", "first", "pairwise")


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which tokens of a dtype are sized, compared and merged: float32, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def widened(x: Tensor) -> Tensor:
    """x in `wide` of its dtype."""
    return x.to(wide(x.dtype))


def rows_of(batch: int, num_tokens: int, device: torch.device) -> Tensor:
    """[B, M] int64: the row of each token in the flattened batch, b * M + i."""
    return torch.arange(batch * num_tokens, device=device).view(batch, num_tokens)


@dataclass(frozen=True)
class Assignment:
    """What one merge does to everything that tokens carry: which tokens stay, and who gives what to whom.

    All indices are int64 rows of the flattened batch (`rows_of`), as one index then moves whole rows.
    keep [B, K]: the tokens that stay, in their new order. source [B, E]: the tokens that give; one may come
    several times. slot [B, E]: who receives, as rows of the [B, K] slots. share [B, E], in the dtype of the
    sizes and differentiable: the part of its source that is given; None: all of it, and no source stays.
    Every token stays or gives. weight [B, M]: how much a token counts in a mean; None: its size.
    num_tokens: M. num_active: tokens after the merge that still take part in merging, prefix included.
    """

    keep: Tensor
    source: Tensor
    slot: Tensor
    num_tokens: int
    num_active: int
    share: Tensor | None = None
    weight: Tensor | None = None

    @classmethod
    def of(
        cls, keep: Tensor, source: Tensor, slot: Tensor, num_tokens: int, **rest: Tensor | int
    ) -> "Assignment":
        """The same from positions within each image: keep, source in [0, M), slot in [0, K).

        rest: share, weight and num_active, which is K where it is not given.
        """
        first = rows_of(len(keep), 1, keep.device)
        num_slots = keep.shape[1]
        options = {"num_active": num_slots} | rest
        rows = (keep + num_tokens * first, source + num_tokens * first, slot + num_slots * first)
        return cls(*rows, num_tokens, **options)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Carried:
    """What a token carries beside its channels, and how a merge moves it.

    values [B, M, ...]. rule: `mean` by size, as the tokens themselves; `sum`, as sizes; `first`: that of the
    token that stays; `pairwise`: values [B, M, M] between tokens, those between two that stay.
    """

    values: Tensor
    rule: str

    def __post_init__(self) -> None:
        assert self.rule in CARRY_RULES, f"rule is '{self.rule}'; give one of {', '.join(CARRY_RULES)}"


@dataclass(frozen=True)
class Residual:
    """What unmerging by residual needs, of the last time that tokens were moved: the unmerged grid [B, N, C],
    prefix included, and the tokens [B, M, C] right behind the move. Both are None before the first time."""

    grid: Tensor | None = None
    tokens: Tensor | None = None


@dataclass(frozen=True)
class TokenState:
    """tokens [B, M, C]; size [B, M] float32 (float64 with tokens in float64), patches held by each token; the
    first `num_prefix` tokens are never merged.

    grid: (h, w) of the N - num_prefix patches.
    num_active: tokens that still take part in merging, prefix included. In inference it equals M; in training
    with a relaxed merge the M - num_active last tokens are what inference would have removed, with what is
    left of their size.
    merges: all merges so far, the first one first. They are the source map (`pipeline.merging.unmerge`).
    carried: what else travels with the tokens, by name.
    residual: what unmerging by residual needs, or None where nobody asked for it.
    """

    tokens: Tensor
    size: Tensor
    grid: tuple[int, int]
    num_prefix: int
    num_active: int
    merges: tuple[Assignment, ...] = ()
    carried: Mapping[str, Carried] = field(default_factory=dict)
    residual: Residual | None = None

    @classmethod
    def start(cls, tokens: Tensor, grid: tuple[int, int], num_prefix: int) -> "TokenState":
        """The state before the first block: every token has size 1."""
        batch, num_tokens, _ = tokens.shape
        assert num_tokens == grid[0] * grid[1] + num_prefix, "tokens do not fill the grid"
        size = torch.ones(batch, num_tokens, dtype=wide(tokens.dtype), device=tokens.device)
        return cls(tokens, size, grid, num_prefix, num_tokens)

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


for _value in (Assignment, Carried, Residual, TokenState, MergePoint, BackboneOutput):
    register_dataclass(_value)  # a pytree: export, checkpointing and sharding see its tensors
