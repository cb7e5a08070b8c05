"""A loader that passes once over a split, for evaluation."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import torch

from pipeline.config.schema import DataConfig
from pipeline.data.batches import BatchReader
from pipeline.data.lanes import Share
from pipeline.data.loading import loaded_by_workers
from pipeline.data.quarantine import Quarantine
from pipeline.data.shards.manifest import Manifest
from pipeline.data.stalls import never
from pipeline.errors import ConfigError, first_few
from pipeline.interfaces import Batch
from pipeline.rng import generator


class EvalLoader:
    """A split's samples, each once over all ranks, in the order of the shards: rank r has the batches r,
    r + world_size, ...

    num_samples: that are evaluated. num_stored: that the split has; more with data.limit_val or data.overfit.
    Bad samples are left out, and batches of bad samples alone are skipped. Images of a batch that differ in
    size are given by size, each once. stopping: as that of a `TrainStream`.
    """

    def __init__(
        self, reader: BatchReader, config: DataConfig, manifest: Manifest, rank: int, world_size: int
    ):
        self.num_samples, self.fingerprint = reader.order.num_samples, manifest.fingerprint
        self.num_stored, self.num_shards = manifest.num_samples, len(manifest.shards)
        self.stopping: Callable[[], bool] = never
        self.classes, self.gives = reader.classes, reader.gives
        size, step = config.eval_batch_size, config.eval_batch_size * world_size
        self._shares = [
            Share(start, step, range(rank * size, min((rank + 1) * size, self.num_samples - start)))
            for start in range(0, self.num_samples - rank * size, step)
        ]
        self._reader, self._config = reader, config
        self._quarantine = Quarantine(config.max_bad_samples)

    @property
    def bad_samples(self) -> int:
        return self._quarantine.count

    @property
    def shortened_samples(self) -> int:
        return self._quarantine.shortened.total()

    def __len__(self) -> int:
        return len(self._shares)

    def keep(self, keys: Collection[str]) -> None:
        """Leaves only the batches that hold a sample with one of the keys. Raises ConfigError for a key that
        no sample of this rank has, and StorageError."""
        found = [
            (share, {self._reader.key_at(at) for at in self._reader.order.lanes.positions(share)})
            for share in self._shares
        ]
        there = {key for _, own in found for key in own}
        if lacking := [key for key in keys if key not in there]:
            known = first_few(sorted(there), 3, ", ")
            raise ConfigError(f"no sample has the key '{lacking[0]}'; there are {known}")
        self._shares = [share for share, own in found if not own.isdisjoint(keys)]

    def draw(self, batches: int, seed: int) -> None:
        """Leaves so many of the batches, or all, drawn from the seed, in their order."""
        order = torch.randperm(len(self._shares), generator=generator(seed, "batches")).tolist()
        self._shares = [self._shares[number] for number in sorted(order[:batches])]

    def __iter__(self) -> Iterator[Batch]:
        """Yields the good samples: `len(self)` batches, less where all samples of one are bad, and more where
        images of different sizes lie in one, which come in a batch for each size."""
        return (batch for batches in self.in_place() for batch in batches)

    def in_place(self) -> Iterator[tuple[Batch, ...]]:
        """Yields `len(self)` times the batches of some samples: one for each size of images, and none where
        all samples are bad."""
        # a worker more would have no batch to make
        config = replace(self._config, workers=min(self._config.workers, len(self)))
        order = [(self._reader.task, share) for share in self._shares]
        for _, loaded in loaded_by_workers({self._reader.task: self._reader}, order, config, self.stopping):
            batch = self._quarantine.checked_batch(loaded)
            yield () if batch is None else (batch, *loaded.others)
