"""Schedules that meet a goal of MACs as closely as whole tokens allow. P patches before the first block."""

from collections.abc import Iterable, Sequence
from functools import cache

from pipeline.backbone.macs import Counted
from pipeline.errors import ConfigError
from pipeline.merging.schedule import mergeable

FACTORS = 64
"""Parts of 1 by which the shares of a schedule are multiplied, so that it meets a goal."""


class MacsGoal:
    """At most a fraction of a model's unmerged MACs. Raises ConfigError for a fraction outside (0, 1)."""

    def __init__(self, counted: Counted, fraction: float):
        if not 0 < fraction < 1:
            raise ConfigError(f"target of {fraction} of the unmerged MACs: give a fraction in (0, 1)")
        self.counted, self.fraction = counted, fraction
        self.most = fraction * counted.macs(counted.schedule(0)).total
        self._of_block = cache(counted.macs_of_block)

    def macs(self, schedule: Sequence[int]) -> int:
        """MACs of one image under r of each block, none more than the block can merge."""
        total, left = self.counted.macs_before(merges=any(schedule)), self.counted.patches
        for block, r in enumerate(schedule):
            total += self._of_block(block, left, r)
            left -= r
        return total

    def meets(self, schedule: Sequence[int]) -> bool:
        return self.macs(schedule) <= self.most

    def tight(self, schedule: Sequence[int], first: Iterable[int] = ()) -> list[int]:
        """The schedule, which meets the goal, with merges taken back until none of any block can be. first:
        blocks that are asked before the others."""
        found = list(schedule)
        order = list(dict.fromkeys([*first, *range(len(found))]))
        changed = True
        while changed:
            changed = False
            for block in order:
                least = self._least(found, block)
                changed = changed or least < found[block]
                found[block] = least
        return found

    def _least(self, schedule: Sequence[int], block: int) -> int:
        """The least r of a block with which the schedule meets the goal."""

        def met(r: int) -> bool:
            return self.meets([*schedule[:block], r, *schedule[block + 1 :]])

        if met(0):
            return 0
        low, high = 0, schedule[block]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if met(middle) else (middle, high)
        return high

    def moved(self, schedule: Sequence[int], pairs: Iterable[tuple[int, int]], step: int) -> list[int] | None:
        """The schedule in which the first block of each pair removes up to `step` tokens less, and the second
        ones as many more as meet the goal. None where they cannot."""
        fewer = list(schedule)
        givers, takers = zip(*pairs, strict=True)
        for block in givers:
            fewer[block] -= min(step, fewer[block])
        for more in range(self.counted.patches):
            asked = list(fewer)
            for number, block in enumerate(takers):
                asked[block] += (more + len(takers) - 1 - number) // len(takers)
            found = self.counted.schedule(asked)
            if self.meets(found):
                return self.tight(found, givers)
        return None

    def fitted(self, shares: Sequence[float]) -> list[int]:
        """The schedule in which blocks remove these shares of their patches, all times the least factor that
        meets the goal. Raises ConfigError where none does."""
        for factor in range(1, FACTORS**2):
            schedule, left = [], self.counted.patches
            for share in shares:
                r = min(round(share * left * factor / FACTORS), mergeable(left, 0))
                schedule.append(r)
                left -= r
            if self.meets(schedule):
                return self.tight(schedule)
        raise ConfigError(
            f"{self.fraction:.0%} of the unmerged MACs cannot be reached for {self.counted.patches} patches "
            "by merging in the same blocks alone"
        )
