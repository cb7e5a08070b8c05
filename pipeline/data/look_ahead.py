"""Looks ahead in the order: which shards a rank will need next, so that they are fetched in time.

Which of its workers makes a batch is not known before, so each looks at all batches. What one has fetched,
all can use.
"""

from pipeline.data.lanes import Share
from pipeline.data.order import SampleOrder


class LookAhead:
    """samples: for how many samples of a rank the shards are named before they are needed. wraps: whether the
    order goes on behind the end of the epoch."""

    def __init__(self, order: SampleOrder, samples: int, *, wraps: bool):
        self._order, self._samples, self._wraps = order, samples, wraps
        self._start_anew()

    def _start_anew(self) -> None:
        self._here = self._looked = -1
        """Start of the last share that was given, and of the last one that was looked at."""
        self._last: dict[int, int] = {}
        """Maps a shard to the start of the last share that needs it, in the order of need."""
        self._most = 1024

    def __call__(self, share: Share) -> list[int]:
        """The shards that come into sight with a share, in the order of need: with the first one all of its
        own and of those that the rank reads after it."""
        if share.start <= self._here:
            self._start_anew()
        self._here = share.start
        first = 0 if self._looked < share.start else (self._looked - share.start) // share.size + 1
        new = []
        # as many steps as `samples` samples of the rank take
        for steps in range(first, -(-self._samples // len(share.part)) + 1):
            ahead = share.later(steps)
            for shard in self._shards(ahead):
                if self._last.get(shard, -1) < share.start:
                    self._last.pop(shard, None)
                    new.append(shard)
                self._last[shard] = ahead.start
            self._looked = ahead.start
        if len(self._last) > self._most:
            self._last = {shard: start for shard, start in self._last.items() if start >= share.start}
            self._most = 2 * len(self._last) + 1024
        return new

    def in_sight(self) -> list[int]:
        """The shards that the last share needs, or one behind it that was looked at, by first need."""
        return [shard for shard, start in self._last.items() if start >= self._here]

    def _shards(self, share: Share) -> list[int]:
        positions = self._order.lanes.positions(share)
        if not self._wraps:
            positions = [position for position in positions if position < self._order.num_samples]
        return self._order.shards(positions)
