"""Positions in the sample order go in, a batch comes out."""

from collections.abc import Sequence
from dataclasses import replace

from torch.utils.data import Dataset

from pipeline.config.schema import DataConfig
from pipeline.data.augment.images import eraser
from pipeline.data.order import SampleOrder
from pipeline.data.quarantine import BadSample, Loaded
from pipeline.data.samples.protocol import DatasetSchema, Sample, stacked
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.reader import SampleReader
from pipeline.data.stalls import WorkerNotes
from pipeline.errors import PipelineError, SampleError
from pipeline.interfaces import Batch
from pipeline.pixels import Noise, Normalisation
from pipeline.rng import preserved_generators, seed_generators

PATIENT = 0.8
"""Of data.max_wait, for which storage is asked again: what is wrong is said before the wait for the batch
ends."""


class BatchReader(Dataset[Loaded]):
    """Maps a range of positions to its batch. A pure function of (seed, positions): any process may compute
    any batch.

    In training the place of a sample that is bad is taken by the next good one in the order, so that all
    batches have one shape; in evaluation (seed None) it is left out.
    """

    def __init__(
        self, task: str, config: DataConfig, manifest: Manifest, schema: DatasetSchema, seed: int | None
    ):
        counts = [shard.num_samples for shard in manifest.shards]
        self.classes, self.gives = schema.classes, schema.gives
        self.order = SampleOrder(counts, seed, config.shuffle_shards)
        self.notes = WorkerNotes(config.workers)
        self._task, self._schema, self._seed, self._manifest = task, schema, seed, manifest
        self._reader = SampleReader(
            manifest, config.shuffle_shards, int(config.cache_gib * 2**30), PATIENT * config.max_wait
        )
        erases = seed is not None and config.augment.random_erasing > 0
        self._erase = eraser(config.augment.random_erasing) if erases else None
        wanted = config.augment.preprocessing
        self._normalisation = Normalisation(wanted.mean, wanted.std)
        self._tries = max(1, config.max_bad_samples)

    def __getitem__(self, positions: range) -> Loaded:
        self._reader.prefetch(self.order.upcoming(positions.start))
        samples: list[Sample] = []
        bad: list[BadSample] = []
        try:
            with preserved_generators():
                for place, position in enumerate(positions):
                    sample = self._load(position)
                    if isinstance(sample, BadSample):
                        bad.append(replace(sample, place=place))
                        sample = None if self._seed is None else self._instead(position)
                    samples += [] if sample is None else [sample]
                shortened = tuple(
                    (sample.key, part)
                    for sample in samples
                    if (part := self._schema.shortened(sample.target))
                )
                return Loaded(
                    self._collate(samples) if samples else None,
                    len(positions),
                    tuple(bad),
                    shortened=shortened,
                )
        except PipelineError as err:
            return Loaded(None, len(positions), tuple(bad), err)
        finally:
            self.notes.write("")

    def _load(self, position: int, *place: int) -> Sample | BadSample:
        """The sample at a position, or one that takes another's place. A bad one is a value here, to pass
        from a worker as data."""
        at = self.order[position]
        shard, key = self._manifest.shards[at.shard].name, f"#{at.sample}"
        self.notes.write(shard)
        try:
            key = self._reader.key(at.shard, at.sample)
            self.notes.write(f"{shard}, sample {key!r}")
            image, target = self._schema.decode(self._reader.read(at.shard, at.sample))
            address = at.epoch, shard, key, *place
            if self._seed is None:
                return Sample(key, address, *self._schema.evaluate(image, target))
            seed_generators(self._seed, "augment", *address)
            return Sample(key, address, *self._schema.train(image, target))
        except (SampleError, OSError) as err:  # an OSError of a decoder: the reader has StorageError
            return BadSample(0, shard, key, str(err))

    def _instead(self, place: int) -> Sample:
        """The next good sample of the order, at the place of a bad one."""
        last = place + self._tries
        for position in range(place + 1, last + 1):
            if isinstance(sample := self._load(position, place), Sample):
                return sample
        raise SampleError(
            f"{self._tries + 1} samples in a row are bad, the last one: {self._load(last)}; see `dtem "
            "shards verify`"
        )

    def _collate(self, samples: Sequence[Sample]) -> Batch:
        images = stacked([sample.image for sample in samples], "images")
        targets = self._schema.targets([sample.target for sample in samples])
        normalisation = replace(self._normalisation, noise=self._noise(samples))
        return Batch(self._task, images, targets, tuple(sample.key for sample in samples), normalisation)

    def _noise(self, samples: Sequence[Sample]) -> Noise | None:
        """What random erasing draws for each image."""
        if self._seed is None or self._erase is None:
            return None
        patches = []
        for sample in samples:
            seed_generators(self._seed, "erase", *sample.address)
            patches.append(self._erase(sample.image.shape))
        return Noise.of(patches)
