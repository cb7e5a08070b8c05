"""The draw of `merge_cost`: which blocks a step prices."""

from collections.abc import Sequence


def drawn_blocks(schedule: Sequence[int], draw: float, *, read: int, prefix_alone: bool) -> range:
    """The blocks that a step prices: one drawn evenly among those that merge and have a price, and all with
    a price behind it.

    Of the first `read` blocks, behind which the head reads nothing, all have a price; but not the last where
    the head reads the prefix alone, as a merge behind the last attention changes patches alone. Where no such
    block merges, one with a price is drawn. schedule: r of each block in this step. draw: in [0, 1).
    prefix_alone: whether the head reads no patches.
    """
    priced = range(max(1, read - 1) if prefix_alone else read)
    merging = [block for block in priced if schedule[block] > 0] or priced
    return priced[merging[int(draw * len(merging))] :]
