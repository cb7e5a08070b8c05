"""Looks ahead in the order: which shards a process will need next, so that they are fetched in time."""

from pipeline.data.lanes import Share
from pipeline.data.order import SampleOrder


class LookAhead:
    """samples: for how many samples of a rank the shards are named before they are needed. wraps: whether the
    order goes on behind the end of the epoch."""

    def __init__(self, order: SampleOrder, samples: int, *, wraps: bool):
        self._order, self._samples, self._wraps = order, samples, wraps
        self._known: dict[int, list[int]] = {}

    def __call__(self, share: Share, every: int) -> list[int]:
        """The shards of the share and of those that this process reads after it, in the order of need.
        every: steps from one share of this process to its next."""
        later = range(0, self.steps(share) + every, every)
        shares = [share.later(steps) for steps in later]
        # each share is looked at once; what lies behind is forgotten
        self._known = {ahead.start: self._known.get(ahead.start) or self._shards(ahead) for ahead in shares}
        return list(dict.fromkeys(shard for shards in self._known.values() for shard in shards))

    def known(self, share: Share) -> list[int]:
        """The shards of the last share that was given, or of one behind it that was looked at with it."""
        return self._known[share.start]

    def steps(self, share: Share) -> int:
        """Steps in which the rank reads `samples` samples."""
        return -(-self._samples // len(share.part))

    def _shards(self, share: Share) -> list[int]:
        positions = self._order.lanes.positions(share)
        if not self._wraps:
            positions = [position for position in positions if position < self._order.num_samples]
        return self._order.shards(positions)
