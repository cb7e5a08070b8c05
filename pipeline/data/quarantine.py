"""Counts and names the samples that cannot be used, or not in full, and stops the run when many in a row
cannot be used."""

import logging
from collections import Counter
from dataclasses import dataclass, replace

import torch

from pipeline.errors import PipelineError, SampleError, counted, printable
from pipeline.interfaces import Batch, map_tensors

log = logging.getLogger(__name__)

_LONGEST = 1000
"""Characters of a log line about a sample: a stranger's key can be long."""


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be used, and why."""

    place: int
    """Its place in its batch."""
    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}, sample {self.key!r}: {self.reason}"


@dataclass(frozen=True)
class Loaded:
    """A batch as a worker hands it over."""

    batch: Batch | None
    """None where there is an error, and in evaluation where no sample is good."""
    tried: int
    """How many samples were asked for."""
    bad: tuple[BadSample, ...]
    """The bad ones among them."""
    error: PipelineError | None = None
    """The error as a value, as an exception of a worker would arrive as a traceback."""
    shortened: tuple[tuple[str, str], ...] = ()
    """(key, what was left out of its sample)."""
    others: tuple[Batch, ...] = ()
    """Of an evaluation in stored sizes: the good samples of other sizes than those of `batch`, a batch of
    each size."""

    def pin_memory(self, device: str | None = None) -> "Loaded":
        """torch's loader calls this in its pinning thread."""
        batch, others = map_tensors(torch.Tensor.pin_memory, (self.batch, self.others))
        return replace(self, batch=batch, others=others)


class Quarantine:
    """Counts bad samples. limit: how many in a row are passed over; one more stops the run."""

    def __init__(self, limit: int):
        self.shards: Counter[str] = Counter()
        """Maps a shard to its number of bad samples, each counted as often as it was asked for."""
        self.shortened: Counter[str] = Counter()
        """Maps what was left out to the number of samples that lost it."""
        self._limit = limit
        self._in_row = 0

    @property
    def count(self) -> int:
        return self.shards.total()

    def checked_batch(self, loaded: Loaded) -> Batch | None:
        """The batch, whose bad samples are counted. Raises the worker's error, and SampleError above the
        limit."""
        bad = {sample.place: sample for sample in loaded.bad}
        for place in range(loaded.tried):
            self._note(bad.get(place))
        if loaded.error is not None:
            raise loaded.error
        for key, part in loaded.shortened:
            if part not in self.shortened:
                log.warning("sample %r loses %s; others that do are counted, and not told again", key, part)
            self.shortened[part] += 1
        return loaded.batch

    def _note(self, sample: BadSample | None) -> None:
        if sample is None:
            self._in_row = 0
            return
        self.shards[sample.shard] += 1
        self._in_row += 1
        if self.count <= 10 or self.count % 1000 == 0:
            log.warning("bad sample %d is not used: %s", self.count, printable(str(sample))[:_LONGEST])
        if self._in_row > self._limit:
            raise bad_in_row(self._in_row, sample)


def bad_in_row(number: int, last: BadSample) -> SampleError:
    return SampleError(
        f"{counted(number, 'bad sample')} in a row, the last one: {last}; see `dtem shards verify`"
    )
