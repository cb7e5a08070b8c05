"""The state of tokens in a merging ViT, as immutable values: each step returns a new one.

B batch, N patches + prefix at the input, M tokens before a merge, K slots after it, E pairs of a source and
a slot, C channels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.export import register_dataclass

Grid = tuple[int, ...]
"""(h, w): rows and columns of an image's patches; or (t, h, w): those of a clip's tubelets, one time after
another."""
CARRY_RULES = ("mean", "sum", "first", "pairwise")
ROPE = "rope"
"""Name under which tokens carry what their rotary positions need (`pipeline.backbone.rotary`)."""
PARTNER = "partner"
"""Name under which tokens of mixed images carry how much of them is of the other image, [B, M] in [0, 1]
(`pipeline.backbone.partner`)."""
SALIENCY = "saliency"
"""Name under which tokens carry how much of a block's attention each receives, [B, M], to what mixes them
behind that block (`pipeline.backbone.token_mixup`)."""
CHANGE = "change"
"""Name under which tokens of clips carry how much each differs from the one before it in time, where a policy
`carries` that (`pipeline.backbone.tubelets`)."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sizes, similarities and merges for tokens of a dtype: float32, or float64 for float64."""
    return dtype if dtype == torch.float64 else torch.float32


def widened(x: Tensor) -> Tensor:
    """x in the dtype `wide(x.dtype)`: x itself where it has it."""
    dtype = wide(x.dtype)
    return x if x.dtype == dtype else x.to(dtype)


def rows_of(batch: int, num_tokens: int, device: torch.device) -> Tensor:
    """[B, M] int64: the row of each token in the flattened batch, b * M + i."""
    return torch.arange(batch * num_tokens, device=device).view(batch, num_tokens)


@dataclass(frozen=True)
class Assignment:
    """One merge: the tokens that stay, and pairs of a source that gives and a slot that receives.

    Every token stays or gives. A pruned token gives nothing that arrives (`part`), and its slot only says
    what unmerging reads in its place. All indices are int64 rows of the flattened batch (`rows_of`), so that
    one index moves whole rows.
    """

    keep: Tensor
    """[B, K]: the tokens that stay, in their new order."""
    source: Tensor
    """[B, E]: the tokens that give, each once or several times."""
    slot: Tensor
    """[B, E]: the slots that receive, as rows of [B, K]."""
    num_tokens: int
    """M."""
    num_active: int
    """Number of tokens after the merge that still take part in merging, prefix included."""
    share: Tensor | None = None
    """[B, E], in the dtype of the sizes, differentiable: the part of its source that is given. None: all of
    it, and no source stays."""
    weight: Tensor | None = None
    """[B, M]: weight of each token in means; None: its size."""
    part: Tensor | None = None
    """[B, E] in [0, 1], in the dtype of the sizes: the part of each source, or of its share, that arrives, in
    sizes and in means; the rest is dropped, and at 0 the source is pruned. None: all arrives."""
    spread: Tensor | None = None
    """[B, K, E], in the dtype of the sizes: the part of each source that is added to each slot, in tokens and
    in sizes, which are then sums. Nothing else arrives, and `slot` only says what unmerging reads. None:
    sources give to their slots alone. It goes without shares, weights and parts."""
    masks: bool = False
    """Whether shares are 0 or 1, so that unmerging reads one slot for each token, with a gradient."""
    keeps_norm: bool = False
    """Whether a token that receives others gets the largest norm of theirs and its own, in the direction of
    the mean. Only the tokens themselves do, not what they carry. It goes without shares and spread."""
    reads: Tensor | None = None
    """[B, M, K], in the dtype of the sizes, differentiable: the part in which each token reads each slot when
    it is unmerged, and is held by it in sizes and in means; rows sum to 1. Of what stays nothing else does,
    and `slot` is the largest part. None: by slots and shares. It goes without all other amounts."""

    @classmethod
    def of(
        cls, keep: Tensor, source: Tensor, slot: Tensor, num_tokens: int, **rest: Tensor | int
    ) -> "Assignment":
        """An assignment from positions within each image: keep and source in [0, M), slot in [0, K).

        rest: share, weight, part, spread, reads, keeps_norm and num_active, which is K where it is not given.
        """
        first = rows_of(keep.shape[0], 1, keep.device)
        num_slots = keep.shape[1]
        options = {"num_active": num_slots} | rest
        rows = (keep + num_tokens * first, source + num_tokens * first, slot + num_slots * first)
        return cls(*rows, num_tokens, **options)  # pyright: ignore[reportArgumentType]

    @property
    def by_size(self) -> bool:
        """Whether each source goes as a whole to one slot, and means are those by size."""
        amounts = (self.share, self.weight, self.part, self.spread, self.reads)
        return all(amount is None for amount in amounts)

    @property
    def is_hard(self) -> bool:
        """Whether unmerging reads one slot for each token."""
        return self.share is None and self.reads is None


