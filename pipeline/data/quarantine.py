"""Counts and names the samples that cannot be used, or not in full, and stops the run when too many cannot be used."""

import logging
from collections import Counter
from dataclasses import dataclass, fields, replace

import torch

from pipeline.errors import ConfigError, SampleError
from pipeline.interfaces import Batch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadSample:
    """place: in the order of its batch."""

    place: int
    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}, sample {self.key!r}: {self.reason}"


@dataclass(frozen=True)
class Loaded:
    """What a worker hands over: the batch (None where every sample is bad), how many samples it tried, and the bad ones among them.

    mistake: why the good samples make no batch, which is then None; empty otherwise. shortened: (key, what was left out of it).
    """

    batch: Batch | None
    tried: int
    bad: tuple[BadSample, ...]
    mistake: str = ""
    shortened: tuple[tuple[str, str], ...] = ()

    def pin_memory(self, device: str | None = None) -> "Loaded":
        """torch's loader calls this in its pinning thread."""
        if self.batch is None:
            return self
        targets = self.batch.targets
        tensors = {f.name: getattr(targets, f.name) for f in fields(targets)}
        pinned = {name: value.pin_memory() for name, value in tensors.items() if isinstance(value, torch.Tensor)}
        return replace(self, batch=replace(self.batch, images=self.batch.images.pin_memory(), targets=replace(targets, **pinned)))


class Quarantine:
    """limit: bad samples in a row that are passed over; one more stops the run."""

    def __init__(self, limit: int):
        self.count = 0
        self.shortened: Counter[str] = Counter()
        """What was left out -> of how many samples."""
        self._limit = limit
        self._in_row = 0

    def passed(self, loaded: Loaded) -> Batch:
        """The batch without its bad samples; raises SampleError past the limit or where none is good, ConfigError for a mistake."""
        bad = {sample.place: sample for sample in loaded.bad}
        for place in range(loaded.tried) if bad else ():
            self._note(bad.get(place))
        if not bad:
            self._in_row = 0
        if loaded.mistake:
            raise ConfigError(loaded.mistake)
        for key, part in loaded.shortened:
            if part not in self.shortened:
                log.warning("sample %r loses %s; others that do are counted, and not told again", key, part)
            self.shortened[part] += 1
        if loaded.batch is None:
            raise SampleError(f"all {loaded.tried} samples of a batch are bad, the last one: {loaded.bad[-1]}; see `dtem shards verify`")
        return loaded.batch

    def _note(self, sample: BadSample | None) -> None:
        if sample is None:
            self._in_row = 0
            return
        self.count += 1
        self._in_row += 1
        if self.count <= 10 or self.count % 1000 == 0:
            log.warning("bad sample %d is left out: %s", self.count, sample)
        if self._in_row > self._limit:
            raise SampleError(f"{self._in_row} bad samples in a row, the last one: {sample}; see `dtem shards verify`")
