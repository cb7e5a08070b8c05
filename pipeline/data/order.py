"""The order of samples: a pure function of (seed, epoch, manifest) and the settings of the data, endless over
epochs. Any position in it is found at once.

In an epoch the shards are permuted, and their samples laid in one line, which is cut into lanes (lanes.py). A
lane is cut into windows of neighbouring shards, and the samples of each window are permuted together. So a
reader has one window of each of its lanes open at a time, and every sample comes exactly once an epoch.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.data.copies import Copies
from pipeline.data.lanes import Lanes
from pipeline.rng import seed_of


@dataclass(frozen=True)
class Address:
    """The place of one sample."""

    epoch: int
    shard: int
    """Its number in the manifest."""
    sample: int
    """Its number in the shard."""
    copy: int = 0
    """Which of the copies of its shard it belongs to; others than 0 are of sets with weights."""


@dataclass(frozen=True)
class _Line:
    """The shards in an epoch's order."""

    shards: NDArray[np.int32]
    starts: NDArray[np.int64]
    """[num_shards + 1]: where the samples of each begin on the line."""


@dataclass(frozen=True)
class _Window:
    """Neighbouring shards of a lane, whose samples are permuted together."""

    epoch: int
    low: int
    """First and last + 1 of its samples, as the lane counts them."""
    high: int
    shards: tuple[int, ...]
    starts: tuple[int, ...]
    """Where the samples of each shard begin in the unshuffled window; below 0 where a part of the first shard
    is another lane's."""
    seed: int | None

    @cached_property
    def permutation(self) -> NDArray[np.int32] | range:
        """[number of samples]"""
        size = self.high - self.low
        if self.seed is None:
            return range(size)
        return np.random.Generator(np.random.PCG64(self.seed)).permutation(size).astype(np.int32)


class SampleOrder:
    """Maps a position to the address of its sample. counts: samples of each shard. seed None: no shuffling,
    as in evaluation. shuffle_shards: shards of the windows of all lanes together; each lane has one at
    least. copies: of the shards, where sets have weights; they take the place of the shards in all of
    this."""

    def __init__(
        self,
        counts: Sequence[int],
        seed: int | None,
        shuffle_shards: int,
        lanes: int = 1,
        copies: Copies | None = None,
    ):
        self._copies = copies
        self._counts = np.asarray(counts if copies is None else copies.counts, dtype=np.int64)
        self.lanes = Lanes(int(self._counts.sum()), lanes)
        self.num_samples = self.lanes.num_samples
        self.width = -(-shuffle_shards // lanes)
        """Shards of a window."""
        self._seed = seed
        self._lane_of: list[int] = self.lanes.order.tolist()
        self._line = lru_cache(maxsize=2)(self._make_line)
        self._read: dict[int, _Window] = {}
        """The window of each lane that was read last, and below the one that was asked for ahead."""
        self._ahead: dict[int, _Window] = {}

    def __getitem__(self, position: int) -> Address:
        """The sample at a position from 0 on; position // num_samples is its epoch."""
        window, index = self._window(position, self._read)
        place = int(window.permutation[index - window.low])
        which = bisect_right(window.starts, place) - 1
        shard, sample = window.shards[which], place - window.starts[which]
        if (copies := self._copies) is None:
            return Address(window.epoch, shard, sample)
        sample = copies.sample(shard, sample, window.epoch)
        return Address(window.epoch, int(copies.shards[shard]), sample, int(copies.numbers[shard]))

    def open_shards(self, readers: int) -> int:
        """Shards that one of so many readers has in use at once, at most."""
        return self.width * self.lanes.of_reader(readers)

    def shards(self, positions: list[int]) -> list[int]:
        """The shards of the windows in which the positions lie, in the order of the positions."""
        found: dict[int, None] = {}
        last = None
        for position in positions:
            window, _ = self._window(position, self._ahead)
            if window is not last:
                found |= dict.fromkeys(window.shards)
            last = window
        if self._copies is not None:
            return list(dict.fromkeys(self._copies.shards[list(found)].tolist()))
        return list(found)

    def _window(self, position: int, last: dict[int, _Window]) -> tuple[_Window, int]:
        """The window of a position, and the number of the sample in its lane. last: keeps a window of each
        lane."""
        epoch, offset = divmod(position, self.num_samples)
        index, remainder = divmod(offset, self.lanes.num)
        lane = self._lane_of[remainder]
        window = last.get(lane)
        if window is None or window.epoch != epoch or not window.low <= index < window.high:
            window = last[lane] = self._make_window(epoch, lane, index)
        return window, index

    def _make_window(self, epoch: int, lane: int, index: int) -> _Window:
        """The window of a lane in which its sample `index` lies. Every other lane runs backwards, so that two
        lanes read the shard that is cut between them at the same time."""
        line, backwards = self._line(epoch), lane % 2
        start, stop = self.lanes.starts[lane : lane + 2]
        first, here = np.searchsorted(
            line.starts, [start, stop - 1 - index if backwards else start + index], side="right"
        ).tolist()
        end = int(np.searchsorted(line.starts, stop))
        # shards first - 1, ..., end - 1 of the line have samples in the lane
        number = (end - here if backwards else here - first) // self.width
        if backwards:
            high = end - number * self.width
            low = max(first - 1, high - self.width)
        else:
            low = first - 1 + number * self.width
            high = min(end, low + self.width)
        begin, over = max(int(line.starts[low]), start), min(int(line.starts[high]), stop)
        bounds = (stop - over, stop - begin) if backwards else (begin - start, over - start)
        return _Window(
            epoch,
            *bounds,
            tuple(line.shards[low:high].tolist()),
            tuple((line.starts[low:high] - begin).tolist()),
            self._draw("window", epoch, number * self.lanes.num + lane),
        )

    def _make_line(self, epoch: int) -> _Line:
        num_shards, seed = len(self._counts), self._draw("shards", epoch)
        shards = (
            np.arange(num_shards)
            if seed is None
            else np.random.Generator(np.random.PCG64(seed)).permutation(num_shards)
        )
        starts = np.concatenate([[0], np.cumsum(self._counts[shards])])
        return _Line(shards.astype(np.int32), starts)

    def _draw(self, *address: int | str) -> int | None:
        return None if self._seed is None else seed_of(self._seed, "order", *address)
