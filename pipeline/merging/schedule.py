"""Reduction schedules: how many tokens each block removes.

N patches + prefix before a block, p prefix tokens. A block can remove at most (N - p) // 2 tokens: each merge
needs a partner.
"""

import math
from collections.abc import Callable, Sequence

from pipeline.errors import ConfigError
from pipeline.token_state import Grid

ReductionSpec = int | float | tuple[float, float] | Sequence[int]
"""int r: r tokens per block. (r, inflection): linear from r * (1 - inflection) to r * (1 + inflection). list:
r per block, continued with 0 where it is short; zeros behind the last block count for nothing. float in
(0, 1]: keep rate, the share of patches that a block keeps.
"""

GridReduction = Callable[[Grid], ReductionSpec]
"""Maps a grid of patches to the reduction for that input."""

AnyReduction = ReductionSpec | GridReduction
"""A reduction, or a function of the grid that gives one."""

EVEN, EARLY = "even", "early"
WITHIN = {EVEN: 1.0, EARLY: 0.5}
"""Schedule -> the share of the blocks, from the first one, that merge in it, all alike."""


def mergeable(num_tokens: int, num_prefix: int) -> int:
    """Largest number of tokens that one block can remove."""
    return max(0, (num_tokens - num_prefix) // 2)


def resolve_schedule(spec: ReductionSpec, depth: int, num_tokens: int, num_prefix: int) -> tuple[int, ...]:
    """r of each block, capped to what the block can merge.

    Raises ConfigError for a spec that is not one of the forms of ReductionSpec.
    """
    if isinstance(spec, float):
        return _keep_rate_schedule(spec, depth, num_tokens, num_prefix)
    schedule, left = [], num_tokens
    for r in _planned(spec, depth):
        schedule.append(min(r, mergeable(left, num_prefix)))
        left -= schedule[-1]
    return tuple(schedule)


def removed_tokens(spec: ReductionSpec, depth: int, num_tokens: int, num_prefix: int) -> int:
    """Tokens that a reduction removes in all, where a block need not keep half of them; one patch stays.
    Raises ConfigError, see `resolve_schedule`."""
    if isinstance(spec, float):
        return sum(_keep_rate_schedule(spec, depth, num_tokens, num_prefix))
    return min(sum(_planned(spec, depth)), max(0, num_tokens - num_prefix - 1))


def plain_reduction(spec: ReductionSpec, depth: int) -> int | float | tuple[int, float] | list[int]:
    """The reduction as JSON keeps it, where a sequence of two is always (r, inflection): a list for two
    blocks gets a third, of 0. Raises ConfigError, see `resolve_schedule`."""
    resolve_schedule(spec, depth, 1, 0)
    if isinstance(spec, int | float):
        return spec
    if isinstance(spec, tuple) and len(spec) == 2:
        return int(spec[0]), float(spec[1])
    listed = [int(r) for r in spec]
    return [*listed, 0] if len(listed) == 2 else listed


def reduction_for_merged(depth: int, share: float, grid: Grid, *, within: float = 1.0) -> list[int]:
    """r of each of `depth` blocks, such that `share` of the grid's patches (rounded) is merged after the last
    one.

    within: the share of the blocks, from the first one, that merge; fewer blocks save more MACs. Each of them
    keeps the same share of its patches, up to rounding. Raises ConfigError for a share that is not in (0, 1),
    or that the blocks cannot reach.
    """
    if not 0 < share < 1:
        raise ConfigError(f"share of merged patches is {share}; give a number in (0, 1)")
    merging = merging_blocks(depth, within)
    patches = left = math.prod(grid)
    schedule: list[int] = []
    for block in range(1, depth + 1):
        wanted = round(patches * (1 - share) ** min(block / merging, 1))
        schedule.append(min(left - wanted, mergeable(left, 0)))
        left -= schedule[-1]
    if left != round(patches * (1 - share)):
        reached = 1 - left / patches
        raise ConfigError(
            f"{share:.0%} of {patches} patches cannot be merged in {merging} blocks: at most "
            f"{reached:.0%} can"
        )
    return schedule


def merging_blocks(depth: int, within: float) -> int:
    """Number of blocks that merge, at least one. within: their share in (0, 1]. Raises ConfigError."""
    if not 0 < within <= 1:
        raise ConfigError(f"share of the blocks that merge is {within}; give a number in (0, 1]")
    return max(1, round(within * depth))


def check_schedule(spec: ReductionSpec, depth: int, num_tokens: int, num_prefix: int) -> None:
    """Raises ConfigError where the spec removes as many tokens as the input has patches, or more."""
    if isinstance(spec, float):
        resolve_schedule(spec, depth, num_tokens, num_prefix)
        return
    asked, patches = sum(_planned(spec, depth)), num_tokens - num_prefix
    if asked >= patches:
        raise ConfigError(
            f"reduction {spec!r} removes {asked} tokens over {depth} blocks, but the input has "
            f"{patches} patches; the largest even reduction is {(patches - 1) // depth} per block"
        )


def tokens_per_block(schedule: Sequence[int], num_tokens: int) -> tuple[int, ...]:
    """Tokens left after each block, prefix included."""
    counts = []
    for r in schedule:
        num_tokens -= r
        counts.append(num_tokens)
    return tuple(counts)


def merged_shares(schedule: Sequence[int], patches: int) -> list[float]:
    """Share of its patches that each block removes. patches: number before the first block."""
    before = (patches, *tokens_per_block(schedule, patches)[:-1])
    return [r / max(1, left) for r, left in zip(schedule, before, strict=True)]


def _planned(spec: ReductionSpec, depth: int) -> list[int]:
    if isinstance(spec, bool) or not isinstance(spec, int | tuple | list):
        raise ConfigError(
            f"reduction is {spec!r}; give an int, (r, inflection), a list of ints per block, or a keep "
            "rate in (0, 1]"
        )
    if isinstance(spec, int):
        planned = [spec] * depth
    elif isinstance(spec, tuple) and len(spec) == 2:
        planned = _inflected(*spec, depth)
    else:
        planned = [_whole(r) for r in spec] + [0] * (depth - len(spec))
    while len(planned) > depth and planned[-1] == 0:
        planned.pop()
    if len(planned) > depth:
        raise ConfigError(f"reduction lists {len(planned)} blocks, but the backbone has {depth}")
    if min(planned) < 0:
        raise ConfigError(
            f"reduction {spec!r} has a negative entry; it counts removed tokens, so give 0 or more"
        )
    return planned


def _whole(r: object) -> int:
    if isinstance(r, bool) or not isinstance(r, int):
        raise ConfigError(f"reduction has the entry {r!r}; a list gives a whole number of tokens per block")
    return r


def _inflected(r: float, inflection: float, depth: int) -> list[int]:
    """Schedule of ToMe's (r, inflection): -1 removes most tokens early, +1 late; entries are truncated."""
    if (
        not all(isinstance(value, int | float) for value in (r, inflection))
        or not -1 <= inflection <= 1
        or r % 1
    ):
        raise ConfigError(f"reduction ({r}, {inflection}): give a whole r and an inflection in [-1, 1]")
    low = int(r * (1 - inflection))
    step = (2 * r - 2 * low) / (depth - 1) if depth > 1 else 0
    return [int(low + step * i) for i in range(depth)]


def _keep_rate_schedule(rate: float, depth: int, num_tokens: int, num_prefix: int) -> tuple[int, ...]:
    if not 0 < rate <= 1:
        raise ConfigError(f"keep rate is {rate}; give a number in (0, 1]")
    # torch.compile makes a symbol of a float that changes, and fails on sizes of it; of its parts it does not
    numerator, denominator = rate.as_integer_ratio()
    schedule, left, rate = [], num_tokens, numerator / denominator
    for _ in range(depth):
        wanted = round((left - num_prefix) * (1 - rate))
        schedule.append(min(wanted, mergeable(left, num_prefix)))
        left -= schedule[-1]
    return tuple(schedule)
