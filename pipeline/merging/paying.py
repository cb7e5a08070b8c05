"""Which merges of a schedule pay, by the seconds that blocks take with and without them. N tokens enter the
first block, M a block."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression

Sample = tuple[int, float]
"""M, and seconds of a block."""


@dataclass(frozen=True)
class BlockTimes:
    """Seconds of blocks, which are alike. plain, merged: at some lengths M, without and with a merge. whole:
    of a block of the model that never merges."""

    plain: Sequence[Sample]
    merged: Sequence[Sample]
    whole: float


def paying_schedule(wished: Sequence[int], times: BlockTimes, num_tokens: int) -> list[int]:
    """The wished schedule without the merges that take longer than they save in their block and all later
    ones; zeros where merging takes longer than not to merge. No schedule that lacks one merge more is faster.

    wished: r of each block. num_tokens: N.
    """
    seconds = seconds_under(times, num_tokens)
    best = list(wished)
    while any(best):
        fewer = [[*best[:i], 0, *best[i + 1 :]] for i, r in enumerate(best) if r > 0]
        fastest = min(fewer, key=seconds)
        if seconds(fastest) >= seconds(best):
            break
        best = fastest
    none = [0] * len(best)
    return best if seconds(best) < seconds(none) else none


def seconds_under(times: BlockTimes, num_tokens: int) -> Callable[[Sequence[int]], float]:
    """The function that gives the seconds of all blocks under r of each block. A block's time is on a line
    over its length, through all that was measured."""
    plain, merged = _line(times.plain), _line(times.merged)

    def seconds(schedule: Sequence[int]) -> float:
        if not any(schedule):
            return len(schedule) * times.whole
        total, left = 0.0, num_tokens
        for r in schedule:
            total += (merged if r > 0 else plain)(left)
            left -= r
        return total

    return seconds


def _line(samples: Sequence[Sample]) -> Callable[[int], float]:
    lengths, seconds = zip(*samples, strict=True)
    if len(set(lengths)) == 1:
        mean = fmean(seconds)
        return lambda tokens: mean
    slope, start = linear_regression(lengths, seconds)
    return lambda tokens: start + slope * tokens
