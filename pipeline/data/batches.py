"""Reader that makes a batch from a share of the sample order."""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from pipeline.changes.changes import Changes
from pipeline.coded import Coded
from pipeline.config.modules import Imported
from pipeline.config.schema import DataConfig
from pipeline.data.augment.draws import drawing
from pipeline.data.augment.images import eraser
from pipeline.data.copies import copies_of
from pipeline.data.lanes import Share, lanes_of
from pipeline.data.look_ahead import LookAhead
from pipeline.data.order import SampleOrder
from pipeline.data.quarantine import BadSample, Loaded, bad_in_row
from pipeline.data.samples.class_names import Labels
from pipeline.data.samples.protocol import DatasetSchema, Sample
from pipeline.data.shards.held_out import cache_of
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.reader import SampleReader
from pipeline.data.stalls import WorkerNotes
from pipeline.errors import PipelineError, SampleError
from pipeline.interfaces import Batch
from pipeline.pixels import Noise, Normalisation
from pipeline.rng import preserved_generators, seed_generators

log = logging.getLogger(__name__)
PATIENCE_SHARE = 0.8
"""Share of data.max_wait for which failing storage is tried again. Its error comes before the wait for the
batch ends."""

Views = tuple[Sample, ...]
"""The views of one sample, each with the random draws of its own address."""


