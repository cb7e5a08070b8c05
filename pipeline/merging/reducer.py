"""Policies whose reduction is a module with parameters of its own: a reducer. It stands in one block and
makes other tokens of all patches, where other policies choose which of them merge. A recovery may bring the
patches back behind the last block.

Both are parts of their blocks (`blocks.N.reducer`, `blocks.LAST.recovery`), of the kind of the metric
embeddings, so they are trained, saved, divided and loaded as these are.
"""

from torch import nn

from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.policy import MergePolicy
from pipeline.merging.schedule import ReductionSpec, removed_tokens
from pipeline.token_state import Assignment, TokenState


class ReducingPolicy(MergePolicy):
    """A policy with a reducer in one block. A subclass builds it.

    block: its number; None: a quarter of the model's blocks come before it. Raises ConfigError.
    """

    requires = frozenset({"one_grid", "plane", "added_positions"})
    conserves = False
    takes_means = False
    resizes = False
    recovers = False
    """Whether it has a recovery behind the last block."""

    def __init__(self, block: int | None = None):
        if block is not None and block < 0:
            raise ConfigError(f"block is {block}; give the number of a block, from 0 on")
        self.block = block

    @property
    def learned(self) -> bool:
        return True

    def place(self, depth: int) -> int:
        """The number of the block with the reducer, of `depth` blocks. Raises ConfigError."""
        number = depth // 4 if self.block is None else self.block
        if number >= depth:
            raise ConfigError(
                f"merging.options.block is {number}, but the backbone has {depth} blocks, 0 to {depth - 1}"
            )
        return number

    def build_reducer(self, dim: int, heads: int) -> nn.Module:
        """What maps a TokenState and r to the state with r tokens less, for blocks of `dim` channels."""
        raise NotImplementedError

    def build_recovery(self, dim: int, heads: int) -> nn.Module:
        """What maps the TokenState behind the last block to one with all patches, where it `recovers`; the
        state itself, where nothing was reduced."""
        raise NotImplementedError

    def schedule(
        self, reduction: ReductionSpec, depth: int, num_tokens: int, num_prefix: int
    ) -> tuple[int, ...]:
        """All tokens that a reduction removes leave in one block, however many of its patches they are; one
        stays."""
        removed, own = removed_tokens(reduction, depth, num_tokens, num_prefix), self.place(depth)
        return tuple(removed if number == own else 0 for number in range(depth))

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment | None:
        raise AssertionError("the block calls the reducer instead")