@dataclass(frozen=True)
class Carried:
    """Values that tokens carry beside their channels, and the rule by which a merge moves them."""

    values: Tensor
    """[B, M, ...]"""
    rule: str
    """`mean`: weighted by size, as the tokens themselves. `sum`: as sizes. `first`: the value of the token
    that stays. `pairwise`: values [B, M, M] between tokens; those between two that stay. The first two want
    floats."""


@dataclass(frozen=True)
class Residual:
    """The memory of unmerging by residual: the last time that tokens were moved. None before the first
    time."""

    grid: Tensor | None = None
    """[B, N, C]: the unmerged grid at that time, prefix included."""
    tokens: Tensor | None = None
    """[B, M, C]: the tokens right after the move."""


@dataclass(frozen=True)
class TokenState:
    """The tokens between two blocks, and all that merging has to know of them."""

    tokens: Tensor
    """[B, M, C]"""
    size: Tensor
    """[B, M] float32 (float64 with tokens in float64): number of patches in each token."""
    grid: Grid
    """(h, w), or (t, h, w), of the N - num_prefix patches."""
    num_prefix: int
    """The first `num_prefix` tokens are never merged."""
    num_active: int
    """Number of tokens that still take part in merging, prefix included. In inference it is M. After a
    relaxed merge the last M - num_active tokens are those that inference would have removed, with the rest of
    their size."""
    merges: tuple[Assignment, ...] = ()
    """All merges so far, in order. They are the source map (`pipeline.merging.unmerge`)."""
    carried: Mapping[str, Carried] = field(default_factory=dict)
    """Other values that travel with the tokens, by name."""
    residual: Residual | None = None
    """Residual for unmerging; None where it is not used."""
    padded: bool = False
    """Whether some patches are padding, of size 0, to which no token attends."""
    quota: Tensor | None = None
    """[B] int64: how many of its patches each image loses in the next merge, and padding for the rest of r;
    None where there is no padding."""
    replaced: Tensor | None = None
    """[B, N - num_prefix, C]: the patches right before semantic tokens took their place, where these are to
    be recovered from (`pipeline.merging.semantic_tokens`)."""
    places: Tensor | None = None
    """[B, N - num_prefix, 2] int64: row and column of each patch of the input, where each image has a grid of
    its own; None: they are those of `grid`, row by row."""

    @classmethod
    def start(cls, tokens: Tensor, grid: Grid, num_prefix: int) -> "TokenState":
        """The state before the first block: every token has size 1."""
        batch, num_tokens, _ = tokens.shape
        assert num_tokens == math.prod(grid) + num_prefix, "tokens do not fill the grid"
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
    """The input of a block's merge."""

    state: TokenState
    """The state right before the merge."""
    metric: Tensor
    """[B, M, F]"""
    probe: Tensor
    """The tokens [B, M, C] that the merge moves, the same values. Their gradient is that of moving the
    tokens; what unmerging remembers of them takes no part."""
    rope: Tensor | None = None
    """[B, M, ...]: what merging averages of the rotary positions that the block's attention reads, before the
    merge; None where it averages nothing of them."""
    rope_probe: Tensor | None = None
    """Zeros like `rope` that were added to it."""
    partition: str = "parity"
    """That of the policy, see `pipeline.merging.partitions`."""


@dataclass(frozen=True)
class TokenMix:
    """What became of the images of a batch whose tokens were mixed across images (TokenMixup)."""

    partner: Tensor
    """[B] int64: the image that each got tokens of; itself where it got none."""
    share: Tensor
    """[B] in [0, 1], float32 or wider, without gradient: the partner's share of the label. 0 where nothing
    was mixed."""
    replaced: Tensor
    """[B] float32, without gradient: the share of the patches that are the partner's."""
    difficulty: Tensor
    """[B] float32, with gradient: the loss by which easy images were told from others."""


@dataclass(frozen=True)
class BackboneOutput:
    """The states that a backbone returns."""

    final: TokenState
    """After the backbone's last norm."""
    taps: tuple[TokenState, ...] = ()
    """After the requested blocks, before that norm."""
    merge_points: tuple[MergePoint, ...] = ()
    """One for each block from the requested one on."""
    mix: TokenMix | None = None
    """Of a pass that mixed tokens across images."""


# as pytrees: export, checkpointing and sharding see their tensors
for _value in (Assignment, Carried, Residual, TokenState, MergePoint, TokenMix, BackboneOutput):
    register_dataclass(_value)