class BatchReader(Dataset[Loaded]):
    """Maps a share of the order to its batch: a pure function of (seed, share), which any process may
    compute.

    In training each sample is decoded once and augmented `config.views` times, and the next good sample of
    its lane replaces a bad one, so that all batches have one shape. In evaluation (seed None) samples come as
    they lie, a sample has one view, and bad samples are left out. world_size: ranks that share the order.
    step: samples of a step of the optimizer, see lanes_of. limit: the first samples of the manifest, which
    then are all; None: no limit. labels: that the schema was made with, if any.

    A process that is not forked gets what a reader is made of, and makes it anew: open files stay here.
    """

    def __init__(
        self,
        task: str,
        config: DataConfig,
        manifest: Manifest,
        schema: DatasetSchema,
        seed: int | None,
        world_size: int,
        step: int,
        limit: int | None = None,
        labels: Labels | None = None,
    ):
        self._made_of = (task, config, manifest), (seed, world_size, step, limit, labels)
        counts = _first(manifest.shards.num_samples.tolist(), limit)
        self._counts = counts
        self.classes, self.gives = schema.classes, schema.gives
        plain = seed is None or limit is not None
        copies = None if plain else copies_of(counts, manifest.weights)
        num_shards = len(counts if copies is None else copies.counts)
        lanes = 1 if plain else config.lanes or lanes_of(num_shards, step)
        self.order = SampleOrder(counts, seed, config.shuffle_shards, lanes, copies)
        self._look_ahead = LookAhead(self.order, config.fetch_ahead, wraps=seed is not None)
        self.notes = WorkerNotes(1)
        self.task, self._schema, self._seed, self._manifest = task, schema, seed, manifest
        patience = PATIENCE_SHARE * config.max_wait
        width = self.order.open_shards(world_size)
        self._reader = SampleReader(manifest, width, cache_of(config), patience, schema.reads)
        self._views = 1 if seed is None else config.views
        if self._reader.remote and seed is not None:
            _tell_small_cache(task, config, manifest, self.order, world_size)
        erases = seed is not None and config.augment.random_erasing > 0
        self._erase = eraser(config.augment) if erases else None
        draws = seed is not None and config.augment.on_device
        self._draw = drawing(config.augment, config.size) if draws else None
        wanted = config.augment.preprocessing
        self._normalisation = Normalisation(wanted.mean, wanted.std)
        self._tries = max(1, config.max_bad_samples)

    def __reduce__(self) -> tuple[Callable[..., "BatchReader"], tuple[Any, ...]]:
        own = *self._made_of, type(self._schema), self.notes, self._reader.disturbances
        # first, as the schema may be of a module of the user's
        return _received, (Imported(), *own)

    def decoding_here(self) -> "BatchReader":
        """The same reader, whose images are all decoded by the process that reads them."""
        ((task, config, manifest), how), kind = self._made_of, type(self._schema)
        own = task, replace(config, decode="worker"), manifest
        return _made_anew(own, how, kind, self.notes, self._reader.disturbances)

    def __getitem__(self, share: Share) -> Loaded:
        self._reader.start_clock()
        if self._reader.remote and self._look_ahead(share):
            self._reader.prefetch(self._look_ahead.in_sight())
        positions = self.order.lanes.positions(share)
        samples: list[Views] = []
        bad: list[BadSample] = []
        try:
            with preserved_generators():
                for place, position in enumerate(positions):
                    views = self._load(position)
                    if isinstance(views, BadSample):
                        bad.append(replace(views, place=place))
                        views = None if self._seed is None else self._instead(position, views)
                    samples += [] if views is None else [views]
                batches = [self._collate(views) for views in _of_one_size(samples)]
                return Loaded(
                    batches[0] if batches else None,
                    len(positions),
                    tuple(bad),
                    others=tuple(batches[1:]),
                    shortened=tuple(part for views in samples for part in self._shortened(views)),
                )
        except PipelineError as err:
            return Loaded(None, len(positions), tuple(bad), err)
        finally:
            self.notes.write("")

    def keys(self) -> list[str]:
        """The keys of all samples, shard by shard. Raises StorageError."""
        counts = enumerate(self._counts)
        return [self._reader.key(shard, sample) for shard, count in counts for sample in range(count)]

    def key_at(self, position: int) -> str:
        """The key of the sample at a position of the order. Raises StorageError."""
        at = self.order[position]
        return self._reader.key(at.shard, at.sample)

    def disturb(self, disturbance: Callable[[int, dict[str, bytes]], dict[str, bytes]]) -> None:
        """Puts a fault into the reading of shards (SampleReader.disturbances), before workers start."""
        self._reader.disturbances.append(disturbance)

    def _load(self, position: int, *replaced: int) -> Views | BadSample:
        """The views of the sample at a position. replaced: position of the bad sample that it replaces, if
        any. A bad sample is returned, not raised, so that a worker can send it."""
        at = self.order[position]
        shard, key = self._manifest.shards.name(at.shard), f"#{at.sample}"
        self.notes.write(f"task '{self.task}': {shard}")
        try:
            key = self._reader.key(at.shard, at.sample)
            self.notes.write(f"task '{self.task}': {shard}, sample {key!r}")
            image, target = self._schema.decode(self._reader.read(at.shard, at.sample))
            copy = [f"copy {at.copy}"] if at.copy else []
            address = at.epoch, shard, key, *copy, *replaced
            if self._seed is None:
                return (Sample(key, address, *self._schema.evaluate(image, target)),)
            return tuple(self._view(number, key, address, image, target) for number in range(self._views))
        # an OSError comes from a decoder: the reader raises StorageError
        except (SampleError, OSError) as err:
            return BadSample(0, shard, key, str(err))

    def _view(self, number: int, key: str, address: tuple[int | str, ...], image: Any, target: Any) -> Sample:
        """One view of a decoded sample. The first view has the same draws as with `views` 1."""
        assert self._seed is not None, "evaluation draws nothing"
        if number:
            address = *address, f"view {number}"
        seed_generators(self._seed, "augment", *address)
        image, target = self._schema.train(image, target)
        # by the draws that follow those of the crop, as where the worker changes the colours
        return Sample(key, address, image, target, self._draw() if self._draw else ())

    def _shortened(self, views: Views) -> list[tuple[str, str]]:
        """(key, part that was left out) of a sample, each part once even where several views lack it."""
        parts = dict.fromkeys(self._schema.shortened(view.target) for view in views)
        return [(views[0].key, part) for part in parts if part]

    def _instead(self, position: int, bad: BadSample) -> Views:
        """The next good sample of the lane, to replace the bad one at a position. Raises SampleError."""
        later = position
        for _ in range(self._tries):
            later = self.order.lanes.following(later)
            found = self._load(later, position)
            if not isinstance(found, BadSample):
                return found
            bad = found
        raise bad_in_row(self._tries + 1, bad)

    def _collate(self, views: Sequence[Sample]) -> Batch:
        """The batch of these views; those of one sample are neighbours."""
        # a worker's batch is made in the memory that it shares with the process that trains
        decoded = [view.image for view in views if isinstance(view.image, Tensor)]
        images = (
            default_collate(decoded)
            if decoded
            else torch.empty((0, *views[0].image.shape), dtype=torch.uint8)
        )
        targets = self._schema.targets([view.target for view in views])
        keys = tuple(view.key for view in views)
        changes = Changes.of([view.changes for view in views])
        normalisation = replace(self._normalisation, noise=self._noise(views), changes=changes)
        coded = Coded.of([view.image for view in views], keys)
        return Batch(self.task, images, targets, keys, normalisation, self._views, coded)

    def _noise(self, views: Sequence[Sample]) -> Noise | None:
        """Noise of random erasing for each image, the same for all frames of a clip; None where nothing is
        erased."""
        if self._seed is None or self._erase is None:
            return None
        patches = []
        for view in views:
            seed_generators(self._seed, "erase", *view.address)
            patches.append(self._erase(view.image.shape[-3:]))
        return Noise.of(patches)


