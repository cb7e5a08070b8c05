"""Schedules that are solved: r of each block such that the merged model differs least from the unmerged one,
by measurements without labels, at a target of MACs.

A solution is planned from what single blocks do (`pipeline.merging.damage`), and then improved by exchanges,
each of which is measured as a whole: merges move from the block where they cost most per saved
multiply-accumulate to the one where they cost least. All MACs are exact.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite

from torch import Tensor

from pipeline.backbone.macs import Counted
from pipeline.backbone.macs_goal import MacsGoal
from pipeline.errors import ConfigError
from pipeline.merging.damage import (
    costs_by_block,
    costs_by_rest,
    damage_curve,
    planned_schedule,
    step_macs,
)
from pipeline.merging.reducer import ReducingPolicy
from pipeline.merging.schedule import EVEN, WITHIN, mergeable, merging_blocks

Measure = Callable[[Sequence[int]], float]
"""Maps r of each block to how far the merged model is from the unmerged one: from 0, which is equal."""
SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of the patches, which single blocks merge to be measured."""
STEPS = (1 / 16, 1 / 32, 1 / 64)
"""Shares of the patches that an exchange moves, one after the other."""
TRIES_PER_BLOCK = 4
"""Schedules that are measured for a target beside the starts, at most, for each block."""
SHARES_ALIKE = {f"{name} shares": within for name, within in WITHIN.items()}
"""The same for starts in which all blocks that merge remove the same share of their patches."""
PLANS = {"planned by block": 1.0, "planned by both": 0.5, "planned by rest": 0.0}
"""Plan that a search begins with -> how much it takes damage for a matter of how much a block merges at once,
and not of how few patches are left."""


@dataclass(frozen=True)
class Solved:
    """r of each block, its MACs and its measure. starts: schedule and measure of what the search began with:
    WITHIN, SHARES_ALIKE and PLANS, where they can reach the target."""

    schedule: list[int]
    macs: int
    damage: float
    starts: Mapping[str, tuple[list[int], float]]


def nothing() -> None:
    """Nobody is told."""


