"""Several sets with weights: how often their samples come in an epoch.

A set of weight 2.5 gives the order two whole copies of each of its shards, and one that holds half of their
samples: in each epoch those that follow on the last ones, around the shard. So the number of samples of an
epoch never changes, and over the epochs each sample of a set comes equally often.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Copies:
    """N copies of shards, whole or in part."""

    shards: NDArray[np.int64]
    """[N]: the shard of each copy."""
    numbers: NDArray[np.int64]
    """[N]: which of the copies of its shard it is."""
    counts: NDArray[np.int64]
    """[N]: how many samples it gives to an epoch."""
    sizes: NDArray[np.int64]
    """[N]: samples of its shard."""

    def sample(self, copy: int, place: int, epoch: int) -> int:
        """The number in its shard of the sample at a place of a copy."""
        return int((epoch * int(self.counts[copy]) + place) % self.sizes[copy])


def copies_of(counts: Sequence[int], weights: Sequence[tuple[int, float]]) -> Copies | None:
    """The copies of shards with these numbers of samples. weights: of each set, the number of its shards and
    how often a sample of it comes in an epoch, in the mean. None where that is once for all."""
    if all(weight == 1 for _, weight in weights):
        return None
    rows: list[tuple[int, int, int, int]] = []
    start = 0
    for num_shards, weight in weights:
        own = list(enumerate(counts[start : start + num_shards], start))
        whole = int(weight)
        rows += [(shard, copy, size, size) for copy in range(whole) for shard, size in own]
        # rounded along the set, so that its epoch has the share to one sample
        ends = np.rint((weight - whole) * np.cumsum([0, *(size for _, size in own)])).astype(int)
        parts = zip(own, np.diff(ends).tolist(), strict=True)
        rows += [(shard, whole, part, size) for (shard, size), part in parts if part]
        start += num_shards
    return Copies(*np.array(rows, dtype=np.int64).reshape(-1, 4).T)