def _received(imported: Imported, *own: Any) -> BatchReader:
    return _made_anew(*own)


def _made_anew(
    what: tuple[str, DataConfig, Manifest],
    how: tuple[Any, ...],
    kind: type[DatasetSchema],
    notes: WorkerNotes,
    disturbances: Sequence[Callable[[int, dict[str, bytes]], dict[str, bytes]]],
) -> BatchReader:
    """A reader in a process of its own. kind: the schema, which comes with its module."""
    (_, config, manifest), labels = what, how[-1]
    schema = kind(config, manifest) if labels is None else kind(config, manifest, labels=labels)  # pyright: ignore
    reader = BatchReader(*what, schema, *how)
    reader.notes = notes
    for disturbance in disturbances:
        reader.disturb(disturbance)
    return reader


def _of_one_size(samples: Sequence[Views]) -> list[list[Sample]]:
    """The views of samples in groups of which each has images, and masks, of one size; in the order of the
    first of each. Training has one group; evaluation can keep the stored sizes."""
    groups: dict[object, list[Sample]] = {}
    for view in (view for views in samples for view in views):
        mask = view.target.shape if isinstance(view.target, Tensor) else None
        groups.setdefault((view.image.shape, mask), []).append(view)
    return list(groups.values())


def _first(counts: list[int], limit: int | None) -> list[int]:
    """The samples of each shard that are among the first `limit` of all; without shards that have none."""
    if limit is None:
        return counts
    before = list(accumulate(counts, initial=0))
    return [min(own, limit - start) for own, start in zip(counts, before, strict=False) if start < limit]


def _tell_small_cache(
    task: str, config: DataConfig, manifest: Manifest, order: SampleOrder, world_size: int
) -> None:
    """Warns where the lanes of a machine, and what is fetched ahead for its ranks, need more than its
    cache."""
    ranks = min(world_size, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    shard = int(manifest.shards.num_bytes.sum()) / len(manifest.shards)
    ahead = ranks * config.fetch_ahead / (order.num_samples / len(manifest.shards))
    lanes = -(-order.lanes.num * ranks // world_size)
    needed = min(len(manifest.shards), order.width * lanes + ahead) * shard / 2**30
    if needed > config.cache_gib:
        log.warning(
            "tasks.%s.data: its %d lanes and what is fetched ahead take %.1f GiB of shards on this machine, "
            "and data.cache_gib is %g: steps will wait for shards. Give data.cache_gib=%d, or a smaller "
            "data.fetch_ahead, or to a new run fewer data.lanes",
            *(task, order.lanes.num, needed, config.cache_gib, math.ceil(1.25 * needed)),
        )
