"""The parts of a policy that reduces by a module of its own: which blocks of a model get them."""

from collections.abc import Sequence

from pipeline.backbone.become import beside
from pipeline.backbone.block import MergingBlock
from pipeline.merging.policy import MergePolicy
from pipeline.merging.reducer import ReducingPolicy


def add_reducer(blocks: Sequence[MergingBlock], policy: MergePolicy) -> None:
    """Gives the policy's reducer to the block in which it stands, and its recovery to the last one; nothing
    for other policies. Raises ConfigError where the policy names a block that is not there."""
    if not isinstance(policy, ReducingPolicy):
        return
    block, last = blocks[policy.place(len(blocks))], blocks[-1]
    dim, heads = block.width, block.heads[0]
    block.reducer = beside(block, lambda: policy.build_reducer(dim, heads))
    if policy.recovers:
        last.recovery = beside(last, lambda: policy.build_recovery(dim, heads))