class ScheduleSolver:
    """Solves schedules of one model. Each schedule is measured once, and single blocks for all targets
    together."""

    def __init__(self, counted: Counted, measure: Measure):
        """counted: of the model, for images as those that `measure` looks at. Raises ConfigError where the
        policy merges in one block whatever a schedule says."""
        self._counted, self._measure = counted, measure
        self._depth = len(counted.blocks)
        if isinstance(policy := counted.blocks[0].policy, ReducingPolicy):
            raise ConfigError(
                f"policy '{policy.name}' reduces in one block, so there is no schedule to solve; give even"
            )
        self._told: Callable[[], object] = nothing
        self._known: dict[tuple[int, ...], float] = {}
        self._may_know = 0

    def most_measured(self, targets: int) -> int:
        """How many schedules are measured at most, for so many targets."""
        starts = len(WITHIN) + len(SHARES_ALIKE) + len(PLANS)
        each = starts + TRIES_PER_BLOCK * self._depth
        return self._depth * len(self._singles()) + targets * each

    def solve(self, fraction: float, *, told: Callable[[], object] = nothing) -> Solved:
        """The best schedule found of at most this fraction of the unmerged MACs: by the measure it is never
        worse than the even and the early one of the target. It depends on the measure alone. told: called
        after each measurement.

        Raises ConfigError where merging all that can be has more MACs, and for a measure that is no number.
        """
        self._told = told
        goal = MacsGoal(self._counted, fraction)
        starts = self._starts(goal)
        measured = {name: (schedule, self._measured(schedule)) for name, schedule in starts.items()}
        self._may_know = len(self._known) + TRIES_PER_BLOCK * self._depth
        best = min(measured.values(), key=lambda found: found[1])[0]
        patches = self._counted.patches
        for step in dict.fromkeys(max(1, round(share * patches)) for share in STEPS):
            while (better := self._better(goal, best, step)) is not None:
                best = better
        tight = goal.tight(best)
        if self._measured(tight) <= self._measured(best):
            best = tight
        return Solved(best, goal.macs(best), self._measured(best), measured)

    def _measured(self, schedule: Sequence[int]) -> float:
        key = tuple(schedule)
        if key not in self._known:
            found = float(self._measure(key))
            if not isfinite(found):
                raise ConfigError(
                    f"the model merged by {list(key)} gives {found} in place of a divergence: its "
                    "predictions are not finite; give other weights"
                )
            self._known[key] = found
            self._told()
        return self._known[key]

    def _may_measure(self, schedules: int) -> bool:
        return len(self._known) + schedules < self._may_know

    def _starts(self, goal: MacsGoal) -> dict[str, list[int]]:
        """What the search begins with; the even schedule is always there."""
        found: dict[str, list[int]] = {}
        for name, within in WITHIN.items():
            try:
                reduction = self._counted.reduction_for(goal.fraction, within=within)
            except ConfigError:
                if name == EVEN:
                    raise
                continue
            found[name] = list(self._counted.schedule(reduction))
        for name, within in SHARES_ALIKE.items():
            merging = merging_blocks(self._depth, within)
            with suppress(ConfigError):
                found[name] = goal.fitted([SHARES[0]] * merging + [0.0] * (self._depth - merging))
        by_block, by_rest, macs = self._tables
        most = goal.most - self._counted.macs_before(merges=True)
        for name, share in PLANS.items():
            costs = share * by_block + (1 - share) * by_rest
            planned = planned_schedule(costs, macs, most, self._counted.patches)
            if goal.meets(planned):
                found[name] = goal.tight(planned)
        return found

    def _singles(self) -> list[int]:
        """r of the schedules in which one block alone merges."""
        patches = self._counted.patches
        wanted = (max(1, min(round(share * patches), patches // 2)) for share in SHARES)
        return list(dict.fromkeys(wanted))

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """`costs_by_block`, `costs_by_rest` and `step_macs`."""
        patches, curves = self._counted.patches, []
        for block in range(self._depth):
            alone = {r: [r if i == block else 0 for i in range(self._depth)] for r in self._singles()}
            curves.append(damage_curve([(r, self._measured(own)) for r, own in alone.items()], patches))
        macs = step_macs(self._counted.macs_of_block, self._depth, patches)
        return costs_by_block(curves, patches), costs_by_rest(curves, patches), macs

    def _better(self, goal: MacsGoal, best: list[int], step: int) -> list[int] | None:
        """A schedule that is better by exchanges of `step` tokens; None where none of the promising ones is,
        or no more may be measured."""
        if not self._may_measure(self._depth):
            return None
        rates = [self._rate(goal, best, block, step) for block in range(self._depth)]
        for pairs in exchanges(best, rates, self._room(best)):
            found, further = best, goal.moved(best, pairs, step)
            # as far as it leads in this direction
            while further is not None and self._may_measure(1):
                if self._measured(further) >= self._measured(found):
                    break
                found, further = further, goal.moved(further, pairs, step)
            if found is not best:
                return found
        return None

    def _room(self, schedule: Sequence[int]) -> list[int]:
        """How many tokens more each block could remove."""
        found, left = [], self._counted.patches
        for r in schedule:
            found.append(mergeable(left, 0) - r)
            left -= r
        return found

    def _rate(self, goal: MacsGoal, schedule: list[int], block: int, step: int) -> float:
        """The damage per saved multiply-accumulate of the last `step` tokens that a block removes, or of the
        first ones, where it removes none. Infinite where none are saved."""
        merges = schedule[block] > 0
        asked = list(schedule)
        asked[block] += -min(step, schedule[block]) if merges else step
        other = self._counted.schedule(asked)
        saved = goal.macs(other) - goal.macs(schedule)
        if not merges:
            saved = -saved
        if saved <= 0:
            return inf
        change = self._measured(schedule) - self._measured(other)
        return (change if merges else -change) / saved


def exchanges(
    schedule: Sequence[int], rates: Sequence[float], room: Sequence[int]
) -> Iterator[list[tuple[int, int]]]:
    """Pairs (block that removes less, block that removes more) to try, the most promising first: of the two
    dearest and the two cheapest blocks. rates: damage per saved multiply-accumulate of each block. room: how
    many tokens more each could remove."""
    blocks = range(len(schedule))
    givers = sorted((b for b in blocks if schedule[b] > 0), key=lambda b: -rates[b])[:2]
    takers = sorted((b for b in blocks if rates[b] < inf and room[b]), key=lambda b: rates[b])[:2]
    pairs = [(give, take) for give in givers for take in takers if rates[give] > rates[take]]
    if (both := [pairs[0], pairs[-1]] if pairs else []) and len({b for pair in both for b in pair}) == 4:
        yield both
    yield from ([pair] for pair in pairs)
