"""Lanes: the samples of an epoch are laid in one line, which is cut into lanes of equal length (but for one
sample). Positions are dealt to lanes, and the positions of a step to ranks by lane.

So a rank reads the same few lanes in every step, and a machine reads its part of the shards. Which positions
a step holds does not depend on the number of ranks.
"""

from dataclasses import dataclass, replace
from math import gcd

import numpy as np
from numpy.typing import NDArray

MOST_LANES = 8192
SAMPLES_OF_LANE = 64
"""Samples of a step that each lane gives, about, where the number of lanes is chosen here. So a machine of
eight ranks reads four lanes or more, unless its ranks have batches below 32."""
FEW_SHARDS = 32
"""Sets of fewer shards have one lane."""


def lanes_of(num_shards: int, step: int) -> int:
    """The number of lanes where the config gives none: the largest power of two that gives each lane a shard
    and SAMPLES_OF_LANE samples of a step, at most MOST_LANES.

    step: samples of a step of the optimizer, over all ranks and micro-batches. A run keeps it, so it keeps
    its lanes on any number of machines.
    """
    most = 1 if num_shards < FEW_SHARDS else min(num_shards, step // SAMPLES_OF_LANE, MOST_LANES)
    return 1 << max(0, most.bit_length() - 1)


@dataclass(frozen=True)
class Share:
    """One rank's share of the positions start, ..., start + size - 1."""

    start: int
    size: int
    part: range
    """Which of the positions, counted by lane and in a lane by position, are this rank's."""

    def later(self, steps: int) -> "Share":
        """The share of the same rank `steps` steps later."""
        return replace(self, start=self.start + steps * self.size)


class Lanes:
    """How the positions of epochs of `num_samples` samples are dealt to `num` lanes.

    Offset o of an epoch is sample o // num of the lane `order[o % num]`. Neighbouring offsets lie far apart
    on the line, so that any number of neighbours is spread evenly over it.
    """

    def __init__(self, num_samples: int, num: int):
        self.num, self.num_samples = num, num_samples
        self.order = np.arange(num) * _stride(num) % num
        """[num] int64: the lane of each remainder."""
        self._remainders = np.argsort(self.order)
        sizes = num_samples // num + (self._remainders < num_samples % num)
        self.starts: list[int] = [0, *np.cumsum(sizes).tolist()]
        """[num + 1]: where each lane begins on the line."""

    def of_reader(self, readers: int) -> int:
        """How many lanes one of so many readers reads, about, where neighbours share out every step: its
        part, a quarter more as steps are not spread quite evenly, and those at its ends."""
        return min(self.num, 5 * self.num // (4 * readers) + 4)

    def following(self, position: int) -> int:
        """The next position of the same lane."""
        epoch, offset = divmod(position, self.num_samples)
        if offset + self.num < self.num_samples:
            return position + self.num
        return (epoch + 1) * self.num_samples + offset % self.num

    def positions(self, share: Share) -> list[int]:
        """The positions of a share, by lane and in a lane by position."""
        if self.num == 1:
            return list(range(share.start + share.part.start, share.start + share.part.stop))
        firsts, counts = self._dealt(share.start, share.start + share.size)
        ends = np.cumsum(counts.sum(1))
        low, high = np.searchsorted(ends, [share.part.start, share.part.stop - 1], side="right")
        firsts, counts = firsts[low : high + 1].ravel(), counts[low : high + 1].ravel()
        # each run of positions is `num` apart
        before = np.cumsum(counts) - counts
        found = np.repeat(firsts - self.num * before, counts) + self.num * np.arange(counts.sum())
        skipped = share.part.start - int(ends[low - 1] if low else 0)
        return found[skipped : skipped + len(share.part)].tolist()

    def _dealt(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[num, epochs]: the first position from `start` on of each lane in each epoch, and how many it has
        before `stop`."""
        firsts, counts = [], []
        for epoch in range(start // self.num_samples, (stop - 1) // self.num_samples + 1):
            base = epoch * self.num_samples
            low = self._before(max(start - base, 0))
            firsts.append(base + self._remainders + self.num * low)
            counts.append(self._before(min(stop - base, self.num_samples)) - low)
        return np.stack(firsts, 1), np.stack(counts, 1)

    def _before(self, offset: int) -> NDArray[np.int64]:
        """[num]: how many samples of each lane have a smaller offset."""
        rows, rest = divmod(offset, self.num)
        return rows + (self._remainders < rest)


def _stride(num: int) -> int:
    """A number without common factor with `num`, near its golden section, whose multiples fill the circle of
    `num` places evenly: its continued fraction has no large term."""
    ideal = round(num * (5**0.5 - 1) / 2)
    near = [stride for stride in range(max(1, ideal - 64), min(num, ideal + 64) + 1) if gcd(stride, num) == 1]
    return min(near, key=lambda stride: (_largest_term(stride, num), abs(stride - ideal)))


def _largest_term(part: int, whole: int) -> int:
    """Of the continued fraction of part / whole."""
    largest = 0
    while part:
        largest = max(largest, whole // part)
        whole, part = part, whole % part
    return largest
