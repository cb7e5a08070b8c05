"""The order of samples: a pure function of (seed, epoch, manifest), endless over epochs. Any position in it
is found at once.

In an epoch the shards are permuted, cut into windows of `shuffle_shards` neighbours, and the samples of each
window are permuted together. So a reader has one window open at a time, and every sample comes exactly once
an epoch.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from pipeline.rng import seed_of


@dataclass(frozen=True)
class Address:
    """The place of one sample."""

    epoch: int
    shard: int
    """Its number in the manifest."""
    sample: int
    """Its number in the shard."""


@dataclass(frozen=True)
class _Window:
    """Neighbouring shards whose samples are permuted together."""

    shards: tuple[int, ...]
    starts: tuple[int, ...]
    """[len(shards) + 1]: where the samples of each shard begin in the unshuffled window."""
    permutation: NDArray[np.int64] | None
    """[number of samples]; None without shuffling."""


class SampleOrder:
    """Maps a position to the address of its sample. counts: samples of each shard. seed None: no shuffling,
    as in evaluation. shuffle_shards: shards of a window."""

    def __init__(self, counts: list[int], seed: int | None, shuffle_shards: int):
        self.num_samples = sum(counts)
        self._counts = counts
        self._seed = seed
        self._width = shuffle_shards
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        # two, as a batch may lie in two windows
        self._window = lru_cache(maxsize=2)(self._make_window)

    def __getitem__(self, position: int) -> Address:
        """The sample at a position from 0 on; position // num_samples is its epoch."""
        epoch, offset = divmod(position, self.num_samples)
        number, start = self._find(epoch, offset)
        window = self._window(epoch, number)
        local = offset - start
        if window.permutation is not None:
            local = int(window.permutation[local])
        which = bisect_right(window.starts, local) - 1
        return Address(epoch, window.shards[which], local - window.starts[which])

    def upcoming(self, position: int) -> tuple[int, ...]:
        """The shards of the position's window and of the next one, which a reader should have at hand."""
        epoch, offset = divmod(position, self.num_samples)
        number, _ = self._find(epoch, offset)
        shards, starts = self._epoch(epoch)
        here = shards[number * self._width : (number + 2) * self._width]
        if number + 2 <= len(starts):
            return here
        return here + self._epoch(epoch + 1)[0][: self._width]

    def _find(self, epoch: int, offset: int) -> tuple[int, int]:
        """(number, start) of the window in which an epoch's offset lies."""
        _, starts = self._epoch(epoch)
        number = bisect_right(starts, offset) - 1
        return number, starts[number]

    def _make_epoch(self, epoch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shards in this epoch's order, and where each window starts."""
        num_shards = len(self._counts)
        shards = (
            range(num_shards)
            if self._seed is None
            else self._rng("shards", epoch).permutation(num_shards).tolist()
        )
        sizes = [
            sum(self._counts[shard] for shard in shards[first : first + self._width])
            for first in range(0, num_shards, self._width)
        ]
        return tuple(shards), tuple(accumulate(sizes[:-1], initial=0))

    def _make_window(self, epoch: int, number: int) -> _Window:
        shards = self._epoch(epoch)[0][number * self._width : (number + 1) * self._width]
        starts = tuple(accumulate((self._counts[shard] for shard in shards), initial=0))
        permutation = (
            None if self._seed is None else self._rng("window", epoch, number).permutation(starts[-1])
        )
        return _Window(shards, starts, permutation)

    def _rng(self, *address: int | str) -> np.random.Generator:
        assert self._seed is not None, "an order without a seed draws nothing"
        return np.random.Generator(np.random.PCG64(seed_of(self._seed, "order", *address)))
